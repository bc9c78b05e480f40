//! dualspeed-data
