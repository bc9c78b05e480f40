//! From a prompt and images to generated text.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use dualspeed_data::text::{IMAGE_PLACEHOLDER, with_literal_images};
use dualspeed_data::{
    Conversation, TileConfig, TiledImage, Tiling, Turn, encode_prompt, load_image, preprocess_image,
};
use dualspeed_model::{
    GenerateOptions, Generated, IGNORE_INDEX, Inputs, Llava, Needs, Pruner, TextBatch, View,
    VisionFeatures,
};
use dualspeed_ops::Backend;
use dualspeed_train::features::pixel_values;

use super::Pipeline;
use super::model::GenerativeModel;
use super::streamer::TextStreamer;

/// The key of random pruners' picks: that of the only sample.
const SAMPLE_ID: &str = "prompt";

/// A prompt and its images.
#[derive(Clone, Debug, Default)]
pub struct GenerationRequest {
    /// The text; `<image>` marks where images stand, else they come first.
    pub prompt: String,
    /// Paths of image files.
    pub images: Vec<PathBuf>,
}

/// The text generated for a request.
#[derive(Clone, Debug)]
pub struct GenerationOutput {
    /// The text, without white space at its ends.
    pub text: String,
    /// Token ids of the prompt, [`IMAGE_TOKEN_INDEX`](dualspeed_data::IMAGE_TOKEN_INDEX) where an image stands.
    pub prompt_ids: Vec<i64>,
    /// Token ids and log-probabilities of the text.
    pub generated: Generated,
}

/// How text is generated, for one or many requests.
pub struct GenerationSettings<'a, B: Backend> {
    /// Whether the decoder sees all visual tokens or a pruned part of them.
    pub view: View,
    /// The pruner; a pruned view needs one.
    pub pruner: Option<&'a dyn Pruner<B>>,
    /// Length and sampling; end tokens and prompt are set by the pipeline and the request.
    pub options: GenerateOptions,
}

impl<B: Backend> Pipeline<B> {
    /// Generates the text for a request; `on_text` gets it piece by piece as it comes.
    ///
    /// # Errors
    /// If the prompt is empty, an image cannot be read, or request and model do not fit together.
    pub fn generate(
        &self,
        request: &GenerationRequest,
        settings: &GenerationSettings<'_, B>,
        device: &B::Device,
        on_text: &mut dyn FnMut(&str),
    ) -> anyhow::Result<GenerationOutput> {
        request.check()?;
        let conversation = Conversation {
            system: self.system.clone(),
            turns: vec![Turn::open(with_image_placeholders(request)?)],
        };
        let prompt_ids = encode_prompt(&conversation, &self.template, &self.tokenizer)?;
        let options = GenerateOptions {
            eos_token_ids: self.eos_token_ids.clone(),
            ..settings.options.clone()
        };
        let mut streamer = TextStreamer::new(&self.tokenizer, on_text);
        let mut on_token = |id| streamer.put(id);
        let generated = match &self.model {
            GenerativeModel::Decoder(model) => {
                anyhow::ensure!(
                    request.images.is_empty(),
                    "this model has no eyes; ask without --image"
                );
                model.generate(&prompt_ids, &options, &mut on_token)?
            }
            GenerativeModel::Llava(model) => {
                let (features, tilings) =
                    self.encode_images(model, &request.images, settings, device)?;
                let ids = [prompt_ids.clone()];
                let labels = [vec![IGNORE_INDEX; prompt_ids.len()]];
                let inputs = Inputs {
                    text: TextBatch { input_ids: &ids, labels: &labels },
                    features,
                    tilings: &tilings,
                    sample_ids: &[SAMPLE_ID.to_owned()],
                    prompts: std::slice::from_ref(&request.prompt),
                };
                let (view, pruner) = (&settings.view, settings.pruner);
                model.generate(&inputs, view, pruner, &options, &mut on_token)?
            }
        };
        streamer.finish()?;
        let text = self.tokenizer.decode(&generated.ids)?.trim().to_owned();
        Ok(GenerationOutput { text, prompt_ids, generated })
    }

    /// Features of images, those that the pruner needs among them, and how the tiles of each image lie.
    fn encode_images(
        &self,
        model: &Llava<B>,
        images: &[PathBuf],
        settings: &GenerationSettings<'_, B>,
        device: &B::Device,
    ) -> anyhow::Result<(Option<VisionFeatures<B>>, Vec<Tiling>)> {
        if images.is_empty() {
            return Ok((None, Vec::new()));
        }
        let needs = match (&settings.view, settings.pruner) {
            (View::Pruned { .. }, Some(pruner)) => pruner.needs(),
            _ => Needs::default(),
        };
        let (mut tiles, mut tilings) = (Vec::new(), Vec::new());
        for path in images {
            let Some(anyres) = &model.config.anyres else {
                tiles.push(Arc::new(preprocess_image(path, &self.processor)?));
                continue;
            };
            let config = TileConfig {
                pinpoints: anyres.image_grid_pinpoints.clone(),
                side: model.config.visual_grid(),
            };
            let image = load_image(path, &self.processor.loading)?;
            let tiled = self.processor.process_tiles(&image.pixels, &config);
            let TiledImage { tiles: image_tiles, tiling } =
                tiled.context("no resolution of image_grid_pinpoints is a grid of whole tiles")?;
            tiles.extend(image_tiles);
            tilings.push(tiling);
        }
        Ok((Some(model.encode(pixel_values(&tiles, device), &needs)?), tilings))
    }
}

impl GenerationRequest {
    /// Checks that there is something to answer, and that the prompt names as many images as there are, or none.
    ///
    /// # Errors
    /// What does not fit.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.prompt.trim().is_empty(), "the prompt is empty; ask something");
        with_image_placeholders(self).map(drop)
    }
}

/// The prompt with one `<image>` per image; where it names none, they come first. `\<image>` is the letters themselves.
///
/// # Errors
/// If it names some, but not as many as there are images.
fn with_image_placeholders(request: &GenerationRequest) -> anyhow::Result<String> {
    let (prompt, images) = (with_literal_images(&request.prompt), request.images.len());
    match prompt.matches(IMAGE_PLACEHOLDER).count() {
        0 => Ok(format!("{}{prompt}", format!("{IMAGE_PLACEHOLDER}\n").repeat(images))),
        marks if marks == images => Ok(prompt.into_owned()),
        marks => anyhow::bail!(
            "the prompt has {marks} <image> but there are {images} image(s); make them equal (where the text <image> itself is \
             meant, write \\<image>)"
        ),
    }
}
