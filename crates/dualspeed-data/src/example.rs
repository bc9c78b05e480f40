//! What every data set yields, and the trait of data sets.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::anyres::Tiling;
use crate::error::DataError;

/// One training example on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Example {
    /// Names the example in logs and errors.
    pub id: String,
    /// Token ids, with [`IMAGE_TOKEN_INDEX`](crate::IMAGE_TOKEN_INDEX) once per image.
    pub input_ids: Vec<i64>,
    /// As long as `input_ids`: the id itself where it is supervised, else [`IGNORE_INDEX`](crate::IGNORE_INDEX).
    pub labels: Vec<i64>,
    /// In the order of their placeholders; of images of several tiles, all tiles.
    pub images: Vec<Arc<HostImage>>,
    /// How the tiles of each image lie; empty where every image is one tile.
    pub tilings: Vec<Tiling>,
    /// Questions whose answers can be scored; may be empty.
    pub questions: Vec<QuestionMeta>,
    /// What the human says first, image placeholders taken out: what text-guided pruners go by.
    pub prompt: String,
}

impl Example {
    /// Images, however many tiles they have.
    pub fn image_count(&self) -> usize {
        if self.tilings.is_empty() { self.images.len() } else { self.tilings.len() }
    }

    /// Visual tokens without pruning, where a tile has `n`.
    pub fn visual_tokens(&self, n: usize) -> usize {
        match self.tilings.is_empty() {
            true => self.images.len() * n,
            false => self.tilings.iter().map(Tiling::tokens).sum(),
        }
    }
}

/// A preprocessed image.
#[derive(Clone, PartialEq)]
pub struct HostImage {
    /// Hash of the processed pixels and the normalisation: equal pixels have equal keys. Feature caches key on it.
    pub key: u64,
    /// Side of the square, in pixels.
    pub size: usize,
    /// `[3, size, size]` row-major, normalised. Empty where the pixels were dropped on purpose
    /// ([`MemorySource`](crate::MemorySource)).
    pub pixels: Vec<f32>,
}

impl fmt::Debug for HostImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "HostImage {{ key: {:016x}, size: {}, {} values }}",
            self.key,
            self.size,
            self.pixels.len()
        )
    }
}

/// A question of an example whose answer can be scored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuestionMeta {
    /// What is asked.
    pub kind: QuestionKind,
    /// Index in `input_ids` of the answer's first token; `labels[answer_position]` is that token.
    pub answer_position: usize,
    /// The answer as text.
    pub answer: String,
}

/// What a question about a scene asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QuestionKind {
    /// Is there a X? yes / no
    Presence,
    /// How many things are there? two .. five
    Count,
    /// What is in this cell of the grid? a name / nothing
    Position,
    /// What is next to X on its left? a name / nothing
    LeftOf,
    /// What is next to X on its right? a name / nothing
    RightOf,
    /// Which colour is behind X?
    Colour,
    /// Which colour is at this cell of the grid? Asked of cells with an object only
    ColourAt,
    /// Where is X? the cell's name
    Where,
}

impl QuestionKind {
    /// All kinds, in a fixed order.
    pub const ALL: [Self; 8] = [
        Self::Presence,
        Self::Count,
        Self::Position,
        Self::LeftOf,
        Self::RightOf,
        Self::Colour,
        Self::ColourAt,
        Self::Where,
    ];

    /// The kind's name in configurations and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Presence => "presence",
            Self::Count => "count",
            Self::Position => "position",
            Self::LeftOf => "left_of",
            Self::RightOf => "right_of",
            Self::Colour => "colour",
            Self::ColourAt => "colour_at",
            Self::Where => "where",
        }
    }
}

impl fmt::Display for QuestionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

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

    /// Identifies the content: a resumed run refuses a source with another fingerprint.
    fn fingerprint(&self) -> String;

    /// What `get` would fail on, in order, where that can fail at all; may take as long as reading everything.
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
    fn verify(&self) -> Vec<DataError> {
        (**self).verify()
    }
}
