//! Opens a file of conversations and says how long that took and how much memory it needed.
//!
//! `cargo run --release -p dualspeed-data --example open_records -- data.json images`

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use dualspeed_data::{
    DataError, ExampleSource, FitMode, ImageProcessor, LlavaJson, LlavaJsonConfig, OnError,
    Template, TextTokenizer,
};

fn main() -> Result<(), DataError> {
    let mut arguments = std::env::args().skip(1);
    let (Some(file), Some(folder)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: open_records FILE IMAGE_FOLDER");
        std::process::exit(2);
    };
    let config = LlavaJsonConfig {
        image_root: Path::new(&folder).to_path_buf(),
        template: Template::VicunaV1,
        system: None,
        max_length: None,
        processor: ImageProcessor::clip(336, FitMode::Pad),
        tiles: None,
        on_error: OnError::Stop,
    };
    let begin = Instant::now();
    let tokenizer = Arc::new(TextTokenizer::from_words([])?);
    let source = LlavaJson::open(file, config, tokenizer)?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("{} records in {seconds:.2} s, {}", source.len(), source.fingerprint());
    if let Ok(status) = std::fs::read_to_string("/proc/self/status") {
        status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    }
    Ok(())
}
