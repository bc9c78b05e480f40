//! Drawing a scene.

use dualspeed_core::rng::hash_words;
use image::RgbImage;

use super::atlas::Atlas;
use super::layout::{Background, Bounds, Scene, SceneObject};
use crate::picture::resample::{Filter, resample};

/// Draws a scene: background, then cards, then drawings, antialiased.
///
/// Objects whose class the atlas lacks are cards only; no generated scene has any.
pub fn render(scene: &Scene) -> RgbImage {
    let mut canvas = draw_background(&scene.background, scene.image_size);
    for object in &scene.objects {
        draw_card(&mut canvas, object);
        for (x, y, [r, g, b, a]) in drawing(object) {
            if let Some(pixel) = canvas.get_pixel_mut_checked(x as u32, y as u32) {
                let under = 1.0 - a / 255.0;
                for (c, over) in pixel.0.iter_mut().zip([r, g, b]) {
                    *c = (over + f32::from(*c) * under).round().clamp(0.0, 255.0) as u8;
                }
            }
        }
    }
    canvas
}

/// The resized drawing of an object: (x, y, premultiplied RGBA) for its pixels that are not transparent.
pub(super) fn drawing(object: &SceneObject) -> impl Iterator<Item = (usize, usize, [f32; 4])> {
    let Bounds { x, y, size } = object.bbox;
    let atlas = Atlas::embedded().ok();
    let pixels = match atlas
        .and_then(|atlas| Some((atlas.drawing(object.class, object.vendor)?, atlas.tile())))
    {
        Some((tile, side)) => resample(
            |row, line| line.copy_from_slice(&tile[row * side..(row + 1) * side]),
            (side, side),
            (size, size),
            Filter::Bilinear,
            |value| value,
        ),
        None => Vec::new(),
    };
    let pixels = pixels.into_iter().enumerate();
    pixels
        .filter(|(_, pixel)| pixel[3] > 0.0)
        .map(move |(i, pixel)| (x + i % size, y + i / size, pixel))
}

fn draw_background(background: &Background, side: usize) -> RgbImage {
    let (sin, cos) = background.angle.sin_cos();
    let half = side as f32 / 2.0;
    // The gradient runs from corner to corner whatever its direction.
    let reach = half * (sin.abs() + cos.abs());
    let from = background.from.map(f32::from);
    let change: [f32; 3] = std::array::from_fn(|c| f32::from(background.to[c]) - from[c]);
    let blocks = side.div_ceil(background.block);
    let mut canvas = RgbImage::new(side as u32, side as u32);
    let mut factors = vec![1.0; blocks];
    for (y, row) in canvas.as_mut().chunks_exact_mut(3 * side).enumerate() {
        if background.amplitude > 0.0 && y % background.block == 0 {
            for (x, factor) in factors.iter_mut().enumerate() {
                let word = hash_words(&[background.noise, (y / background.block) as u64, x as u64]);
                let unit = (word >> 40) as f32 / (1u64 << 24) as f32;
                *factor = 1.0 + background.amplitude * (2.0 * unit - 1.0);
            }
        }
        let dy = (y as f32 + 0.5 - half) * sin;
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let t = 0.5 + ((x as f32 + 0.5 - half) * cos + dy) / (2.0 * reach);
            let factor = factors[x / background.block];
            for c in 0..3 {
                pixel[c] = ((from[c] + change[c] * t) * factor).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
    canvas
}

fn draw_card(canvas: &mut RgbImage, object: &SceneObject) {
    let Bounds { x, y, size } = object.card;
    let radius = size as f32 * 0.18;
    let half = size as f32 / 2.0;
    for dy in 0..size {
        for dx in 0..size {
            let Some(pixel) = canvas.get_pixel_mut_checked((x + dx) as u32, (y + dy) as u32) else {
                continue;
            };
            // Distance outside the rounded square (negative inside), turned into coverage over one pixel.
            let beyond = |d: usize| ((d as f32 + 0.5 - half).abs() - (half - radius)).max(0.0);
            let coverage = (radius - beyond(dx).hypot(beyond(dy)) + 0.5).clamp(0.0, 1.0);
            for (c, tint) in pixel.0.iter_mut().zip(object.tint) {
                *c = (f32::from(*c) + (f32::from(tint) - f32::from(*c)) * coverage).round() as u8;
            }
        }
    }
}
