//! Data sets by name: how a crate outside this one adds its own.

use std::sync::Arc;

use dualspeed_core::{Options, Registry};

use super::ExampleSource;
use crate::picture::{ImageProcessor, TileConfig};
use crate::text::TextTokenizer;

/// Makers of data sets by name. A value: clone it and add to it with `with(name, maker)`.
///
/// ```
/// use dualspeed_data::MemorySource;
/// use dualspeed_data::source::source_registry;
///
/// let sources = source_registry().with("nothing", |spec| {
///     spec.options.expect(&[])?;
///     Ok(Box::new(MemorySource::new(Vec::new(), "nothing")))
/// });
/// assert_eq!(sources.names(), ["nothing"]);
/// ```
pub type SourceRegistry = Registry<SourceSpec, dyn ExampleSource>;

/// Makes a registry without any data set. Generated scenes and LLaVA's JSON need none: configurations have sections of
/// their own for them.
pub fn source_registry() -> SourceRegistry {
    Registry::new("data source")
}

/// Specification that a data set is made from: the configuration's words, and what the model asks of its data.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// The data set's own options.
    pub options: Options,
    /// Number of examples asked for, where the data set can have any.
    pub samples: Option<usize>,
    /// Seed of the run, for data sets that are drawn at random.
    pub seed: u64,
    /// How images become pixels of the model's vision tower.
    pub processor: ImageProcessor,
    /// Which tiles images are cut into, where the model takes images of any resolution.
    pub tiles: Option<TileConfig>,
    /// The language model's tokenizer; `None` where it is trained from scratch and takes the data set's own, which
    /// [`ExampleSource::tokenizer`] then gives.
    pub tokenizer: Option<Arc<TextTokenizer>>,
}
