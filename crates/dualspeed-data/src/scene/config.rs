//! What scenes look like and what is asked about them.

use serde::{Deserialize, Serialize};

use super::atlas::{Atlas, Vendor};
use crate::error::{DataError, SceneConfigError};
use crate::picture::{FitMode, ImageProcessor};
use crate::question::QuestionKind;
use crate::text::Template;

/// A part of the data. Scenes of different splits come from unrelated random streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// For training.
    #[default]
    Train,
    /// For decisions during development.
    Validation,
    /// For the final numbers.
    Test,
}

impl Split {
    /// The split's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Configuration of a data set of generated scenes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SceneConfig {
    /// Side of the picture, in pixels.
    pub image_size: usize,
    /// Cells a side; an object sits in each cell at most.
    pub grid: usize,
    /// Fewest objects in a scene.
    pub min_objects: usize,
    /// Most objects in a scene.
    pub max_objects: usize,
    /// The first so many classes of the atlas are used.
    pub classes: usize,
    /// Vendors whose drawings are used. Layouts and questions do not depend on them.
    pub vendors: Vec<Vendor>,
    /// Questions per scene (fewer where a scene has no more to ask).
    pub turns: usize,
    /// Kinds of questions, in equal shares. `LeftOf` and `RightOf` are not among the default's: they take two steps
    /// (where is it, what is next to it), which models of the quickstart's size do not learn.
    pub kinds: Vec<QuestionKind>,
    /// `Plain` makes captions instead of questions.
    pub template: Template,
    /// Leaves the picture out: what can be answered without looking.
    pub text_only: bool,
    /// Decides everything, together with `split` and the example's index.
    pub seed: u64,
    /// Part of the data.
    pub split: Split,
}

impl Default for SceneConfig {
    fn default() -> Self {
        Self {
            image_size: 168,
            grid: 3,
            min_objects: 2,
            max_objects: 5,
            classes: 16,
            vendors: vec![Vendor::Google, Vendor::Twitter],
            turns: 6,
            kinds: vec![
                QuestionKind::Presence,
                QuestionKind::Count,
                QuestionKind::Position,
                QuestionKind::Colour,
                QuestionKind::ColourAt,
                QuestionKind::Where,
            ],
            template: Template::Qa,
            text_only: false,
            seed: 0,
            split: Split::Train,
        }
    }
}

impl SceneConfig {
    /// Checks the values.
    ///
    /// # Errors
    /// [`DataError::Scenes`] names the first field that is out of range.
    pub fn validate(&self) -> Result<(), DataError> {
        let known = Atlas::embedded()?.classes().len();
        let cells = self.grid * self.grid;
        let check = |good: bool, field, reason: String| {
            if good { Ok(()) } else { Err(SceneConfigError { field, reason }) }
        };
        check((2..=3).contains(&self.grid), "grid", format!("{} is not 2 or 3", self.grid))?;
        check(
            self.image_size >= 16 * self.grid && self.image_size <= 4096,
            "image_size",
            format!("{} is not in {}..=4096", self.image_size, 16 * self.grid),
        )?;
        check(
            1 <= self.min_objects && self.min_objects <= self.max_objects,
            "min_objects",
            format!("{} is not in 1..=max_objects ({})", self.min_objects, self.max_objects),
        )?;
        check(
            self.max_objects <= cells,
            "max_objects",
            format!("{} objects do not fit into {cells} cells", self.max_objects),
        )?;
        check(
            (self.max_objects + 1..=known).contains(&self.classes),
            "classes",
            format!("{} is not in {}..={known}", self.classes, self.max_objects + 1),
        )?;
        check(
            !self.vendors.is_empty(),
            "vendors",
            "name at least one of google, twitter, fluent".into(),
        )?;
        check(!self.kinds.is_empty(), "kinds", "name at least one kind of question".into())?;
        check(self.turns >= 1, "turns", "must be at least 1".into())?;
        Ok(())
    }

    /// Makes the image processor of scenes: CLIP's normalisation, pictures as large as they are drawn.
    pub fn processor(&self) -> ImageProcessor {
        ImageProcessor::clip(self.image_size, FitMode::Pad)
    }
}
