//! Fast-slow training of multimodal LLMs with visual token pruning, on Burn.
//!
//! This crate is the one import ([`prelude`]), the backend features, the `dualspeed` program ([`cli`]),
//! the quickstart, and reports. The parts live in crates of their own:
//!
//! | crate | concept |
//! |---|---|
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
//! | [`clip_words`] | CLIP's text tower and projection for text-guided pruners |
//! | [`extensions`] | pruners of another crate, known to every command |
//! | [`tower`] | the embedded vision tower and how it is trained |
//! | [`lab`] | data sets, tower features and one training-and-evaluation, as quickstart and ablations need it |
//! | [`run`] | run directories: what a run started from, and the model it ended with |
//! | [`speaker`] | a model with tokenizer, template and image processor, from a run or a checkpoint |
//! | [`quickstart`] | three models, one table, one report |
//! | [`report`] | plots, pages, pictures |

pub use dualspeed_data as data;
pub use dualspeed_model as model;
pub use dualspeed_ops as ops;
pub use dualspeed_train as train;

pub mod assets;
pub mod backend;
pub mod bench;
pub mod cli;
pub mod clip_words;
mod commands;
pub mod extensions;
pub mod lab;
pub mod quickstart;
pub mod report;
pub mod run;
pub mod speaker;
pub mod tower;

/// What most programs import.
pub mod prelude {
    pub use crate::extensions::Extensions;
    pub use burn::tensor::{Int, Tensor};
    pub use dualspeed_data::{Example, ExampleSource, HostBatch, SceneConfig, SceneSource};
    pub use dualspeed_model::pruner::top_indices;
    pub use dualspeed_model::{
        Kept, Llava, LlavaConfig, Needs, PruneContext, PruneError, Pruner, PrunerSpec, Registry,
        View, VisualTokens,
    };
    pub use dualspeed_ops::{AutodiffBackend, Backend};
    pub use dualspeed_train::{
        EvalView, FeatureCache, Mode, ModeSchedule, TrainConfig, TrainJob, evaluate, train,
    };
}
