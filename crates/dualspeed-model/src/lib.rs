//! The model of `dualspeed`: a LLaVA-family vision-language model with visual token pruning, the
//! mode isolator of DualSpeed, low-rank adapters, and a library of pruners behind one trait.
//!
//! Data flows one way: [`vision`] tower -> [`pruner`] -> [`projector`] -> isolator -> [`layout`] -> [`language`] model ->
//! [`objective`]; [`Llava::forward`] is the whole of it.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | sizes and kinds, as serde data with `validate()` |
//! | [`nn`] | layers, adapters, initial weights, freezing, parameter paths |
//! | [`vision`] | what an encoder is; CLIP's ViT, EfficientNet; features by name |
//! | [`projector`] | from vision features to token embeddings |
//! | [`pruner`] | the trait, its base, the registry, the pruners |
//! | [`layout`] | text and visual tokens as slots, padded into a batch |
//! | [`language`] | the decoder and text generation |
//! | [`vlm`] | the whole model: views, inputs, the forward, groups of parameters, memory |
//! | [`objective`] | losses as named sums |
//! | [`formats`] | checkpoints in and out |

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod config;
mod error;
pub mod formats;
pub mod language;
pub mod layout;
pub mod nn;
pub mod objective;
pub mod projector;
pub mod pruner;
pub mod vision;
pub mod vlm;

pub use config::{
    AnyresConfig, Compat, CustomProjectorConfig, CustomVisionConfig, DecoderConfig, Dtype,
    EfficientNetConfig, HiddenAct, LlavaConfig, LoraConfig, LoraTarget, ModelConfigError,
    NewlinePolicy, PositionPolicy, ProjectorType, RopeScaling, SelectFeature, VisionConfig,
    VisionGeometry, VitConfig,
};
pub use dualspeed_data::{IGNORE_INDEX, IMAGE_TOKEN_INDEX, Tiling};
pub use error::ModelError;
pub use formats::{Precision, export, import, store};
pub use language::{Decoder, GenerateOptions, Generated};
pub use layout::{LayoutError, Place, Position, TextBatch};
pub use nn::params::{ParamInfo, ParamPath};
pub use nn::{Freezable, Init, ParamMap};
pub use objective::{DualSpeedObjective, Losses, Objective, ObjectiveInputs, ObjectiveSpec};
pub use projector::{MlpProjector, Projector, ProjectorFactory};
pub use pruner::{
    Kept, LayerDrop, NameTower, PruneContext, PruneError, PruneStage, Pruner, PrunerSpec,
    QuestionTokens, Registry, Rounding, Selection, TextFeatures, TextTower, Tiles, VisualTokens,
    keep_count, select,
};
pub use vision::{ClipVit, Needs, Tower, TowerFactory, VisionFeatures, VisionTower};
pub use vlm::{
    Forward, Inputs, Llava, ParamGroup, Parts, Recompute, StepContext, Trainable, View, Wanted,
    assemble, groups, memory, require_dtype,
};
