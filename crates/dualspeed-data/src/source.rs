//! Data sets: the trait, examples held in memory, and data sets by name.

mod memory;
mod notes;
mod record;
mod registry;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use memory::MemorySource;
pub use notes::FileNotes;
pub use record::RecordKey;
pub use registry::{SourceRegistry, SourceSpec, source_registry};

use crate::error::{DataError, RecordProblem};
use crate::example::Example;
use crate::picture::DecodedImages;
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

/// What an example has at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LengthBound {
    /// Token ids at most, an image as one.
    pub ids: usize,
    /// Images.
    pub images: usize,
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

    /// Names example `index` in logs; its number where it has no name.
    fn id(&self, index: usize) -> String {
        index.to_string()
    }

    /// Makes example `index` without pixels: ids, labels, and as many empty images as it has tiles. A source that
    /// overrides this lets data be checked without decoding a picture.
    ///
    /// # Errors
    /// As [`get`](Self::get), as far as it shows without pixels.
    fn outline(&self, index: usize) -> Result<Example, DataError> {
        self.get(index).map(|mut example| {
            example.drop_pixels();
            example
        })
    }

    /// An upper bound of the length of example `index` that costs nothing to tell; `None` if there is none.
    fn length_bound(&self, _index: usize) -> Option<LengthBound> {
        None
    }

    /// Finds what is wrong with the images of example `index`; `seen` remembers files that were decoded before.
    fn check_images(&self, index: usize, _seen: &DecodedImages) -> Vec<DataError> {
        self.get(index).err().into_iter().collect()
    }

    /// Digest of the content of example `index`, its id left out, equal for equal content; `None` if there is none.
    fn digest(&self, _index: usize) -> Option<u64> {
        None
    }

    /// What a reader should hear of the file that the examples come from, though it is no mistake.
    fn notes(&self) -> Option<&FileNotes> {
        None
    }

    /// An error about example `index`, with where it lies.
    fn locate(&self, index: usize, problem: RecordProblem) -> DataError {
        DataError::Example { index, id: self.id(index), problem: Box::new(problem) }
    }

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
    fn id(&self, index: usize) -> String {
        (**self).id(index)
    }
    fn outline(&self, index: usize) -> Result<Example, DataError> {
        (**self).outline(index)
    }
    fn length_bound(&self, index: usize) -> Option<LengthBound> {
        (**self).length_bound(index)
    }
    fn check_images(&self, index: usize, seen: &DecodedImages) -> Vec<DataError> {
        (**self).check_images(index, seen)
    }
    fn digest(&self, index: usize) -> Option<u64> {
        (**self).digest(index)
    }
    fn notes(&self) -> Option<&FileNotes> {
        (**self).notes()
    }
    fn locate(&self, index: usize, problem: RecordProblem) -> DataError {
        (**self).locate(index, problem)
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
