//! Pictures of what a pruner keeps: pruned patches dimmed, kept ones as they are.

use font8x8::UnicodeFonts;
use image::{Rgb, RgbImage, imageops};

/// Scales a picture to `side` x `side` pixels and dims the patches that are not in `kept`.
///
/// `kept` are row-major indices into a `grid` x `grid` lattice of patches; one outside it is ignored.
pub fn dimmed(picture: &RgbImage, grid: usize, kept: &[usize], side: u32) -> RgbImage {
    let mut out = imageops::resize(picture, side, side, imageops::FilterType::CatmullRom);
    let grid = grid.max(1) as u32;
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (column, row) = (x * grid / side, y * grid / side);
        if !kept.contains(&((row * grid + column) as usize)) {
            let grey = pixel.0.iter().map(|&c| u32::from(c)).sum::<u32>() / 3;
            pixel.0 = pixel.0.map(|c| ((u32::from(c) + 2 * grey) / 12 + 168) as u8);
        } else if edge(x, side, grid) || edge(y, side, grid) {
            *pixel = Rgb(pixel.0.map(|c| c / 2));
        }
    }
    out
}

/// Scales a picture to `side` x `side` pixels.
pub fn scaled(picture: &RgbImage, side: u32) -> RgbImage {
    imageops::resize(picture, side, side, imageops::FilterType::CatmullRom)
}

/// Scales a picture to `side` x `side` pixels and dims its `grid` x `grid` patches by their shares, row by row: 0 fades,
/// 1 stays and is outlined, what is between fades in part. Shares of merged patches are small, so that their root is
/// shown.
pub fn shaded(picture: &RgbImage, grid: usize, shares: &[f32], side: u32) -> RgbImage {
    let bright = scaled(picture, side);
    let mut out = dimmed(picture, grid, &[], side);
    let grid = grid.max(1) as u32;
    for (x, y, pixel) in out.enumerate_pixels_mut() {
        let (column, row) = (x * grid / side, y * grid / side);
        let share = shares.get((row * grid + column) as usize).copied().unwrap_or(0.0);
        let share = share.clamp(0.0, 1.0);
        let whole = bright.get_pixel(x, y).0;
        if share >= 1.0 {
            let border = edge(x, side, grid) || edge(y, side, grid);
            *pixel = Rgb(if border { whole.map(|c| c / 2) } else { whole });
        } else {
            for (c, whole) in pixel.0.iter_mut().zip(whole) {
                let (from, to) = (f32::from(*c), f32::from(whole));
                *c = (from + (to - from) * share.sqrt()) as u8;
            }
        }
    }
    out
}

/// Puts a line of text above a picture, cut where the picture ends.
pub fn labelled(picture: &RgbImage, text: &str) -> RgbImage {
    const SCALE: u32 = 2;
    const HEIGHT: u32 = 8 * SCALE + 8;
    let (width, height) = picture.dimensions();
    let mut out = RgbImage::from_pixel(width, height + HEIGHT, Rgb([255, 255, 255]));
    imageops::replace(&mut out, picture, 0, i64::from(HEIGHT));
    // Long labels in small print rather than cut.
    let long = text.chars().count() as u32 * 8 * SCALE > width;
    let scale = if long { 1 } else { SCALE };
    let top = (HEIGHT - 8 * scale) / 2;
    for (place, letter) in text.chars().enumerate() {
        let glyph = font8x8::BASIC_FONTS.get(letter).unwrap_or_default();
        for (row, bits) in glyph.iter().enumerate() {
            for column in (0..8).filter(|column| bits & (1 << column) != 0) {
                for (dx, dy) in (0..scale * scale).map(|at| (at % scale, at / scale)) {
                    let x = (place as u32 * 8 + column) * scale + dx;
                    let y = top + row as u32 * scale + dy;
                    if x < width && y < HEIGHT {
                        out.put_pixel(x, y, Rgb([20, 20, 20]));
                    }
                }
            }
        }
    }
    out
}

/// True on the one-pixel border of a patch, which outlines kept patches.
fn edge(at: u32, side: u32, grid: u32) -> bool {
    at + 1 == side || at == 0 || (at * grid / side) != ((at + 1) * grid / side)
}

/// Puts pictures side by side, row by row, with white gaps of 8 pixels.
pub fn contact_sheet(rows: &[Vec<RgbImage>]) -> RgbImage {
    const GAP: u32 = 8;
    let tile = |f: fn(&RgbImage) -> u32| rows.iter().flatten().map(f).max().unwrap_or(1);
    let (width, height) = (tile(RgbImage::width), tile(RgbImage::height));
    let columns = rows.iter().map(Vec::len).max().unwrap_or(1) as u32;
    let mut sheet = RgbImage::from_pixel(
        columns * (width + GAP) + GAP,
        rows.len() as u32 * (height + GAP) + GAP,
        Rgb([255, 255, 255]),
    );
    for (r, row) in rows.iter().enumerate() {
        for (c, picture) in row.iter().enumerate() {
            let (x, y) = (GAP + c as u32 * (width + GAP), GAP + r as u32 * (height + GAP));
            imageops::replace(&mut sheet, picture, i64::from(x), i64::from(y));
        }
    }
    sheet
}

/// Encodes a picture as PNG.
///
/// # Errors
/// If the encoder fails.
pub fn png(picture: &RgbImage) -> Result<Vec<u8>, image::ImageError> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_patches_keep_their_pixels_and_pruned_ones_fade() {
        let black = RgbImage::from_pixel(16, 16, Rgb([0, 0, 0]));
        let out = dimmed(&black, 2, &[3], 32);
        assert_eq!(out.get_pixel(24, 24), &Rgb([0, 0, 0]));
        assert_eq!(out.get_pixel(4, 4), &Rgb([168, 168, 168]));
    }

    #[test]
    fn shares_fade_in_part_and_labels_leave_ink() {
        let black = RgbImage::from_pixel(16, 16, Rgb([0, 0, 0]));
        let out = shaded(&black, 2, &[0.0, 0.25, 0.0, 1.0], 32);
        assert_eq!(out.get_pixel(4, 4), &Rgb([168, 168, 168]));
        assert_eq!(out.get_pixel(24, 4), &Rgb([84, 84, 84]));
        assert_eq!(out.get_pixel(24, 24), &Rgb([0, 0, 0]));
        let white = RgbImage::from_pixel(64, 10, Rgb([255, 255, 255]));
        let out = labelled(&white, "T");
        let ink = out.pixels().filter(|pixel| pixel.0[0] < 128).count();
        assert!(ink > 16 && out.height() > white.height(), "{ink}");
    }

    #[test]
    fn a_sheet_has_room_for_every_picture() {
        let tile = RgbImage::from_pixel(10, 10, Rgb([9, 9, 9]));
        let sheet = contact_sheet(&[vec![tile.clone(), tile.clone()], vec![tile]]);
        assert_eq!((sheet.width(), sheet.height()), (44, 44));
        assert_eq!(sheet.get_pixel(8, 26), &Rgb([9, 9, 9]));
    }
}
