//! dualspeed-model
