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
//! | [`checkpoint`] | atomic checkpoints, with checksums |
//! | [`origins`] | what a run started from, by content |
//! | [`memory`] | what a step needs, and what it recomputes to fit |
//! | [`metrics`] | step records, Burn metrics, `metrics.jsonl`, progress bar |
//! | [`features`] | features of the frozen tower, computed once, in memory or on disk |
//! | [`mod@evaluate`] | accuracy by kind of question and view |
//! | [`tower_training`] | training a vision tower to name patches |

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod checkpoint;
pub mod config;
mod content_hash;
mod dataloader;
mod disk;
pub mod doors;
pub mod error;
mod error_slot;
pub mod evaluate;
pub mod features;
mod inputs;
pub mod loader;
mod lock;
pub mod lr_schedule;
pub mod memory;
pub mod metrics;
pub mod mode;
pub mod optim;
pub mod origins;
mod patience;
mod records;
mod resume;
mod run_dir;
mod run_files;
pub mod samples;
mod state;
pub mod step;
pub mod strategy;
pub mod tower_training;
pub mod train;

pub use checkpoint::{check_format, model_digest, run_and_step};
pub use config::{Stage, TrainConfig};
pub use doors::Doors;
pub use error::{ConfigError, SavedSteps, TrainError};
pub use evaluate::{EvalOptions, EvalReport, EvalView, KindAccuracy, ViewReport, evaluate};
pub use features::{FeatureCache, FeatureStore};
pub use memory::MemoryPlan;
pub use metrics::{
    MetricRegistry, Progress, RecordMetric, SkippedStep, StepRecord, TimeSplit, Totals,
    read_metrics,
};
pub use mode::{
    AlwaysFast, AlwaysSlow, Bernoulli, Mode, ModeSchedule, PastStep, Periodic, ScheduleRegistry,
    ScheduleSpec,
};
pub use origins::{Origin, Origins};
pub use run_files::{
    CONFIG_FILE, LOCK_FILE, METRICS_FILE, ORIGINS_FILE, RESUMES_FILE, VALIDATION_FILE,
};
pub use samples::{SampleCheck, sequence_limits};
pub use tower_training::{TowerConfig, TowerOutcome, train_tower};
pub use train::{TrainJob, TrainOutcome, load_trained, train};
