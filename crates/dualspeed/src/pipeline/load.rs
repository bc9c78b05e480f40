//! Pipelines from run directories and from published checkpoints.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_data::{
    FitMode, ImageProcessor, SourceRegistry, TextTokenizer, read_processor, read_tokenizer,
    scene_tokenizer,
};
use dualspeed_model::import::{Adapter, AnyModel, LoadReport, load_extra};
use dualspeed_model::{Compat, Parts};
use dualspeed_ops::Backend;

use super::Pipeline;
use super::checkpoint::OpenedCheckpoint;
use super::gguf_tokenizer::gguf_tokenizer;
use super::model::GenerativeModel;
use super::options::PipelineOptions;
use super::text_files::eos_token_ids;
use crate::checkpoint_text::{CheckpointTemplate, checkpoint_template};
use crate::clip::with_visual_projection;
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
        Ok(Self { model, tokenizer, template, system, processor, eos_token_ids, image_token_id })
    }

    /// The pipeline of a checkpoint directory, an adapter directory, or a GGUF file, and how the loading went.
    ///
    /// # Errors
    /// What is missing or damaged, by file and key.
    pub fn from_checkpoint(
        path: &Path,
        options: &PipelineOptions,
        device: &B::Device,
    ) -> anyhow::Result<(Self, LoadReport)> {
        let opened = OpenedCheckpoint::open(path, options)?;
        let OpenedCheckpoint { checkpoint, base, adapter, vocabulary } = opened;
        let (model, report) = checkpoint.load::<B>(&options.load, device)?;
        let model = match model {
            AnyModel::Llava(model) => GenerativeModel::Llava(model),
            AnyModel::Decoder(model) => GenerativeModel::Decoder(model),
            AnyModel::Clip(_) => {
                anyhow::bail!("{} is a vision tower; it has nothing to say", path.display())
            }
        };
        let adapter = adapter.as_deref().or(options.adapter.as_deref());
        let model = with_parts(model, path, adapter, options, device)?;
        let tokenizer = match &vocabulary {
            Some(vocabulary) => gguf_tokenizer(vocabulary)?,
            None => TextTokenizer::from_dir(&base)?,
        };
        let template = match &options.template {
            Some(template) => template.clone(),
            None => {
                let embedded = vocabulary.as_ref().and_then(|own| own.chat_template.as_deref());
                let CheckpointTemplate { template, origin, known } =
                    checkpoint_template(&base, embedded)?;
                if !known {
                    tracing::warn!("{}: {origin}; {template} is used (--template)", base.display());
                }
                template
            }
        };
        let processor = image_processor_of(&base, options.fit, &model)?;
        let mut eos_token_ids = eos_token_ids(&base)?;
        eos_token_ids.push(tokenizer.eos_id());
        let system = options.system.clone();
        let image_token_id = checkpoint.config.image_token_id.or(tokenizer.image_id());
        let pipeline =
            Self { model, tokenizer, template, system, processor, eos_token_ids, image_token_id };
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

/// Puts the adapter, single parts and CLIP's projection on the model of `path`.
fn with_parts<B: Backend>(
    model: GenerativeModel<B>,
    path: &Path,
    adapter: Option<&Path>,
    options: &PipelineOptions,
    device: &B::Device,
) -> anyhow::Result<GenerativeModel<B>> {
    let mut model = model;
    if let Some(dir) = adapter {
        let GenerativeModel::Llava(llava) = model else {
            anyhow::bail!(
                "adapters are put on models with vision here; {} has none",
                path.display()
            )
        };
        model = GenerativeModel::Llava(Box::new(Adapter::open(dir)?.apply(*llava, device)?));
    }
    for file in &options.parts {
        let GenerativeModel::Llava(llava) = model else {
            anyhow::bail!("{} has no parts like {}", path.display(), file.display())
        };
        model = GenerativeModel::Llava(Box::new(load_extra(*llava, file, device)?));
    }
    if let Some(dir) = &options.clip {
        let GenerativeModel::Llava(llava) = model else {
            anyhow::bail!("--clip is for models with vision; {} has none", path.display())
        };
        model = GenerativeModel::Llava(Box::new(with_visual_projection(*llava, dir, device)?));
    }
    Ok(model)
}

/// The image processor of a directory, or LLaVA 1.5's for the tower's size.
fn image_processor_of<B: Backend>(
    dir: &Path,
    fit: Option<FitMode>,
    model: &GenerativeModel<B>,
) -> anyhow::Result<ImageProcessor> {
    let vision = match model {
        GenerativeModel::Llava(model) => model.config.vision.geometry(),
        GenerativeModel::Decoder(_) => return Ok(ImageProcessor::default()),
    };
    let side = vision.image_size;
    let found = match read_processor(dir) {
        Ok(found) => found.map(|ProcessorFile { processor, .. }| processor),
        // With --fit, whatever the file says is overridden.
        Err(error) if fit.is_none() => return Err(error.into()),
        Err(_) => None,
    };
    let mut processor =
        found.unwrap_or_else(|| ImageProcessor::new(side, FitMode::Pad, vision.normalisation));
    processor.fit = fit.unwrap_or(processor.fit);
    anyhow::ensure!(
        processor.size == side,
        "{}: images are made {} pixels a side, the vision tower takes {side}; the files do not belong together",
        dir.display(),
        processor.size
    );
    Ok(processor)
}
