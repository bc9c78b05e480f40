//! The words of scenes and the tokenizer made of them.

use super::atlas::Atlas;
use super::colour::Colour;
use crate::error::DataError;
use crate::text::{TextTokenizer, VICUNA_SYSTEM};

pub(super) const NUMBERS: [&str; 10] =
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];

pub(super) const NOTHING: &str = "nothing";

/// What the cells of a grid are called; one word each, so that a place is one token in questions and as an answer.
const PLACES: [[&str; 3]; 3] = [
    ["top-left", "top", "top-right"],
    ["left", "centre", "right"],
    ["bottom-left", "bottom", "bottom-right"],
];

/// Names a cell of a 3x3 or 2x2 grid: "top-left", "top", .., "centre", .., "bottom-right".
pub fn place_name(grid: usize, (row, column): (usize, usize)) -> &'static str {
    let stretch = |i: usize| if i + 1 == grid { 2 } else { i.min(1) };
    PLACES[stretch(row)][stretch(column)]
}

/// Makes the tokenizer of scenes: every word any scene, question, answer, caption or template uses is one token. It does
/// not depend on the configuration, so models trained with fewer classes share its ids.
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
