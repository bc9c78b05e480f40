//! Where things are: a pure function of (seed, split, index).

use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::{IndexedRandom, SliceRandom, index};

use super::atlas::{Atlas, Vendor};
use super::colour::Colour;
use super::config::SceneConfig;
use crate::rng;

/// A square of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Left edge.
    pub x: usize,
    /// Upper edge.
    pub y: usize,
    /// Side.
    pub size: usize,
}

/// An object of a scene.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SceneObject {
    /// Number of the class in the atlas.
    pub class: usize,
    /// Name of the class.
    pub name: &'static str,
    /// Vendor of the drawing.
    pub vendor: Vendor,
    /// Cell, (row, column) from the top left.
    pub cell: (usize, usize),
    /// Where the drawing is.
    pub bbox: Bounds,
    /// Where the rounded card behind it is.
    pub card: Bounds,
    /// The card's colour.
    pub colour: Colour,
    /// The card's exact red, green and blue.
    pub tint: [u8; 3],
}

/// Background of a scene: a gradient of two colours, times blocky noise.
#[derive(Clone, Debug, PartialEq)]
pub struct Background {
    /// Colour at one end.
    pub from: [u8; 3],
    /// Colour at the other end.
    pub to: [u8; 3],
    /// Direction of the gradient, in radians.
    pub angle: f32,
    /// Side of a block of noise, in pixels.
    pub block: usize,
    /// Strength of the noise; 0 is plain.
    pub amplitude: f32,
    /// Seed of the noise.
    pub noise: u64,
}

/// A scene before it is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// Side of the picture, in pixels.
    pub image_size: usize,
    /// Cells a side.
    pub grid: usize,
    /// Objects, all of different classes, in reading order.
    pub objects: Vec<SceneObject>,
    /// Background behind the objects.
    pub background: Background,
}

impl Scene {
    /// Lists the classes present, in reading order.
    pub fn present_classes(&self) -> Vec<usize> {
        self.objects.iter().map(|object| object.class).collect()
    }

    /// Finds the object in a cell.
    pub fn at(&self, cell: (usize, usize)) -> Option<&SceneObject> {
        self.objects.iter().find(|object| object.cell == cell)
    }

    /// Finds the nearest object to the left in the same row.
    pub fn left_of(&self, object: &SceneObject) -> Option<&SceneObject> {
        let (row, column) = object.cell;
        (0..column).rev().find_map(|left| self.at((row, left)))
    }

    /// Finds the nearest object to the right in the same row.
    pub fn right_of(&self, object: &SceneObject) -> Option<&SceneObject> {
        let (row, column) = object.cell;
        (column + 1..self.grid).find_map(|right| self.at((row, right)))
    }
}

/// Purpose of a random stream; keeps the streams of one example apart.
#[derive(Clone, Copy)]
pub(super) enum Purpose {
    Layout = 1,
    Vendors = 2,
    Questions = 3,
}

pub(super) fn stream(config: &SceneConfig, index: usize, purpose: Purpose) -> Xoshiro256PlusPlus {
    rng::stream(&[config.seed, config.split as u64, index as u64, purpose as u64])
}

/// Lays out scene `index`.
pub(super) fn lay_out(config: &SceneConfig, atlas: &'static Atlas, index: usize) -> Scene {
    let rng = &mut stream(config, index, Purpose::Layout);
    let count = rng.random_range(config.min_objects..=config.max_objects);
    let cells = cells(rng, config.grid, count);
    let classes = index::sample(rng, config.classes, count);
    let mut objects: Vec<SceneObject> = classes
        .into_iter()
        .zip(cells)
        .map(|(class, cell)| {
            let (card, bbox) = place(rng, config, cell);
            let colour = atlas.colours(class).choose(rng).copied().unwrap_or(Colour::White);
            let tint = colour.rgb().map(|c| c.saturating_add_signed(rng.random_range(-10..=10)));
            let name = atlas.classes()[class].name.as_str();
            SceneObject { class, name, vendor: config.vendors[0], cell, bbox, card, colour, tint }
        })
        .collect();
    objects.sort_by_key(|object| object.cell);
    // A stream of its own: the same scene in another vendor's drawings is otherwise the same.
    let vendors = &mut stream(config, index, Purpose::Vendors);
    for object in &mut objects {
        object.vendor = *config.vendors.choose(vendors).unwrap_or(&object.vendor);
    }
    Scene {
        image_size: config.image_size,
        grid: config.grid,
        objects,
        background: background(rng, config.image_size),
    }
}

/// Different cells in random order. Mostly they fill rows, by two or more: or "left of" would nearly always be "nothing".
fn cells(rng: &mut Xoshiro256PlusPlus, grid: usize, count: usize) -> Vec<(usize, usize)> {
    let mut cells: Vec<_> = (0..grid * grid).map(|cell| (cell / grid, cell % grid)).collect();
    // Rows, and cells within rows, in random order.
    let mut rows: Vec<Vec<_>> = cells.chunks(grid).map(<[_]>::to_vec).collect();
    rows.shuffle(rng);
    rows.iter_mut().for_each(|row| row.shuffle(rng));
    if rng.random_bool(0.8) {
        let first = if rng.random_bool(0.5) { grid } else { 2.min(grid) };
        let (head, tail): (Vec<_>, Vec<_>) = rows.iter().map(|row| row.split_at(first)).unzip();
        cells = [head.concat(), tail.concat()].concat();
    } else {
        cells.shuffle(rng);
    }
    cells.truncate(count);
    cells.shuffle(rng);
    cells
}

/// The card, anywhere within the cell, and the drawing in its middle.
fn place(
    rng: &mut Xoshiro256PlusPlus,
    config: &SceneConfig,
    (row, column): (usize, usize),
) -> (Bounds, Bounds) {
    let edge = |i: usize| i * config.image_size / config.grid;
    let cell = edge(1);
    // At 168 pixels and 3 cells: cards of 43 to 54 pixels around drawings of 37 to 48.
    let size = rng.random_range(cell * 78 / 100..=cell * 97 / 100);
    let room = cell - size;
    let x = edge(column) + rng.random_range(0..=room);
    let y = edge(row) + rng.random_range(0..=room);
    let margin = cell * 3 / 56;
    let bbox = Bounds { x: x + margin, y: y + margin, size: size - 2 * margin };
    (Bounds { x, y, size }, bbox)
}

fn background(rng: &mut Xoshiro256PlusPlus, image_size: usize) -> Background {
    let mut muted = || {
        let grey = rng.random_range(90..=190);
        [(); 3].map(|()| (grey + rng.random_range(-35..=35)) as u8)
    };
    let (from, to) = (muted(), muted());
    let amplitude = if rng.random_bool(0.5) { 0.0 } else { rng.random_range(0.05..0.25) };
    Background {
        from,
        to,
        angle: rng.random_range(0.0..std::f32::consts::TAU),
        block: rng.random_range(3..=14) * image_size.div_ceil(168),
        amplitude,
        noise: rng.random_range(0..u64::MAX),
    }
}
