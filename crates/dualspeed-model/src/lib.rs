//! The model of `dualspeed`: a LLaVA-family vision-language model with visual token pruning, the
//! mode isolator of DualSpeed, low-rank adapters, and a library of pruners behind one trait.
//!
//! Data flows one way: [`vision`] tower -> [`projector`] -> [`pruner`] -> isolator -> [`splice`] ->
//! [`llama`] -> [`losses`]; [`Llava::forward`] is the whole of it.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | sizes, as serde data with `validate()` |
//! | [`vision`], [`vit`] | what an encoder is; CLIP's ViT |
//! | [`clip_text`] | CLIP's text tower |
//! | [`efficientnet`] | a pretrained convolutional tower |
//! | [`towers`] | any of them, as one module |
//! | [`tower`] | training heads and losses of the ViT |
//! | [`text_tower`] | questions in the space shared with text |
//! | [`projector`] | from vision features to token embeddings |
//! | [`pruner`] | the trait, its base, the registry, the pruners |
//! | [`anyres`] | where the tokens of an image of several tiles stand |
//! | [`splice`] | text and visual tokens into one batch |
//! | [`llama`], [`lora`] | the decoder and its adapters |
//! | [`llava`], [`forward`] | the whole model; views, contexts, results |
//! | [`mod@assemble`] | a new model from two halves |
//! | [`losses`] | fast and slow losses as sums and counts |
//! | [`generate`] | text generation with a key-value cache |
//! | [`freeze`], [`stages`] | what is trained and what is not |
//! | [`init`], [`rng`] | initial weights and randomness as pure functions |
//! | [`memory`] | an estimate of a training step, and what is recomputed to fit |
//! | [`store`] | safetensors in and out |
//! | [`export`] | the same formats, written |
//! | [`import`] | checkpoints of transformers, LLaVA, peft, PyTorch and llama.cpp |

pub mod anyres;
pub mod assemble;
pub mod clip_text;
pub mod config;
pub mod efficientnet;
mod error;
pub mod export;
pub mod forward;
pub mod freeze;
pub mod generate;
pub mod import;
pub mod init;
pub mod layers;
pub mod llama;
pub mod llava;
pub mod lora;
pub mod losses;
pub mod memory;
pub mod projector;
pub mod pruner;
pub mod rng;
pub mod splice;
pub mod stages;
pub mod store;
pub mod text_tower;
pub mod tower;
pub mod towers;
pub mod vision;
pub mod vit;
mod walk;

pub use anyres::{Slot, TileLayout};
pub use assemble::assemble;
pub use config::{
    AnyresConfig, Dtype, EfficientNetConfig, HiddenAct, LlamaConfig, LlavaConfig, LoraConfig,
    LoraTarget, NewlinePolicy, PositionPolicy, ProjectorType, RopeScaling, SelectFeature,
    VisionConfig, VitConfig,
};
pub use error::{ConfigError, ModelError};
pub use forward::{Forward, StepContext, View};
pub use freeze::{Freezable, Frozen};
pub use generate::{GenerateOptions, Generated};
pub use llama::Llama;
pub use llava::{Llava, VisionInput};
pub use losses::{LossSums, fast_loss, slow_loss};
pub use memory::Recompute;
pub use projector::MlpProjector;
pub use pruner::{
    Kept, KeptTokens, LayerDrop, PruneContext, PruneError, Pruner, PrunerSpec, QuestionTokens,
    Registry, Rounding, Stage, Tiles, VisualTokens, keep_count, select,
};
pub use splice::{IGNORE_INDEX, IMAGE_TOKEN_INDEX, ImageRows, SpliceError, SplicePlan, TextBatch};
pub use stages::{ParamGroup, ParamInfo, Trainable};
pub use store::Precision;
pub use text_tower::{NameTower, TextFeatures, TextTower};
pub use tower::{TowerConfig, TowerLoss, TowerLossWeights, TowerModel, TowerTargets};
pub use towers::Tower;
pub use vision::{Geometry, Needs, VisionFeatures, VisionTower};
pub use vit::Vit;
