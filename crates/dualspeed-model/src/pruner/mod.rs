//! Visual token pruners: the trait users implement, and the base that owns what every pruner would
//! otherwise get subtly wrong (counts, order, ties, gradients, errors).

mod avgpool2d;
mod base;
mod divprune;
mod fastervlm;
mod none;
mod random;
mod registry;
mod topk;
mod uniform;

use std::fmt::Debug;

use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

pub use avgpool2d::AvgPool2d;
pub use base::{KeptTokens, Rounding, keep_count, select};
pub use divprune::DivPrune;
pub use fastervlm::FasterVlm;
pub use none::NoPruning;
pub use random::RandomPruner;
pub use registry::{PrunerFactory, PrunerSpec, Registry};
pub use topk::top_indices;
pub use uniform::UniformPruner;

use crate::vision::{Needs, VisionFeatures};

/// Visual tokens of a batch of images, before pruning.
#[derive(Clone, Debug)]
pub struct VisualTokens<B: Backend> {
    /// Features in the language model's embedding space, `[images, n, d]`, with gradient.
    pub projected: Tensor<B, 3>,
    /// The vision tower's output, without gradient.
    pub features: VisionFeatures<B>,
}

impl<B: Backend> VisualTokens<B> {
    /// Number of images.
    pub fn images(&self) -> usize {
        self.projected.dims()[0]
    }

    /// Tokens per image.
    pub fn tokens(&self) -> usize {
        self.projected.dims()[1]
    }

    /// Cut off from any gradient.
    pub fn detach(&self) -> Self {
        Self {
            projected: self.projected.clone().detach(),
            features: self.features.clone().detach(),
        }
    }
}

/// Where a pruner's decision is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
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
    /// New tokens as weighted sums of the old: `[images, keep, n]`.
    Merge(Tensor<B, 3>),
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
}

/// A visual token pruner.
///
/// Implementors decide *which*; [`select`] sees to the rest: `visual` arrives in f32 and without
/// gradient, features named in [`Pruner::needs`] are present, `1 <= keep < n`.
pub trait Pruner<B: Backend>: Debug + Send + Sync {
    /// The name in configurations and tables.
    fn name(&self) -> &str;

    /// Which features beyond hidden states and projected tokens are read.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// Where the decision is applied.
    fn stage(&self) -> Stage {
        Stage::PostProjector
    }

    /// Whether this pruner may keep every token; only controls do.
    fn keeps_all(&self) -> bool {
        false
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

/// A pruner that cannot do what it is asked, or did not.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PruneError {
    /// Nothing would be kept.
    #[error("{pruner}: keep = 0; keep at least one of the {tokens} visual tokens")]
    KeepZero {
        /// Name of the pruner.
        pruner: String,
        /// Tokens per image.
        tokens: usize,
    },
    /// More would be kept than there are.
    #[error("{pruner}: keep = {keep} but an image has only {tokens} visual tokens")]
    KeepTooMany {
        /// Name of the pruner.
        pruner: String,
        /// Tokens asked for.
        keep: usize,
        /// Tokens per image.
        tokens: usize,
    },
    /// All would be kept: a pruned run that prunes nothing is a mistake.
    #[error(
        "{pruner}: keep = {keep} of {tokens} prunes nothing; lower keep, or use View::Full or \
         the pruner `none`"
    )]
    NothingPruned {
        /// Name of the pruner.
        pruner: String,
        /// Tokens asked for.
        keep: usize,
        /// Tokens per image.
        tokens: usize,
    },
    /// A control that keeps everything was asked to keep less.
    #[error(
        "{pruner} keeps all {tokens} visual tokens and cannot keep {keep}; pick another pruner"
    )]
    CannotPrune {
        /// Name of the pruner.
        pruner: String,
        /// Tokens asked for.
        keep: usize,
        /// Tokens per image.
        tokens: usize,
    },
    /// A needed feature is not there.
    #[error("{pruner} needs {feature}, which these features lack; compute them with its needs()")]
    MissingFeature {
        /// Name of the pruner.
        pruner: String,
        /// Name of the feature.
        feature: &'static str,
    },
    /// The decision has the wrong shape.
    #[error("{pruner} returned shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the pruner.
        pruner: String,
        /// Shape returned.
        found: Vec<usize>,
        /// Shape wanted.
        expected: Vec<usize>,
    },
    /// The decision names a token twice or one that does not exist.
    #[error(
        "{pruner} picked {picks:?} of {tokens} tokens for image {image}: indices must be unique \
         and in range; are the features NaN?"
    )]
    Picks {
        /// Name of the pruner.
        pruner: String,
        /// Index of the image.
        image: usize,
        /// The indices returned.
        picks: Vec<i64>,
        /// Tokens per image.
        tokens: usize,
    },
    /// The context does not name every image.
    #[error("{pruner}: the context names {named} image(s) but there are {images}")]
    Context {
        /// Name of the pruner.
        pruner: String,
        /// Images in the context.
        named: usize,
        /// Images in the batch.
        images: usize,
    },
    /// Pooling cannot make that many tokens.
    #[error(
        "{pruner} cannot make {keep} cells of {tokens} tokens; the nearest count it can make is \
         {nearest}"
    )]
    NoGrid {
        /// Name of the pruner.
        pruner: String,
        /// Tokens asked for.
        keep: usize,
        /// Tokens per image.
        tokens: usize,
        /// The nearest feasible count.
        nearest: usize,
    },
    /// No pruner of that name.
    #[error("unknown pruner `{name}`{}; known: {}", hint(.nearest), .known.join(", "))]
    Unknown {
        /// The name asked for.
        name: String,
        /// The most similar known name.
        nearest: Option<String>,
        /// All known names.
        known: Vec<String>,
    },
}

fn hint(nearest: &Option<String>) -> String {
    nearest.as_ref().map_or_else(String::new, |name| format!(" (did you mean `{name}`?)"))
}
