//! Scenes as a data set.

use std::sync::Arc;

use dualspeed_core::hash::hex;
use sha2::{Digest, Sha256};

use super::atlas::Atlas;
use super::config::SceneConfig;
use super::layout::{Purpose, Scene, lay_out, stream};
use super::questions::{Question, ask};
use super::render::render;
use super::words::scene_tokenizer;
use crate::error::DataError;
use crate::example::Example;
use crate::picture::ImageProcessor;
use crate::question::QuestionMeta;
use crate::source::{ExampleSource, Modality};
use crate::text::{Conversation, Encoded, Template, TextTokenizer, Turn, encode_training};

/// Increase when the same configuration comes to mean other scenes.
const GENERATOR_VERSION: u32 = 2;

/// A data set of generated scenes. Example `i` is a pure function of the configuration and `i`.
#[derive(Clone)]
pub struct SceneSource {
    config: SceneConfig,
    len: usize,
    atlas: &'static Atlas,
    tokenizer: Arc<TextTokenizer>,
    processor: ImageProcessor,
    /// What the fingerprint says of a tokenizer and an image processor that are not the scenes' own.
    foreign: String,
}

impl SceneSource {
    /// Makes a data set of the first `len` scenes of a configuration.
    ///
    /// # Errors
    /// [`DataError::Scenes`] names the first field that is out of range.
    pub fn new(config: SceneConfig, len: usize) -> Result<Self, DataError> {
        config.validate()?;
        let tokenizer = Arc::new(scene_tokenizer()?);
        let processor = config.processor();
        let foreign = String::new();
        Ok(Self { config, len, atlas: Atlas::embedded()?, tokenizer, processor, foreign })
    }

    /// Puts the scenes into the words of another tokenizer: a language model's that was trained elsewhere.
    pub fn with_tokenizer(mut self, tokenizer: Arc<TextTokenizer>) -> Self {
        let text = tokenizer.inner().to_string(false).unwrap_or_default();
        self.foreign += &format!("tokenizer {:x}", Sha256::digest(text));
        self.tokenizer = tokenizer;
        self
    }

    /// Gives the scenes other pixels: those of a vision tower that was trained elsewhere.
    pub fn with_processor(mut self, processor: ImageProcessor) -> Self {
        if processor != self.processor {
            self.foreign += &format!("pixels {:?} {:?}", processor.mean, processor.std);
        }
        self.processor = processor;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &SceneConfig {
        &self.config
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    /// The image processor that rendered scenes go through.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// Lays out scene `index`; any index, also beyond `len`.
    pub fn scene(&self, index: usize) -> Scene {
        lay_out(&self.config, self.atlas, index)
    }

    /// Draws the questions of scene `index`.
    pub fn questions(&self, index: usize) -> Vec<Question> {
        self.questions_about(&self.scene(index), index)
    }

    fn questions_about(&self, scene: &Scene, index: usize) -> Vec<Question> {
        ask(scene, &self.config, self.atlas, &mut stream(&self.config, index, Purpose::Questions))
    }

    fn example(&self, index: usize) -> Result<Example, DataError> {
        let scene = self.scene(index);
        let (turns, questions) = match self.config.template {
            Template::Plain => (vec![Turn::answered("", caption(&scene))], Vec::new()),
            _ => {
                let questions = self.questions_about(&scene, index);
                (questions.iter().map(|q| Turn::answered(&q.text, &q.answer)).collect(), questions)
            }
        };
        let mut conversation = Conversation { system: None, turns };
        let mut images = Vec::new();
        if !self.config.text_only {
            if let Some(turn) = conversation.turns.first_mut() {
                turn.user.insert_str(0, "<image>\n");
            }
            images.push(Arc::new(self.processor.process(&render(&scene))));
        }
        let encoded = encode_training(&conversation, &self.config.template, &self.tokenizer, None)?;
        let questions = questions
            .into_iter()
            .zip(&encoded.answers)
            .map(|(q, place)| QuestionMeta {
                kind: q.kind,
                answer_position: place.start,
                answer: q.answer,
            })
            .collect();
        let id = format!("scene-{}-{}-{index}", self.config.split.name(), self.config.seed);
        let prompt = conversation.prompt();
        let Encoded { input_ids, labels, .. } = encoded;
        let tilings = Vec::new();
        Ok(Example { id, input_ids, labels, images, tilings, questions, prompt })
    }
}

/// What is where, in reading order: "cat on red , apple on blue".
fn caption(scene: &Scene) -> String {
    let parts: Vec<_> =
        scene.objects.iter().map(|o| format!("{} on {}", o.name, o.colour)).collect();
    parts.join(" , ")
}

impl ExampleSource for SceneSource {
    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        if index < self.len {
            self.example(index)
        } else {
            Err(DataError::OutOfRange { index, len: self.len })
        }
    }

    fn modality(&self, _index: usize) -> Modality {
        if self.config.text_only { Modality::Text } else { Modality::Image }
    }

    /// Words of the questions and answers (of the caption's objects under `Plain`).
    fn length_hint(&self, index: usize) -> usize {
        match self.config.template {
            Template::Plain => 4 * self.scene(index).objects.len(),
            _ => self.questions(index).iter().map(|q| q.text.split(' ').count() + 2).sum(),
        }
    }

    fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        hash.update(format!("scenes v{GENERATOR_VERSION} {} {:?}", self.len, self.config));
        hash.update(format!("{:?}", self.atlas.classes()));
        hash.update(&self.foreign);
        format!("scenes-{}", hex(&hash.finalize()[..8]))
    }
}
