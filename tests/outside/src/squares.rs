//! A data set of generated pictures: how many of the four quarters are red?

use std::sync::Arc;

use dualspeed::core::rng::SplitMix;
use dualspeed::data::{
    Conversation, DataError, MemorySource, QuestionKind, QuestionMeta, Rgb, RgbImage, Template,
    TextTokenizer, encode_training,
};
use dualspeed::prelude::*;

const WORDS: [&str; 9] = ["zero", "one", "two", "three", "four", "how", "many", "are", "red"];
const TEMPLATE: Template = Template::Qa;

/// Makes `samples` (256) examples of the run's seed; another option `salt` (0) gives others. They are few and small, so they
/// are held in memory; a data set that is read or drawn as it is used implements [`ExampleSource`] itself.
pub fn squares(spec: &SourceSpec) -> Result<MemorySource, MakerError> {
    spec.options.expect(&["salt"])?;
    let salt = spec.options.count("salt")?.unwrap_or(0);
    let own = || TextTokenizer::from_words(WORDS).map(Arc::new);
    let tokenizer = spec.tokenizer.clone().map_or_else(own, Ok)?;
    let count = spec.samples.unwrap_or(256);
    let examples = (0..count).map(|index| {
        let rng = SplitMix::new(&[spec.seed, salt as u64, index as u64]);
        example(rng, format!("squares-{salt}-{index}"), spec, &tokenizer)
    });
    let examples = examples.collect::<Result<Vec<_>, _>>()?;
    let fingerprint = format!("squares-{count}-{salt}-{} {:?}", spec.seed, spec.processor);
    Ok(MemorySource::new(examples, fingerprint).with_text(TEMPLATE, tokenizer))
}

/// A picture of four quarters, each red or black, and the question how many are red.
fn example(
    mut rng: SplitMix,
    id: String,
    spec: &SourceSpec,
    tokenizer: &TextTokenizer,
) -> Result<Example, DataError> {
    let red: [bool; 4] = std::array::from_fn(|_| rng.uniform() < 0.5);
    let colour = |x: u32, y: u32| Rgb([255 * u8::from(red[(y / 16 * 2 + x / 16) as usize]), 0, 0]);
    let picture = RgbImage::from_fn(32, 32, colour);
    let answer = WORDS[red.iter().filter(|red| **red).count()];
    let conversation = Conversation::new([("<image>\nhow many are red", answer)]);
    let encoded = encode_training(&conversation, TEMPLATE, tokenizer, None)?;
    let question = QuestionMeta::new(QuestionKind::Count, encoded.answers[0].start, answer);
    let images = vec![Arc::new(spec.processor.process(&picture))];
    let example = Example::new(id, &conversation, encoded, images);
    Ok(Example { questions: vec![question], ..example })
}
