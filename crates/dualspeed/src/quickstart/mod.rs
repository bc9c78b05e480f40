//! Three models from the same seed and data (baseline, NaivePrune, DualSpeed), one table, one report.

mod arms;
mod conclusion;
mod kept_tokens;
mod recipe;
pub mod report;
mod run;
pub mod summary;

pub use arms::{ARMS, Arm, arm_dir};
pub use conclusion::conclusion;
pub use recipe::{RECIPE, TEST_SCENES, recipe_config};
pub use run::{QuickstartOptions, run};
