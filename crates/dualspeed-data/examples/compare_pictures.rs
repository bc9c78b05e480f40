//! Compares decoding and resizing with Pillow's, beside the JPEG decoder of the `image` crate, and times them:
//!
//! ```sh
//! python3 scripts/fixtures/pictures.py all DIR
//! cargo run --release -p dualspeed-data --example compare_pictures -- DIR
//! ```

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::{Duration, Instant};

use dualspeed_data::picture::resample::{Filter, resample};
use dualspeed_data::picture::resize_rgb;
use dualspeed_data::{FitMode, ImageLoading, ImageProcessor, RgbImage, decode_image};
use serde_json::Value;

/// Repetitions of what is timed; the fastest counts.
const REPEATS: usize = 5;

/// How the names of JPEG files begin that hardly any camera or program writes.
const RARE: [&str; 8] = ["cmyk", "ycck", "rgb", "440", "411", "410", "mixed", "scans"];

/// Samples by how far they lie from the reference.
#[derive(Default)]
struct Histogram(BTreeMap<u8, u64>);

impl Histogram {
    fn add(&mut self, found: &[u8], expected: &[u8]) -> bool {
        let differences = found.iter().zip(expected).map(|(a, b)| a.abs_diff(*b));
        differences.for_each(|difference| *self.0.entry(difference).or_default() += 1);
        found == expected
    }

    fn print(&self, what: &str) {
        let total = self.0.values().sum::<u64>().max(1) as f64;
        let at_least = |least: u8| self.0.range(least..).map(|(_, count)| count).sum::<u64>();
        let share = |count: u64| format!("{:.4} %", 100.0 * count as f64 / total);
        let cells = [0, 1, 2, 3].map(|d| share(self.0.get(&d).copied().unwrap_or(0)));
        let most = self.0.keys().next_back().copied().unwrap_or(0);
        println!(
            "| {what} | {} | {} | {most} | {total:.0} |",
            cells.join(" | "),
            share(at_least(4))
        );
    }
}

fn fastest<T>(mut work: impl FnMut() -> T) -> Duration {
    let once = |_| {
        let started = Instant::now();
        std::hint::black_box(work());
        started.elapsed()
    };
    (0..REPEATS).map(once).min().unwrap_or_default()
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args().nth(1).ok_or("give the directory that pictures.py made")?;
    let dir = Path::new(&dir);
    let index: Value = serde_json::from_slice(&std::fs::read(dir.join("index.json"))?)?;
    let side = index["versions"]["side"].as_u64().ok_or("no side in index.json")? as usize;
    let processor = ImageProcessor::clip(side, FitMode::Pad);
    let loading = ImageLoading::default();
    let mut rows: BTreeMap<String, (Histogram, Histogram, usize, usize)> = BTreeMap::new();
    let [mut before, mut before_rare] = [Histogram::default(), Histogram::default()];
    let (mut ours, mut theirs, mut pixels) = (Duration::ZERO, Duration::ZERO, 0);
    for picture in index["pictures"].as_array().ok_or("no pictures in index.json")? {
        let name = picture["name"].as_str().ok_or("a picture has no name")?;
        let bytes = std::fs::read(dir.join(name))?;
        let image = decode_image(&bytes, name, &loading)?.pixels;
        let decoded = std::fs::read(dir.join(format!("{name}.rgb")))?;
        let padded = std::fs::read(dir.join(format!("{name}.pad.rgb")))?;
        let kind = match name.rsplit_once('.') {
            Some(("lossy_161" | "lossy_250", "webp")) => "webp (lossy)",
            Some((_, suffix)) => suffix,
            None => "?",
        };
        let (raw, fitted, count, equal) = rows.entry(kind.to_owned()).or_default();
        let same = raw.add(image.as_raw(), &decoded);
        let same = fitted.add(processor.fit(&image).as_raw(), &padded) && same;
        (*count, *equal) = (*count + 1, *equal + usize::from(same));
        if kind == "jpg" {
            // The other decoder knows no orientation and takes some kinds for others; those say nothing about rounding.
            let other = image::load_from_memory(&bytes).map(image::DynamicImage::into_rgb8);
            let size = |image: &RgbImage| image.dimensions();
            match other {
                Ok(other) if size(&other) == size(&image) && !name.starts_with("exif") => {
                    let rare = RARE.iter().any(|kind| name.starts_with(kind));
                    let before = if rare { &mut before_rare } else { &mut before };
                    before.add(other.as_raw(), &decoded);
                    pixels += u64::from(other.width()) * u64::from(other.height());
                    ours += fastest(|| decode_image(&bytes, name, &loading));
                    theirs += fastest(|| image::load_from_memory(&bytes));
                }
                Ok(_) => {}
                Err(error) => println!("the `image` crate cannot read {name}: {error}"),
            }
        }
    }
    println!(
        "| samples apart by | 0 | 1 | 2 | 3 | more | most | of |\n|---|---|---|---|---|---|---|---|"
    );
    for (kind, (raw, fitted, count, equal)) in &rows {
        raw.print(&format!("{kind}: {equal} of {count} equal; decoded"));
        fitted.print(&format!("{kind}: padded and resized"));
    }
    before.print("jpg, the `image` crate: decoded, usual kinds");
    before_rare.print("jpg, the `image` crate: decoded, rare kinds");
    let rate = |time: Duration| pixels as f64 / time.as_secs_f64() / 1e6;
    println!(
        "\nJPEG, million pixels a second: {:.0}; the `image` crate {:.0}",
        rate(ours),
        rate(theirs)
    );
    let photo = RgbImage::from_fn(640, 480, |x, y| image::Rgb([x as u8, y as u8, (x * y) as u8]));
    let to = side as u32;
    let fixed = fastest(|| resize_rgb(&photo, to, to, Filter::Bicubic));
    let float = fastest(|| {
        let read = |y: usize, row: &mut [[f32; 3]]| {
            for (to, from) in row.iter_mut().zip(photo.rows().nth(y).into_iter().flatten()) {
                *to = from.0.map(f32::from);
            }
        };
        let finish = |value: f32| value.round().clamp(0.0, 255.0);
        resample(read, (640, 480), (side, side), Filter::Bicubic, finish)
    });
    println!(
        "640 x 480 to {side} x {side}: {:.2} ms; in floats {:.2} ms",
        fixed.as_secs_f64() * 1e3,
        float.as_secs_f64() * 1e3
    );
    Ok(())
}
