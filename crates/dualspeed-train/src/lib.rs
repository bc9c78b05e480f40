//! DualSpeed training inside Burn's Learner.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | [`TrainConfig`]: TOML, overrides, unknown keys with the nearest known one |
//! | [`mode`] | [`Mode`] and schedules of modes, by name |
//! | [`lr_schedule`] | learning rate: warm-up and cosine |
//! | [`optim`] | AdamW with a rate per group and a global-norm clip |
//! | [`loader`] | windows of micro-batches, made ahead by host threads |
//! | [`samples`] | which samples a run can use: token ids, lengths in both views, what is skipped |
//! | [`step`] | the fast and the slow step as Burn's `TrainStep` and `InferenceStep` |
//! | [`doors`] | what other crates bring by name |
//! | [`strategy`] | the loop, as Burn's `TrainingStrategy::Custom` |
//! | [`mod@train`] | one run: checks, wiring, outcome |
//! | [`checkpoint`] | atomic checkpoints |
//! | [`memory`] | what a step needs, and what it recomputes to fit |
//! | [`metrics`] | step records, Burn metrics, `metrics.jsonl`, progress bar |
//! | [`features`] | features of the frozen tower, computed once, in memory or on disk |
//! | [`mod@evaluate`] | accuracy by kind of question and view |
//! | [`tower_training`] | training a vision tower to name patches |

pub mod checkpoint;
pub mod config;
mod dataloader;
pub mod doors;
pub mod error;
mod error_slot;
pub mod evaluate;
pub mod features;
mod inputs;
pub mod loader;
pub mod lr_schedule;
pub mod memory;
pub mod metrics;
pub mod mode;
pub mod optim;
mod run_dir;
pub mod samples;
mod state;
pub mod step;
pub mod strategy;
pub mod tower_training;
pub mod train;

pub use checkpoint::check_format;
pub use config::{Stage, TrainConfig};
pub use doors::Doors;
pub use error::{ConfigError, TrainError};
pub use evaluate::{EvalOptions, EvalReport, EvalView, KindAccuracy, ViewReport, evaluate};
pub use features::{FeatureCache, FeatureStore};
pub use memory::MemoryPlan;
pub use metrics::{
    MetricRegistry, Progress, RecordMetric, StepRecord, TimeSplit, Totals, read_metrics,
};
pub use mode::{
    AlwaysFast, AlwaysSlow, Bernoulli, Mode, ModeSchedule, PastStep, Periodic, ScheduleRegistry,
    ScheduleSpec,
};
pub use run_dir::{CONFIG_FILE, METRICS_FILE, VALIDATION_FILE};
pub use samples::{SampleCheck, sequence_limits};
pub use tower_training::{TowerConfig, TowerOutcome, train_tower};
pub use train::{TrainJob, TrainOutcome, load_trained, train};
