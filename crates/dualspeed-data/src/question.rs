//! Questions whose answers can be scored.

use std::fmt;

use serde::{Deserialize, Serialize};

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

impl QuestionMeta {
    /// Makes a question whose answer begins at `answer_position` in `input_ids`.
    pub fn new(kind: QuestionKind, answer_position: usize, answer: impl Into<String>) -> Self {
        Self { kind, answer_position, answer: answer.into() }
    }
}

/// What a question asks.
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
