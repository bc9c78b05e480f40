//! The words of scenes and the tokenizer made of them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::atlas::Atlas;
use crate::error::DataError;
use crate::text::{TextTokenizer, VICUNA_SYSTEM};

/// Colour of the card behind an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum Colour {
    Red,
    Orange,
    Yellow,
    Green,
    Blue,
    Purple,
    White,
    Black,
}

impl Colour {
    /// All colours.
    pub const ALL: [Self; 8] = [
        Self::Red,
        Self::Orange,
        Self::Yellow,
        Self::Green,
        Self::Blue,
        Self::Purple,
        Self::White,
        Self::Black,
    ];

    /// The colour's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Orange => "orange",
            Self::Yellow => "yellow",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Purple => "purple",
            Self::White => "white",
            Self::Black => "black",
        }
    }

    /// Its typical red, green and blue.
    pub fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [205, 44, 46],
            Self::Orange => [240, 135, 30],
            Self::Yellow => [247, 214, 62],
            Self::Green => [56, 152, 72],
            Self::Blue => [48, 98, 206],
            Self::Purple => [140, 66, 172],
            Self::White => [244, 244, 244],
            Self::Black => [30, 30, 34],
        }
    }
}

impl fmt::Display for Colour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

pub(super) const NUMBERS: [&str; 10] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

pub(super) const NOTHING: &str = "nothing";

/// What the cells of a grid are called; one word each, so that a place is one token in questions and as an answer.
const PLACES: [[&str; 3]; 3] = [
    ["top-left", "top", "top-right"],
    ["left", "centre", "right"],
    ["bottom-left", "bottom", "bottom-right"],
];

/// What a cell of a 3x3 or 2x2 grid is called: "top-left", "top", .., "centre", .., "bottom-right".
pub fn place_name(grid: usize, (row, column): (usize, usize)) -> &'static str {
    let stretch = |i: usize| if i + 1 == grid { 2 } else { i.min(1) };
    PLACES[stretch(row)][stretch(column)]
}

/// The tokenizer of scenes: every word any scene, question, answer, caption or template uses is one token. It does not
/// depend on the configuration, so models trained with fewer classes share its ids.
///
/// # Errors
/// If the embedded atlas is broken.
pub fn scene_tokenizer() -> Result<TextTokenizer, DataError> {
    let words = ": . , yes no nothing a an is there how many things what at of which colour behind where and on user \
                 assistant";
    let system = VICUNA_SYSTEM.to_lowercase();
    let system = system.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let names = Atlas::embedded()?.classes().iter().map(|class| class.name.as_str());
    let all = words
        .split_whitespace()
        .chain(PLACES.into_iter().flatten())
        .chain(NUMBERS)
        .chain(Colour::ALL.map(Colour::name))
        .chain(system.chain(["'"]))
        .chain(names);
    Ok(TextTokenizer::from_words(all)?)
}
