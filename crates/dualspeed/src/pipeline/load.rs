//! Pipelines from run directories and from published checkpoints.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::{
    FitMode, ImageProcessor, SourceRegistry, TextTokenizer, read_tokenizer, scene_tokenizer,
};
use dualspeed_model::import::{AnyModel, LoadReport};
use dualspeed_model::{Compat, Parts, require_dtype};
use dualspeed_ops::Backend;

use super::Pipeline;
use super::gguf_tokenizer::gguf_tokenizer;
use super::model::GenerativeModel;
use super::options::PipelineOptions;
use super::text_files::eos_token_ids;
use crate::checkpoint::OpenedCheckpoint;
use crate::checkpoint_text::{CheckpointTemplate, checkpoint_template};
use crate::clip::with_visual_projection;
use crate::output::note;
use crate::run_dir;

impl<B: Backend> Pipeline<B> {
    /// The pipeline of the model that a run ended with, or of the newest checkpoint of one that has not ended. `parts` and
    /// `sources` are what its configuration may name.
    ///
    /// # Errors
    /// If `dir` is no run directory, its files are damaged, or it names a part or data set that is not there.
    pub fn from_run(
        dir: &Path,
        parts: &Parts,
        sources: &SourceRegistry,
        device: &B::Device,
    ) -> anyhow::Result<Self> {
        let config = run_dir::read_config(dir)?;
        let data = &config.data.train;
        let (tokenizer, template, system, fit) = match (&data.llava_json, &data.source) {
            (Some(json), _) => {
                let path = json.tokenizer.as_deref().context("the run names no tokenizer")?;
                (read_tokenizer(path)?, json.template(), json.system.clone(), json.fit())
            }
            (None, Some(name)) => {
                let source = data.open(&config.model, config.seed, config.compat, sources)?;
                let tokenizer = match (&data.tokenizer, source.tokenizer()) {
                    (Some(path), _) => read_tokenizer(path)?,
                    (None, Some(own)) => TextTokenizer::clone(&own),
                    (None, None) => anyhow::bail!(
                        "the data set `{name}` tells no tokenizer; name one in data.train.tokenizer"
                    ),
                };
                (tokenizer, source.template(), None, FitMode::Pad)
            }
            (None, None) => {
                let template = data.scene_config().unwrap_or_default().template;
                let tokenizer = match &data.tokenizer {
                    Some(path) => read_tokenizer(path)?,
                    None => scene_tokenizer()?,
                };
                (tokenizer, template, None, FitMode::Pad)
            }
        };
        let tokenizer = tokenizer.official(config.compat == Compat::Official);
        let model = GenerativeModel::Llava(Box::new(run_dir::load_model(dir, parts, device)?));
        let vision = config.model.vision.geometry();
        let processor = ImageProcessor {
            loading: data.images,
            ..ImageProcessor::new(vision.image_size, fit, vision.normalisation)
        };
        let eos_token_ids = vec![tokenizer.eos_id()];
        let image_token_id = tokenizer.image_id();
        let text_files = match (&data.llava_json, &data.tokenizer) {
            (Some(json), _) => json.tokenizer.as_ref(),
            (None, path) => path.as_ref(),
        };
        let text_files = text_files.and_then(|path| path.parent()).map(Path::to_owned);
        Ok(Self {
            model,
            tokenizer,
            template,
            system,
            processor,
            eos_token_ids,
            image_token_id,
            text_files,
        })
    }

    /// The pipeline of a checkpoint, whatever [`OpenedCheckpoint::open`] opens, and how the loading went. `parts` are vision towers
    /// that its configuration may name.
    ///
    /// # Errors
    /// What is missing or damaged, by file and key; before anything is read, if the backend has no numbers of the type asked for.
    pub fn from_checkpoint(
        path: &Path,
        options: &PipelineOptions,
        parts: &Parts,
        device: &B::Device,
    ) -> anyhow::Result<(Self, LoadReport)> {
        if let Some(dtype) = options.load.dtype {
            require_dtype::<B>(dtype.into(), device)?;
        }
        let opened = OpenedCheckpoint::open(path, &options.load, options.progress)?;
        for line in opened.notes() {
            note(format_args!("{line}"));
        }
        let (model, report) = opened.checkpoint.load_with::<B>(parts, &opened.load, device)?;
        let model = match model {
            AnyModel::Llava(model) => GenerativeModel::Llava(model),
            AnyModel::Decoder(model) => GenerativeModel::Decoder(model),
            AnyModel::Clip(_) => {
                anyhow::bail!("{} is a vision tower; it has nothing to say", path.display())
            }
        };
        let model = with_projection(model, path, options.clip.as_deref(), device)?;
        let processor = image_processor_of(&opened, options.fit, &model)?;
        let template = match &options.template {
            Some(template) => template.clone(),
            None => {
                let CheckpointTemplate { template, origin, known } = checkpoint_template(&opened)?;
                if !known {
                    tracing::warn!("{}: {origin}; {template} is used (--template)", path.display());
                }
                template
            }
        };
        let OpenedCheckpoint { checkpoint, base, vocabulary, .. } = opened;
        let tokenizer = match &vocabulary {
            Some(vocabulary) => gguf_tokenizer(vocabulary)?,
            None => TextTokenizer::from_dir(&base)?,
        };
        let mut eos_token_ids = eos_token_ids(&base)?;
        eos_token_ids.push(tokenizer.eos_id());
        let system = options.system.clone();
        let image_token_id = checkpoint.config.image_token_id.or(tokenizer.image_id());
        let pipeline = Self {
            model,
            tokenizer,
            template,
            system,
            processor,
            eos_token_ids,
            image_token_id,
            text_files: vocabulary.is_none().then_some(base),
        };
        pipeline.check_vocabulary()?;
        Ok((pipeline, report))
    }

    /// Refuses a tokenizer whose end token the model does not have: that of another model.
    fn check_vocabulary(&self) -> anyhow::Result<()> {
        let (ids, embeddings) = (self.tokenizer.vocab_size(), self.model.text_config().vocab_size);
        anyhow::ensure!(
            self.tokenizer.eos_id() < embeddings as i64,
            "the tokenizer's end token is {} but the model's vocabulary has {embeddings} entries (the tokenizer's {ids}); \
             the two do not belong together",
            self.tokenizer.eos_id()
        );
        Ok(())
    }
}

/// Puts the projection into CLIP's shared space on the model of `path`.
fn with_projection<B: Backend>(
    model: GenerativeModel<B>,
    path: &Path,
    clip: Option<&Path>,
    device: &B::Device,
) -> anyhow::Result<GenerativeModel<B>> {
    match (clip, model) {
        (None, model) => Ok(model),
        (Some(dir), GenerativeModel::Llava(llava)) => {
            Ok(GenerativeModel::Llava(Box::new(with_visual_projection(*llava, dir, device)?)))
        }
        (Some(_), GenerativeModel::Decoder(_)) => {
            anyhow::bail!("--clip is for models with vision; {} has none", path.display())
        }
    }
}

/// The image processor of a checkpoint: sizes and normalisation of its files, else of its vision tower; how rectangles become squares as
/// the caller says, else as its files do.
fn image_processor_of<B: Backend>(
    opened: &OpenedCheckpoint,
    fit: Option<FitMode>,
    model: &GenerativeModel<B>,
) -> anyhow::Result<ImageProcessor> {
    let vision = match model {
        GenerativeModel::Llava(model) => model.config.vision.geometry(),
        GenerativeModel::Decoder(_) => return Ok(ImageProcessor::default()),
    };
    let side = vision.image_size;
    let plain = |fit| ImageProcessor::new(side, fit, vision.normalisation);
    let (found, fit) = match fit {
        // Whatever the file says is overridden, even where it cannot be read.
        Some(fit) => (opened.image_processor().ok().flatten(), fit),
        None => (opened.image_processor()?, opened.image_fit()?.0),
    };
    let place = found.as_ref().map_or(&*opened.base, |(_, dir)| *dir).to_owned();
    let processor = found.map_or_else(|| plain(fit), |(processor, _)| processor);
    anyhow::ensure!(
        processor.size == side,
        "{}: images are made {} pixels a side, the vision tower takes {side}; the files do not belong together",
        place.display(),
        processor.size
    );
    Ok(ImageProcessor { fit, ..processor })
}
