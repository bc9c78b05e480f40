//! Colours of the cards behind objects.

use std::fmt;

use serde::{Deserialize, Serialize};

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

    /// A typical red, green and blue of the colour.
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
