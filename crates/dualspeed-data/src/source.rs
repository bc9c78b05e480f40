//! Data sets: the trait, examples held in memory, and data sets by name.

mod memory;
mod record;
mod registry;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use memory::MemorySource;
pub use record::RecordKey;
pub use registry::{SourceRegistry, SourceSpec, source_registry};

use crate::error::DataError;
use crate::example::Example;
use crate::text::{Template, TextTokenizer};

/// Whether an example carries images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Modality {
    /// At least one image.
    Image,
    /// Text only.
    Text,
}

/// A data set: examples by index, and what a sampler needs to know without making them.
pub trait ExampleSource: Send + Sync {
    /// Number of examples.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes example `index`; the same index always gives the same example.
    ///
    /// # Errors
    /// What is wrong with the record or its images, or an index out of range.
    fn get(&self, index: usize) -> Result<Example, DataError>;

    /// Whether example `index` carries images. Must be cheap; `index < len()`.
    fn modality(&self, index: usize) -> Modality;

    /// Roughly how long example `index` is, in any unit that sorts alike. Must be cheap; `index < len()`.
    fn length_hint(&self, index: usize) -> usize;

    /// Identifies the content: a resumed run refuses a source with another fingerprint, unless [`record`](Self::record)
    /// tells that the records are the same.
    fn fingerprint(&self) -> String;

    /// Identifies the record that example `index` is made of, so that a resumed run can tell which records were removed or
    /// corrected; `None` where a data set does not tell. Must be cheap.
    fn record(&self, _index: usize) -> Option<RecordKey> {
        None
    }

    /// The tokenizer of its ids, for a model that was trained on it; `None` where the configuration has to name one.
    fn tokenizer(&self) -> Option<Arc<TextTokenizer>> {
        None
    }

    /// How its conversations are written out, for a model that was trained on it.
    fn template(&self) -> Template {
        Template::default()
    }

    /// Finds what `get` would fail on, in order; may take as long as reading everything.
    fn verify(&self) -> Vec<DataError> {
        Vec::new()
    }
}

impl<S: ExampleSource + ?Sized> ExampleSource for Arc<S> {
    fn len(&self) -> usize {
        (**self).len()
    }
    fn get(&self, index: usize) -> Result<Example, DataError> {
        (**self).get(index)
    }
    fn modality(&self, index: usize) -> Modality {
        (**self).modality(index)
    }
    fn length_hint(&self, index: usize) -> usize {
        (**self).length_hint(index)
    }
    fn fingerprint(&self) -> String {
        (**self).fingerprint()
    }
    fn record(&self, index: usize) -> Option<RecordKey> {
        (**self).record(index)
    }
    fn tokenizer(&self) -> Option<Arc<TextTokenizer>> {
        (**self).tokenizer()
    }
    fn template(&self) -> Template {
        (**self).template()
    }
    fn verify(&self) -> Vec<DataError> {
        (**self).verify()
    }
}

/// Lets Burn's own data loaders read any source. They know no errors: an example that cannot be made is not there.
impl burn_dataset::Dataset<Example> for Arc<dyn ExampleSource> {
    fn get(&self, index: usize) -> Option<Example> {
        ExampleSource::get(self, index).ok()
    }

    fn len(&self) -> usize {
        ExampleSource::len(self)
    }
}
