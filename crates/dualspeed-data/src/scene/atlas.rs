//! The embedded emoji: about a hundred classes in the drawings of three vendors (built by `scripts/build_atlas.py`;
//! licences in `assets/LICENSES.md`).

use std::fmt;
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use super::colour::Colour;
use crate::error::DataError;

/// The vendor of a set of drawings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vendor {
    /// Noto Emoji (Apache-2.0).
    Google,
    /// Twemoji (CC-BY-4.0).
    Twitter,
    /// Fluent Emoji 3D (MIT).
    Fluent,
}

impl Vendor {
    /// All vendors.
    pub const ALL: [Self; 3] = [Self::Google, Self::Twitter, Self::Fluent];

    /// The vendor's name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Google => "google",
            Self::Twitter => "twitter",
            Self::Fluent => "fluent",
        }
    }

    fn sheet(self) -> &'static [u8] {
        match self {
            Self::Google => include_bytes!("../../assets/google.png"),
            Self::Twitter => include_bytes!("../../assets/twitter.png"),
            Self::Fluent => include_bytes!("../../assets/fluent.png"),
        }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One class of drawings.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Class {
    /// A single lowercase word.
    pub name: String,
    /// Unicode code points, in hexadecimal.
    pub hexcode: String,
    /// CLDR label.
    pub label: String,
    /// CLDR group.
    pub group: String,
}

/// The decoded drawings of all vendors. Classes are ordered so that any prefix is diverse.
pub struct Atlas {
    classes: Vec<Class>,
    tile: usize,
    /// Per vendor, per class: `tile x tile` RGBA, premultiplied, 0 to 255.
    drawings: Vec<Vec<Vec<[f32; 4]>>>,
    /// Per class: the card colours no vendor's drawing drowns in.
    colours: Vec<Vec<Colour>>,
}

#[derive(Deserialize)]
struct Description {
    tile: usize,
    columns: usize,
    classes: Vec<Class>,
}

impl Atlas {
    /// Decodes the embedded drawings at the first call.
    ///
    /// # Errors
    /// [`DataError::Atlas`] if the embedded files do not fit together.
    pub fn embedded() -> Result<&'static Self, DataError> {
        static ATLAS: OnceLock<Result<Atlas, String>> = OnceLock::new();
        ATLAS
            .get_or_init(Self::decode)
            .as_ref()
            .map_err(|reason| DataError::Atlas { reason: reason.clone() })
    }

    fn decode() -> Result<Self, String> {
        let Description { tile, columns, classes } =
            serde_json::from_str(include_str!("../../assets/atlas.json"))
                .map_err(|e| e.to_string())?;
        let mut drawings = Vec::new();
        for vendor in Vendor::ALL {
            let sheet =
                image::load_from_memory_with_format(vendor.sheet(), image::ImageFormat::Png)
                    .map_err(|e| format!("{vendor}.png: {e}"))?
                    .into_rgba8();
            let rows = classes.len().div_ceil(columns.max(1));
            if sheet.dimensions() != ((columns * tile) as u32, (rows * tile) as u32) {
                return Err(format!("{vendor}.png has another size than atlas.json says"));
            }
            let cut = |class: usize| {
                let (left, top) = (class % columns * tile, class / columns * tile);
                let at =
                    |i: usize| sheet.get_pixel((left + i % tile) as u32, (top + i / tile) as u32);
                let premultiplied = |i: usize| {
                    let [r, g, b, a] = at(i).0.map(f32::from);
                    [r * a / 255.0, g * a / 255.0, b * a / 255.0, a]
                };
                (0..tile * tile).map(premultiplied).collect::<Vec<_>>()
            };
            drawings.push((0..classes.len()).map(cut).collect::<Vec<_>>());
        }
        let colours = (0..classes.len())
            .map(|class| {
                let stands_out = |colour: &Colour| {
                    drawings.iter().all(|vendor| share_unlike(&vendor[class], *colour) >= 0.6)
                };
                Colour::ALL.into_iter().filter(stands_out).collect()
            })
            .collect();
        Ok(Self { classes, tile, drawings, colours })
    }

    /// The classes, in the order of their numbers.
    pub fn classes(&self) -> &[Class] {
        &self.classes
    }

    /// Finds the number of the class called `name`.
    pub fn class(&self, name: &str) -> Option<usize> {
        self.classes.iter().position(|class| class.name == name)
    }

    /// Side of a drawing, in pixels.
    pub fn tile(&self) -> usize {
        self.tile
    }

    /// The drawing of a class: `tile x tile` RGBA, premultiplied, 0 to 255. `None` if there is no such class.
    pub fn drawing(&self, class: usize, vendor: Vendor) -> Option<&[[f32; 4]]> {
        self.drawings[vendor as usize].get(class).map(Vec::as_slice)
    }

    /// Card colours on which every vendor's drawing of `class` stands out.
    pub fn colours(&self, class: usize) -> &[Colour] {
        self.colours.get(class).map_or(&[], Vec::as_slice)
    }
}

/// Share of a drawing's opaque area whose colour is well away from `colour`.
fn share_unlike(drawing: &[[f32; 4]], colour: Colour) -> f32 {
    let card = colour.rgb().map(f32::from);
    let (mut opaque, mut unlike) = (0, 0);
    for [r, g, b, a] in drawing {
        if *a > 200.0 {
            let distance: f32 =
                [r, g, b].iter().zip(card).map(|(&&c, card)| (c * 255.0 / a - card).powi(2)).sum();
            opaque += 1;
            unlike += usize::from(distance.sqrt() > 80.0);
        }
    }
    unlike as f32 / opaque.max(1) as f32
}
