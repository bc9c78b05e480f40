//! What can go wrong when visual tokens are pruned.

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
    /// Features that are no numbers.
    #[error(
        "{pruner}: {feature} of image {image} of sample {sample} has NaN or infinite values; look at \
         that image, or at the step before for a loss that exploded"
    )]
    NotFinite {
        /// Name of the pruner.
        pruner: String,
        /// Name of the feature.
        feature: String,
        /// Id of the sample.
        sample: String,
        /// Index of the image in its sample.
        image: usize,
    },
    /// A needed feature is not there.
    #[error(
        "{pruner} needs {feature}, which these features lack; compute them with its needs() (text comes \
         from a text tower, question from the language model)"
    )]
    MissingFeature {
        /// Name of the pruner.
        pruner: String,
        /// Name of the feature.
        feature: String,
    },
    /// A pruner that reads features of a tower, behind a projector that changes the number of tokens.
    #[error(
        "{pruner} reads {features} features of the vision tower for each image, but the projector makes {tokens} tokens \
         of them; use a pruner that reads projected tokens only, or a projector that keeps the count"
    )]
    TokenCount {
        /// Name of the pruner.
        pruner: String,
        /// Features per tile.
        features: usize,
        /// Tokens per tile.
        tokens: usize,
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
    /// A decoder too shallow to drop anything inside it.
    #[error(
        "{pruner} drops nothing in a decoder of {blocks} block(s); use more blocks, or a pruner that \
         works before the decoder"
    )]
    NoDrop {
        /// Name of the pruner.
        pruner: String,
        /// Blocks of the decoder.
        blocks: usize,
    },
    /// Pooling needs whole images.
    #[error(
        "{pruner} pools a square grid of patches and cannot work on tiles with padding or on joined \
         tiles; use scope = \"tile\" on images without padding, or another pruner"
    )]
    NotAGrid {
        /// Name of the pruner.
        pruner: String,
    },
    /// Tiles, mask and images do not fit together.
    #[error("the tiles of the visual tokens do not fit: {problem}")]
    Tiles {
        /// What does not fit.
        problem: String,
    },
    /// A question could not be put into the space shared with text.
    #[error("text tower: {problem}")]
    Text {
        /// What went wrong.
        problem: String,
    },
    /// An option the method does not have.
    #[error("{pruner} has no option `{option}`{}; {}", hint(.nearest), known_options(.known))]
    UnknownOption {
        /// Name of the pruner.
        pruner: String,
        /// The option asked for.
        option: String,
        /// The most similar option it has.
        nearest: Option<String>,
        /// All options it has.
        known: Vec<String>,
    },
    /// An option with a value it cannot take.
    #[error("{pruner}: option {option} = {value} cannot be used: expected {expected}")]
    BadOption {
        /// Name of the pruner.
        pruner: String,
        /// The option.
        option: String,
        /// The value given.
        value: String,
        /// What it takes, in words.
        expected: &'static str,
    },
    /// `compat = "official"` for a method whose published procedure cannot be reproduced here.
    #[error("{pruner} has no official variant: {reason}; leave compat out")]
    NoOfficial {
        /// Name of the pruner.
        pruner: String,
        /// Why not.
        reason: &'static str,
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

fn known_options(known: &[String]) -> String {
    match known.is_empty() {
        true => "it has none".to_owned(),
        false => format!("it has: {}", known.join(", ")),
    }
}
