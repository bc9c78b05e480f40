//! Fast-slow training of multimodal LLMs with visual token pruning, on Burn.
//!
//! This crate is the one import ([`prelude`]), the backend features, the `dualspeed` program ([`cli`]),
//! the quickstart, and reports. The parts live in crates of their own:
//!
//! | crate | concept |
//! |---|---|
//! | [`core`] | options, registries, random streams, whole files |
//! | [`ops`] | our extension of Burn's `Backend` trait |
//! | [`model`] | LLaVA: vision tower, projector, pruners, isolator, decoder, losses |
//! | [`data`] | conversations, images, scenes, samplers, batches |
//! | [`train`] | modes, the training strategy, checkpoints, metrics, evaluation |
//!
//! | module here | concept |
//! |---|---|
//! | [`assets`] | pretrained weights from package registries |
//! | [`backend`] | the backends compiled in, chosen at run time |
//! | [`mod@bench`] | times of training steps, operations and pruners |
//! | [`checkpoint`] | published checkpoints opened, whatever a path is |
//! | [`cli`] | the `dualspeed` program |
//! | [`clip`] | CLIP's text tower and projection for text-guided pruners |
//! | [`embedded_tower`] | the embedded vision tower and how it is trained |
//! | [`experiment`] | data sets, tower features and one training with its evaluation, as quickstart and ablations need it |
//! | [`extensions`] | parts of another crate, known to every command |
//! | [`files`] | files of results that are there whole or not at all |
//! | [`hub`] | models by their name on the Hugging Face hub |
//! | [`interrupt`] | SIGINT, SIGTERM, SIGHUP |
//! | [`output`] | standard output and standard error, which may be gone |
//! | [`pipeline`] | a model with tokenizer, template and image processor, from a run or a checkpoint |
//! | [`quickstart`] | three models, one table, one report |
//! | [`report`] | plots, pages, tables, pictures |
//! | [`run_dir`] | run directories: what a run started from, and the model it ended with |
//! | [`whole_dir`] | directories that are there whole or not at all |

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

/// The Burn that the traits here are written in.
pub use burn;
pub use dualspeed_core as core;
pub use dualspeed_data as data;
pub use dualspeed_model as model;
pub use dualspeed_ops as ops;
pub use dualspeed_train as train;

pub mod assets;
pub mod backend;
mod base_text;
pub mod bench;
pub mod checkpoint;
pub mod checkpoint_text;
pub mod cli;
pub mod clip;
mod commands;
pub mod embedded_tower;
mod error_chain;
pub mod experiment;
pub mod extensions;
pub mod files;
pub mod hub;
pub mod interrupt;
mod origins;
pub mod output;
mod patch_contributions;
pub mod pipeline;
pub mod quickstart;
pub mod report;
pub mod run_dir;
pub mod whole_dir;

/// The names that most programs import.
pub mod prelude {
    pub use crate::extensions::Extensions;
    pub use burn::tensor::{Int, Tensor};
    pub use dualspeed_core::{MakerError, Options};
    pub use dualspeed_data::{
        Example, ExampleSource, HostBatch, Modality, SceneConfig, SceneSource, SourceRegistry,
        SourceSpec,
    };
    pub use dualspeed_model::objective::{LossPart, ObjectiveRegistry};
    pub use dualspeed_model::pruner::top_indices;
    pub use dualspeed_model::{
        CustomProjectorConfig, CustomVisionConfig, DualSpeedObjective, Init, Kept, Llava,
        LlavaConfig, Losses, ModelError, Needs, Objective, ObjectiveInputs, ObjectiveSpec,
        ParamMap, Parts, ProjectorFactory, PruneContext, PruneError, Pruner, PrunerSpec, Registry,
        TowerFactory, View, VisionFeatures, VisionGeometry, VisualTokens,
    };
    pub use dualspeed_ops::{AutodiffBackend, Backend};
    pub use dualspeed_train::{
        EvalView, FeatureCache, MetricRegistry, Mode, ModeSchedule, PastStep, RecordMetric,
        ScheduleRegistry, ScheduleSpec, StepRecord, TrainConfig, TrainJob, evaluate, train,
    };
}
