//! One training and its evaluation on generated scenes, as the quickstart and ablations repeat them.

mod experiment_data;
mod result;
mod scenes;
mod train_and_evaluate;
mod views;

pub use experiment_data::ExperimentData;
pub use result::RunResult;
pub use scenes::{HELD_OUT_VENDOR, held_out_source, scene_config, test_source};
pub use views::evaluation_views;
