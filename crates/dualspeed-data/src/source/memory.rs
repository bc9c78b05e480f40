//! Examples held in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::{ExampleSource, Modality};
use crate::error::DataError;
use crate::example::Example;
use crate::text::{Template, TextTokenizer};

/// Examples made once and kept, for data sets that are small or whose visual features are cached.
#[derive(Clone, Debug)]
pub struct MemorySource {
    examples: Vec<Example>,
    /// What was wrong with examples that could not be made.
    missing: BTreeMap<usize, Arc<DataError>>,
    fingerprint: String,
    tokenizer: Option<Arc<TextTokenizer>>,
    template: Template,
}

impl MemorySource {
    /// Wraps examples; `fingerprint` identifies their content.
    pub fn new(examples: Vec<Example>, fingerprint: impl Into<String>) -> Self {
        let (tokenizer, template) = (None, Template::default());
        let missing = BTreeMap::new();
        Self { examples, missing, fingerprint: fingerprint.into(), tokenizer, template }
    }

    /// The same, in which the examples of some indices cannot be used; what stands in their place in the list is of no
    /// account but for its id.
    pub fn with_missing(mut self, missing: BTreeMap<usize, Arc<DataError>>) -> Self {
        self.missing = missing;
        self
    }

    /// The same, telling what its conversations were written out and encoded with.
    pub fn with_text(mut self, template: Template, tokenizer: Arc<TextTokenizer>) -> Self {
        (self.template, self.tokenizer) = (template, Some(tokenizer));
        self
    }

    /// Makes all examples of `source`, in parallel. With `keep_pixels = false` images have key and size only: enough
    /// for training on cached features, at a few hundred bytes an example.
    ///
    /// # Errors
    /// The first error of `source`.
    pub fn collect(source: &dyn ExampleSource, keep_pixels: bool) -> Result<Self, DataError> {
        let examples = (0..source.len())
            .into_par_iter()
            .map(|index| {
                let mut example = source.get(index)?;
                if !keep_pixels {
                    example.drop_pixels();
                }
                Ok(example)
            })
            .collect::<Result<Vec<_>, DataError>>()?;
        let (tokenizer, template) = (source.tokenizer(), source.template());
        Ok(Self { tokenizer, template, ..Self::new(examples, source.fingerprint()) })
    }

    /// The examples.
    pub fn examples(&self) -> &[Example] {
        &self.examples
    }
}

impl ExampleSource for MemorySource {
    fn len(&self) -> usize {
        self.examples.len()
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        if let Some(error) = self.missing.get(&index) {
            return Err(DataError::Shared(error.clone()));
        }
        let out_of_range = DataError::OutOfRange { index, len: self.examples.len() };
        self.examples.get(index).cloned().ok_or(out_of_range)
    }

    fn modality(&self, index: usize) -> Modality {
        match self.examples.get(index) {
            Some(example) if !example.images.is_empty() => Modality::Image,
            _ => Modality::Text,
        }
    }

    fn length_hint(&self, index: usize) -> usize {
        self.examples.get(index).map_or(0, |example| example.input_ids.len())
    }

    fn id(&self, index: usize) -> String {
        self.examples.get(index).map_or_else(|| index.to_string(), |example| example.id.clone())
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn tokenizer(&self) -> Option<Arc<TextTokenizer>> {
        self.tokenizer.clone()
    }

    fn template(&self) -> Template {
        self.template.clone()
    }
}
