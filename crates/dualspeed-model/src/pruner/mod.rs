//! Visual token pruners: the trait users implement, and the base that owns what every pruner would
//! otherwise get subtly wrong (counts, order, ties, masks, gradients, errors).
//!
//! | module | concept |
//! |---|---|
//! | this one | [`Pruner`], what it decides ([`Kept`]) and what it may depend on |
//! | `tokens`, `selection` | [`VisualTokens`] in, [`Selection`] out |
//! | `base`, `decide`, `tiles` | [`select`]: checks, f32, order; masks and tiles of one image |
//! | [`text_tower`] | questions in the space shared with text |
//! | `spec`, `registry` | pruners by name, with options |
//! | `topk`, `rows` | ranks with a fixed tie rule, and other row arithmetic |
//! | `layer_drop` | the second extension point: dropping tokens between decoder blocks |
//! | `error` | [`PruneError`] |
//!
//! | pruner | reads | gives |
//! |---|---|---|
//! | [`DivPrune`] | projected | selection |
//! | [`CdPruner`] | projected, patches and question in the text space | selection |
//! | [`FasterVlm`] | class attention | selection |
//! | [`VisPruner`] | class attention, hidden | selection |
//! | [`VisionZip`] | class attention, keys | merge before the projector |
//! | [`PruMerge`] (`prumerge`, `prumerge+`) | class attention, keys | merge before the projector |
//! | [`HoloV`] | class attention, projected | selection |
//! | [`Dart`] | projected, question embeddings | selection |
//! | [`Trim`] | patches and question in the text space | merge before the projector |
//! | [`PruneSid`] | class attention, hidden | selection |
//! | [`PyramidDrop`] | the decoder's own attention | drops inside the decoder |
//! | [`RandomPruner`], [`UniformPruner`], [`AvgPool2d`], [`NoPruning`] | - | controls |

mod avgpool2d;
mod base;
mod cdpruner;
mod dart;
mod decide;
mod divprune;
mod eigen;
mod error;
mod fastervlm;
mod guided;
mod holov;
mod indices;
mod layer_drop;
mod none;
mod outliers;
mod prumerge;
mod prunesid;
mod pyramiddrop;
mod random;
mod registry;
mod rows;
mod selection;
mod spec;
pub mod text_tower;
mod tiles;
mod tokens;
mod topk;
mod trim;
mod uniform;
mod visionzip;
mod vispruner;

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

pub use avgpool2d::AvgPool2d;
pub use base::{contributions, select, select_all};
pub use cdpruner::CdPruner;
pub use dart::Dart;
pub use divprune::DivPrune;
pub use dualspeed_core::OptionValue;
pub use error::PruneError;
pub use fastervlm::FasterVlm;
pub use holov::HoloV;
pub(crate) use layer_drop::uniform_scores;
pub use layer_drop::{DropPlan, DropPositions, DropScore, LayerDrop};
pub use none::NoPruning;
pub use prumerge::PruMerge;
pub use prunesid::PruneSid;
pub use pyramiddrop::PyramidDrop;
pub use random::RandomPruner;
pub use registry::{PrunerFactory, PrunerInfo, Registry};
pub use selection::Selection;
pub use spec::{PrunerSpec, Rounding, Scope, keep_count};
pub use text_tower::{NameTower, TextFeatures, TextTower};
pub use tokens::{QuestionTokens, Tiles, VisualTokens};
pub use topk::{ranks, top_indices};
pub use trim::Trim;
pub use uniform::UniformPruner;
pub use visionzip::VisionZip;
pub use vispruner::VisPruner;

pub use crate::config::Compat;
use crate::vision::features::Needs;

/// What a pruner's decision is applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PruneStage {
    /// To the vision tower's output, which is then projected.
    PreProjector,
    /// To the projected tokens.
    PostProjector,
}

/// What a pruner decided.
#[derive(Clone, Debug)]
pub enum Kept<B: Backend> {
    /// Indices of the tokens to keep, `[images, keep]`, in any order, unique in each row.
    Select(Tensor<B, 2, Int>),
    /// New tokens as weighted sums of the old: `[images, keep, n]`; `[images, keep, n + 1]` where the
    /// class token is the last of the old ones (before the projector, where `cls_hidden` is needed).
    Merge(Tensor<B, 3>),
    /// As [`Kept::Merge`] for a method whose count depends on the data.
    Ragged {
        /// `[images, most, n]` or `[images, most, n + 1]`; rows from an image's length on are ignored.
        weights: Tensor<B, 3>,
        /// Tokens of each image, 1 or more.
        lengths: Vec<usize>,
    },
}

/// What a pruner may depend on besides the tokens.
#[derive(Clone, Debug, Default)]
pub struct PruneContext {
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// For each image the id of its sample and its index among the sample's images.
    pub images: Vec<(String, usize)>,
    /// For each image the question about it (the first human turn), for text-guided pruners; may be
    /// left empty for the others.
    pub prompts: Vec<String>,
    /// Whether features are read back and checked to be numbers.
    pub verify: bool,
}

/// A visual token pruner.
///
/// Implementors decide *which*; [`select`] sees to the rest: `visual` arrives in f32 (see [`Pruner::wants_f32`]) and without
/// gradient, without padding, one entry per image (or tile, see [`Scope`]); features named in
/// [`Pruner::needs`] are present, `1 <= keep < n`.
pub trait Pruner<B: Backend>: Debug + Send + Sync {
    /// The name in configurations and tables.
    fn name(&self) -> &str;

    /// Which features beyond hidden states and projected tokens are read.
    fn needs(&self) -> Needs {
        Needs::none()
    }

    /// Where the decision is applied.
    fn stage(&self) -> PruneStage {
        PruneStage::PostProjector
    }

    /// What one decision spans where an image has several tiles.
    fn scope(&self) -> Scope {
        Scope::Tile
    }

    /// Whether features arrive in f32, whatever the activations are; a pruner that leaves the rounding to operations which
    /// widen by themselves saves the copy.
    fn wants_f32(&self) -> bool {
        true
    }

    /// Whether this pruner may keep every token; only controls do.
    fn keeps_all(&self) -> bool {
        false
    }

    /// For pruners that work inside the decoder: what is dropped there so that `keep` visual tokens of
    /// each image are left at the end. [`Pruner::prune`] is then not called.
    fn layer_drop(&self, keep: usize) -> Option<Arc<dyn LayerDrop>> {
        let _ = keep;
        None
    }

    /// Decides which `keep` of the `n` tokens of each image stay.
    ///
    /// # Errors
    /// [`PruneError`] if this pruner cannot keep that many tokens of these.
    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError>;
}
