//! Draws a strip of scenes, one row per vendor, and prints their questions.
//!
//! `cargo run -p dualspeed-data --example scene_strip -- scenes.png`

use std::time::Instant;

use dualspeed_data::{SceneConfig, SceneSource, Split, Vendor, render};
use image::{GenericImage, RgbImage};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "scenes.png".into());
    let (columns, gap) = (6, 6);
    let base = SceneConfig { split: Split::Test, classes: 100, ..SceneConfig::default() };
    let step = base.image_size as u32 + gap;
    let mut strip =
        RgbImage::from_pixel(columns * step, Vendor::ALL.len() as u32 * step, image::Rgb([255; 3]));
    for (row, vendor) in Vendor::ALL.into_iter().enumerate() {
        let source = SceneSource::new(SceneConfig { vendors: vec![vendor], ..base.clone() }, 1000)?;
        for column in 0..columns {
            let scene = source.scene(column as usize);
            strip.copy_from(&render(&scene), column * step, row as u32 * step)?;
            if row == 0 {
                let questions = source.questions(column as usize);
                let lines = questions.iter().map(|q| format!("  {} {}", q.text, q.answer));
                println!("scene {column}\n{}", lines.collect::<Vec<_>>().join("\n"));
            }
        }
        let start = Instant::now();
        (0..200).for_each(|index| drop(render(&source.scene(index))));
        println!("{vendor}: {:.2} ms a scene", start.elapsed().as_secs_f64() * 1000.0 / 200.0);
    }
    strip.save(&path)?;
    println!("{path}");
    Ok(())
}
