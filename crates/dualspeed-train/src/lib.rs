//! DualSpeed training inside Burn's Learner.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | [`TrainConfig`]: TOML, overrides, unknown keys with the nearest known one |
//! | [`mode`] | [`Mode`] and its schedules, pure in (seed, step) |
//! | [`schedule`] | learning rate: warm-up and cosine |
//! | [`optim`] | AdamW with a rate per group and a global-norm clip |
//! | [`stage`] | what each stage trains |
//! | [`loader`] | windows of micro-batches, made ahead by host threads |
//! | [`model`] | the fast and the slow step as Burn's `TrainStep` and `InferenceStep` |
//! | [`strategy`] | the loop, as Burn's `TrainingStrategy::Custom` |
//! | [`mod@train`] | one run: checks, wiring, outcome |
//! | [`checkpoint`] | atomic checkpoints |
//! | [`memory`] | what a step needs, and what it recomputes to fit |
//! | [`metrics`] | step records, Burn metrics, `metrics.jsonl`, progress bar |
//! | [`features`] | features of the frozen tower, computed once, in memory or on disk |
//! | [`mod@evaluate`] | accuracy by kind of question and view |
//! | [`tower`] | training a vision tower to name patches |

pub mod checkpoint;
pub mod config;
mod dataloader;
pub mod error;
pub mod evaluate;
pub mod features;
pub mod loader;
pub mod memory;
pub mod metrics;
pub mod mode;
pub mod model;
pub mod optim;
mod run_dir;
pub mod schedule;
pub mod stage;
mod state;
pub mod strategy;
pub mod tower;
pub mod train;

pub use config::{Stage, TrainConfig};
pub use error::{ConfigError, TrainError};
pub use evaluate::{EvalOptions, EvalReport, EvalView, KindAccuracy, ViewReport, evaluate};
pub use features::{FeatureCache, FeatureStore};
pub use memory::MemoryPlan;
pub use metrics::{Progress, StepRecord, TimeSplit, Totals, read_metrics};
pub use mode::{AlwaysFast, AlwaysSlow, Bernoulli, Mode, ModeSchedule, Periodic};
pub use run_dir::{CONFIG_FILE, METRICS_FILE, VALIDATION_FILE};
pub use tower::{TowerConfig, TowerOutcome, train_tower};
pub use train::{TrainJob, TrainOutcome, load_trained, train};
