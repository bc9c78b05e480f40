//! dualspeed-train
