//! What each patch of a picture shows: targets for training a vision tower.

use super::layout::Scene;
use super::render::drawing;

/// A patch belongs to an object if the object covers this share of it.
const COVERAGE: f32 = 0.25;

/// Finds the class each patch shows: 0 for the background, else 1 + class of the object whose drawing (its alpha) covers most of
/// the patch, if that is at least a quarter. Row-major, `(image_size / patch)^2` entries; what does not fill a patch
/// at the right and lower edge is left out, as in a ViT.
pub fn patch_labels(scene: &Scene, patch: usize) -> Vec<usize> {
    let covered = scene.objects.iter().map(|object| {
        let pixels = drawing(object).map(|(x, y, [.., alpha])| (x, y, alpha / 255.0));
        (1 + object.class, coverage(scene, patch, pixels))
    });
    largest(scene, patch, covered)
}

/// Finds the colour of the card under each patch: 0 for none, else 1 + the colour's place in [`Colour::ALL`], if the card
/// (including what the drawing hides) covers at least a quarter. Row-major, `(image_size / patch)^2` entries.
///
/// [`Colour::ALL`]: super::Colour::ALL
pub fn patch_colours(scene: &Scene, patch: usize) -> Vec<usize> {
    let covered = scene.objects.iter().map(|object| {
        let card = object.card;
        let pixels = (0..card.size * card.size)
            .map(|i| (card.x + i % card.size, card.y + i / card.size, 1.0));
        (1 + object.colour as usize, coverage(scene, patch, pixels))
    });
    largest(scene, patch, covered)
}

fn coverage(
    scene: &Scene,
    patch: usize,
    pixels: impl Iterator<Item = (usize, usize, f32)>,
) -> Vec<f32> {
    let side = scene.image_size / patch.max(1);
    let mut covered = vec![0.0; side * side];
    for (x, y, share) in pixels {
        let (column, row) = (x / patch.max(1), y / patch.max(1));
        if column < side && row < side {
            covered[row * side + column] += share;
        }
    }
    covered
}

fn largest(
    scene: &Scene,
    patch: usize,
    covered: impl Iterator<Item = (usize, Vec<f32>)>,
) -> Vec<usize> {
    let side = scene.image_size / patch.max(1);
    let least = COVERAGE * (patch * patch) as f32;
    let mut best = vec![(0, least); side * side];
    for (label, covered) in covered {
        for (best, covered) in best.iter_mut().zip(covered) {
            if covered >= best.1 {
                *best = (label, covered);
            }
        }
    }
    best.into_iter().map(|(label, _)| label).collect()
}
