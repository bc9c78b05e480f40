//! Data sets by name, from outside the crate.

use std::sync::Arc;

use dualspeed_core::Options;
use dualspeed_data::{
    Conversation, DataError, Encoded, Example, ExampleSource, FitMode, ImageProcessor, Modality,
    SourceRegistry, SourceSpec, Template, TextTokenizer, encode_training, source_registry,
};
use image::{Rgb, RgbImage};

/// Pictures of one shade of grey each, with the question whether they are light.
struct Shades {
    len: usize,
    levels: usize,
    processor: ImageProcessor,
    tokenizer: Arc<TextTokenizer>,
}

impl ExampleSource for Shades {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        let level = (index % self.levels * 255 / self.levels) as u8;
        let answer = if level > 127 { "yes" } else { "no" };
        let conversation = Conversation::new([("<image>is it light", answer)]);
        let encoded = encode_training(&conversation, Template::Qa, &self.tokenizer, None)?;
        let Encoded { input_ids, labels, .. } = encoded;
        let picture = RgbImage::from_pixel(4, 4, Rgb([level; 3]));
        Ok(Example {
            id: format!("shade-{index}"),
            input_ids,
            labels,
            images: vec![Arc::new(self.processor.process(&picture))],
            tilings: Vec::new(),
            questions: Vec::new(),
            prompt: conversation.prompt(),
        })
    }

    fn modality(&self, _index: usize) -> Modality {
        Modality::Image
    }

    fn length_hint(&self, _index: usize) -> usize {
        1
    }

    fn fingerprint(&self) -> String {
        format!("shades-{}-{}", self.len, self.levels)
    }
}

fn sources() -> SourceRegistry {
    source_registry().with("shades", |spec| {
        spec.options.expect(&["levels"])?;
        let levels = spec.options.count("levels")?.unwrap_or(4);
        if levels == 0 {
            return Err(spec.options.refuse("levels", "at least 1").into());
        }
        let own = || TextTokenizer::from_words(["is", "it", "light", "yes", "no"]).map(Arc::new);
        let tokenizer = spec.tokenizer.clone().map_or_else(own, Ok)?;
        let (len, processor) = (spec.samples.unwrap_or(8), spec.processor.clone());
        Ok(Box::new(Shades { len, levels, processor, tokenizer }))
    })
}

fn spec(options: Options) -> SourceSpec {
    let processor = ImageProcessor::clip(4, FitMode::Resize);
    SourceSpec { options, samples: Some(5), seed: 0, processor, tiles: None, tokenizer: None }
}

#[test]
fn a_data_set_of_another_crate_is_made_by_name() {
    let source = sources().build("shades", &spec(Options::default().with("levels", 2.0))).unwrap();
    assert_eq!((source.len(), source.fingerprint().as_str()), (5, "shades-5-2"));
    let (dark, light) = (source.get(0).unwrap(), source.get(1).unwrap());
    assert_eq!((dark.input_ids.len(), dark.images[0].size), (light.input_ids.len(), 4));
    assert_ne!(dark.images[0].key, light.images[0].key);
}

#[test]
fn what_is_wrong_comes_with_the_name_of_the_data_set() {
    let refused = |name: &str, options: Options| {
        let error: DataError = sources().build(name, &spec(options)).err().unwrap().into();
        error.to_string()
    };
    assert_eq!(
        refused("shade", Options::default()),
        "unknown data source `shade` (did you mean `shades`?); known: shades"
    );
    assert_eq!(
        refused("shades", Options::default().with("level", 2.0)),
        "data source `shades`: no option `level` (did you mean `levels`?); it has: levels"
    );
    assert_eq!(
        refused("shades", Options::default().with("levels", 0.0)),
        "data source `shades`: option levels = 0 cannot be used: expected at least 1"
    );
}
