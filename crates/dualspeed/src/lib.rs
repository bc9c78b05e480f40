//! dualspeed
