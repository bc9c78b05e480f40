//! dualspeed-ops
