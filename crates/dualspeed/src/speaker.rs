//! A model with everything that stands between it and people: tokenizer, template, image processor, end tokens. From
//! a run directory, a checkpoint in one of the published formats, or a GGUF file.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_data::{
    BpeVocabulary, Conversation, FitMode, ImageProcessor, SentencePieceVocabulary, Template,
    TextTokenizer, TileConfig, TiledImage, Tiling, Turn, encode_prompt, load_image,
    preprocess_image, read_processor, read_tokenizer, scene_tokenizer,
};
use dualspeed_model::import::{
    Adapter, AnyModel, Checkpoint, Gguf, GgufVocabulary, LoadOptions, LoadReport, load_extra,
};
use dualspeed_model::{
    GenerateOptions, Generated, Llama, Llava, LlavaConfig, Needs, Pruner, TileLayout, View,
    VisionInput, VisualTokens,
};
use dualspeed_ops::Backend;
use dualspeed_train::features::pixel_values;

use crate::clip_words::with_projection;
use crate::run;

/// Vision and language, or language alone.
#[derive(Debug)]
pub enum Model<B: Backend> {
    /// Vision and language.
    Llava(Box<Llava<B>>),
    /// Language alone.
    Llama(Box<Llama<B>>),
}

/// A model that can be asked.
#[derive(Debug)]
pub struct Speaker<B: Backend> {
    /// The model.
    pub model: Model<B>,
    /// Its tokenizer.
    pub tokenizer: TextTokenizer,
    /// How conversations are written out for it.
    pub template: Template,
    /// The system prompt: `None` is the template's own.
    pub system: Option<String>,
    /// How images become its pixels.
    pub processor: ImageProcessor,
    /// Tokens that end its answers.
    pub eos_token_ids: Vec<i64>,
    /// The id that stands for visual tokens in transformers' prompts.
    pub image_token_id: Option<i64>,
}

/// How a checkpoint is made to speak; what is left out, its files say.
#[derive(Clone, Debug, Default)]
pub struct SpeakerOptions {
    /// Precision and vision tower.
    pub load: LoadOptions,
    /// A PEFT adapter to put on it.
    pub adapter: Option<PathBuf>,
    /// Files of single parts to put on it: `mm_projector.bin`, `mode_isolator.bin`.
    pub extras: Vec<PathBuf>,
    /// The CLIP checkpoint that the vision tower is from: its projection of images, for text-guided pruners.
    pub clip: Option<PathBuf>,
    /// The template.
    pub template: Option<Template>,
    /// The system prompt.
    pub system: Option<String>,
    /// How rectangles become squares.
    pub fit: Option<FitMode>,
}

/// One question.
#[derive(Clone, Debug, Default)]
pub struct Question {
    /// What is asked; `<image>` marks where images stand, else they come first.
    pub prompt: String,
    /// Image files.
    pub images: Vec<PathBuf>,
}

/// One answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The text.
    pub text: String,
    /// Ids of the prompt, -200 where an image stands.
    pub prompt_ids: Vec<i64>,
    /// Ids and log-probabilities of the answer.
    pub generated: Generated,
}

/// The part of the model that is wanted and how, for one or many questions.
pub struct Asking<'a, B: Backend> {
    /// All visual tokens or some.
    pub view: View,
    /// Which, if some.
    pub pruner: Option<&'a dyn Pruner<B>>,
    /// Length, sampling. End tokens are the speaker's.
    pub options: GenerateOptions,
}

impl<B: Backend> Speaker<B> {
    /// The model that a run ended with.
    ///
    /// # Errors
    /// If `dir` is no run directory or its files are damaged.
    pub fn from_run(dir: &Path, device: &B::Device) -> anyhow::Result<Self> {
        let config = run::config(dir)?;
        let (tokenizer, template, system, fit) = match &config.data.train.llava_json {
            Some(json) => {
                let tokenizer = read_tokenizer(&json.tokenizer)?;
                (tokenizer, json.template, json.system.clone(), json.fit)
            }
            None => {
                let scenes = config.data.train.scene_config();
                let template = scenes.map(|scenes| scenes.template).unwrap_or_default();
                let tokenizer = match &config.data.train.tokenizer {
                    Some(path) => read_tokenizer(path)?,
                    None => scene_tokenizer()?,
                };
                (tokenizer, template, None, FitMode::Pad)
            }
        };
        let model = Model::Llava(Box::new(run::load(dir, device)?));
        let vision = &config.model.vision;
        let processor = ImageProcessor::new(vision.image_size(), fit, vision.normalisation());
        let eos_token_ids = vec![tokenizer.eos_id()];
        let image_token_id = None;
        Ok(Self { model, tokenizer, template, system, processor, eos_token_ids, image_token_id })
    }

    /// The model of a checkpoint directory, an adapter directory, or a GGUF file.
    ///
    /// # Errors
    /// What is missing or damaged, by file and key.
    pub fn from_checkpoint(
        path: &Path,
        options: &SpeakerOptions,
        device: &B::Device,
    ) -> anyhow::Result<(Self, LoadReport)> {
        let Opened { checkpoint, base, adapter, vocabulary } = open(path, options)?;
        let (model, report) = checkpoint.load::<B>(&options.load, device)?;
        let mut model = match model {
            AnyModel::Llava(model) => Model::Llava(model),
            AnyModel::Llama(model) => Model::Llama(model),
            AnyModel::Clip(_) => {
                anyhow::bail!("{} is a vision tower; it has nothing to say", path.display())
            }
        };
        if let Some(dir) = adapter.as_deref().or(options.adapter.as_deref()) {
            let Model::Llava(llava) = model else {
                anyhow::bail!(
                    "adapters are put on models with vision here; {} has none",
                    path.display()
                )
            };
            model = Model::Llava(Box::new(Adapter::open(dir)?.apply(*llava, device)?));
        }
        for file in &options.extras {
            let Model::Llava(llava) = model else {
                anyhow::bail!("{} has no parts like {}", path.display(), file.display())
            };
            model = Model::Llava(Box::new(load_extra(*llava, file, device)?));
        }
        if let Some(dir) = &options.clip {
            let Model::Llava(llava) = model else {
                anyhow::bail!("--clip is for models with vision; {} has none", path.display())
            };
            model = Model::Llava(Box::new(with_projection(*llava, dir, device)?));
        }
        let tokenizer = match &vocabulary {
            Some(vocabulary) => gguf_tokenizer(vocabulary)?,
            None => TextTokenizer::from_dir(&base)?,
        };
        let texts = read_json(&base.join("tokenizer_config.json"))?.unwrap_or_default();
        // What our own export says beside what everybody says.
        let own = texts.get("dualspeed_template").cloned();
        let own = own.and_then(|name| serde_json::from_value(name).ok());
        let template = options.template.or(own).unwrap_or_else(|| {
            let jinja = vocabulary.as_ref().and_then(|vocabulary| vocabulary.chat_template.clone());
            let jinja = jinja.or_else(|| chat_template(&base));
            let found = jinja.as_deref().and_then(Template::recognise);
            found.unwrap_or(Template::VicunaV1)
        });
        let processor = processor(&base, options.fit, &model)?;
        let mut eos_token_ids = end_tokens(&base)?;
        eos_token_ids.push(tokenizer.eos_id());
        let own = texts.get("dualspeed_system").and_then(|system| system.as_str());
        let system = options.system.clone().or(own.map(str::to_owned));
        let image_token_id = checkpoint.config.image_token_id;
        let speaker =
            Self { model, tokenizer, template, system, processor, eos_token_ids, image_token_id };
        speaker.check_vocabulary()?;
        Ok((speaker, report))
    }

    /// A tokenizer of another model is the commonest mistake, and its answers are the strangest.
    fn check_vocabulary(&self) -> anyhow::Result<()> {
        let (ids, rows) = (self.tokenizer.vocab_size(), self.text_config().vocab_size);
        anyhow::ensure!(
            self.tokenizer.eos_id() < rows as i64,
            "the tokenizer's end token is {} but the model's vocabulary has {rows} entries (the tokenizer's {ids}); \
             the two do not belong together",
            self.tokenizer.eos_id()
        );
        Ok(())
    }

    /// The decoder's configuration.
    pub fn text_config(&self) -> &dualspeed_model::LlamaConfig {
        match &self.model {
            Model::Llava(model) => &model.config.text,
            Model::Llama(model) => &model.config,
        }
    }

    /// The whole model's configuration, if it can see.
    pub fn llava_config(&self) -> Option<&LlavaConfig> {
        match &self.model {
            Model::Llava(model) => Some(&model.config),
            Model::Llama(_) => None,
        }
    }

    /// Answers a question; `each` gets the text piece by piece as it comes.
    ///
    /// # Errors
    /// If an image cannot be read, or question and model do not fit together.
    pub fn answer(
        &self,
        question: &Question,
        asking: &Asking<'_, B>,
        device: &B::Device,
        each: &mut dyn FnMut(&str),
    ) -> anyhow::Result<Answer> {
        anyhow::ensure!(!question.prompt.trim().is_empty(), "the prompt is empty; ask something");
        let conversation = Conversation {
            system: self.system.clone(),
            turns: vec![Turn::open(with_images(question)?)],
        };
        let prompt_ids = encode_prompt(&conversation, self.template, &self.tokenizer)?;
        let options = GenerateOptions {
            eos_token_ids: self.eos_token_ids.clone(),
            prompt: question.prompt.clone(),
            ..asking.options.clone()
        };
        let mut said = Said { tokenizer: &self.tokenizer, ids: Vec::new(), shown: 0, failed: None };
        let mut on_token = |id| said.push(id, each);
        let generated = match &self.model {
            Model::Llama(model) => {
                anyhow::ensure!(
                    question.images.is_empty(),
                    "this model has no eyes; ask without --image"
                );
                model.generate_each(&prompt_ids, &options, &mut on_token)?
            }
            Model::Llava(model) => {
                let (visual, layouts) = self.look(model, &question.images, asking, device)?;
                let options = GenerateOptions { layouts, ..options };
                model.generate_each(
                    &prompt_ids,
                    visual.as_ref(),
                    &asking.view,
                    asking.pruner,
                    &options,
                    &mut on_token,
                )?
            }
        };
        if let Some(error) = said.failed {
            return Err(error.into());
        }
        let text = self.tokenizer.decode(&generated.ids)?.trim().to_owned();
        Ok(Answer { text, prompt_ids, generated })
    }

    /// Visual tokens of a question's images, and how their tiles lie.
    fn look(
        &self,
        model: &Llava<B>,
        images: &[PathBuf],
        asking: &Asking<'_, B>,
        device: &B::Device,
    ) -> anyhow::Result<(Option<VisualTokens<B>>, Vec<TileLayout>)> {
        if images.is_empty() {
            return Ok((None, Vec::new()));
        }
        let needs = match (&asking.view, asking.pruner) {
            (View::Pruned { .. }, Some(pruner)) => pruner.needs(),
            _ => Needs::default(),
        };
        let (mut tiles, mut layouts) = (Vec::new(), Vec::new());
        for path in images {
            let Some(anyres) = &model.config.anyres else {
                tiles.push(Arc::new(preprocess_image(path, &self.processor)?));
                continue;
            };
            let config = TileConfig {
                pinpoints: anyres.image_grid_pinpoints.clone(),
                side: model.config.vision.grid(),
            };
            let image = load_image(path, &self.processor.limits)?;
            let tiled = self.processor.process_tiles(&image.pixels, &config);
            let TiledImage { tiles: own, tiling } =
                tiled.context("no resolution of image_grid_pinpoints is a grid of whole tiles")?;
            tiles.extend(own);
            let Tiling { side, grid, rows, columns, .. } = tiling;
            layouts.push(TileLayout { side, grid, rows, columns });
        }
        let pixels = VisionInput::Pixels(pixel_values(&tiles, device));
        Ok((Some(model.encode(pixels, needs)?), layouts))
    }
}

/// What was generated so far, and how much of it is on the screen.
struct Said<'a> {
    tokenizer: &'a TextTokenizer,
    ids: Vec<i64>,
    shown: usize,
    failed: Option<dualspeed_data::EncodeError>,
}

impl Said<'_> {
    fn push(&mut self, id: i64, each: &mut dyn FnMut(&str)) -> ControlFlow<()> {
        self.ids.push(id);
        match self.tokenizer.decode(&self.ids) {
            Ok(text) => {
                // A character of several tokens shows as U+FFFD until its last one is there.
                let whole = text.trim_end_matches('\u{fffd}');
                if let Some(new) = whole.get(self.shown..).filter(|new| !new.is_empty()) {
                    each(if self.shown == 0 { new.trim_start() } else { new });
                    self.shown = whole.len();
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.failed = Some(error);
                ControlFlow::Break(())
            }
        }
    }
}

/// A checkpoint on disk, before its weights are read.
pub struct Opened {
    /// Configuration and headers.
    pub checkpoint: Checkpoint,
    /// Where tokenizer and processor lie.
    pub base: PathBuf,
    /// The adapter to put on it, if the path was one.
    pub adapter: Option<PathBuf>,
    /// The vocabulary of a GGUF file without a `tokenizer.json` beside it.
    pub vocabulary: Option<GgufVocabulary>,
}

/// Opens a checkpoint directory, an adapter directory (and then its base), or a GGUF file.
///
/// # Errors
/// What is missing or damaged, by file.
pub fn open(path: &Path, options: &SpeakerOptions) -> anyhow::Result<Opened> {
    anyhow::ensure!(path.exists(), "{} is not there; check the path", path.display());
    if path.is_file() {
        let gguf = Gguf::open(path)?;
        let base = path.parent().unwrap_or(Path::new(".")).to_owned();
        let vocabulary = match base.join("tokenizer.json").is_file() {
            true => None,
            false => Some(gguf.vocabulary().with_context(|| {
                format!("{} has no vocabulary; put tokenizer.json beside it", path.display())
            })?),
        };
        let checkpoint = gguf.into_checkpoint()?;
        return Ok(Opened { checkpoint, base, adapter: None, vocabulary });
    }
    let (base, adapter) = match Adapter::is_at(path) && !path.join("model.safetensors").exists() {
        true => (base_of(path)?, Some(path.to_owned())),
        false => (path.to_owned(), None),
    };
    let checkpoint = Checkpoint::open(&base, &options.load)?;
    Ok(Opened { checkpoint, base, adapter, vocabulary: None })
}

/// The base model of an adapter directory: a path beside it or from here.
fn base_of(dir: &Path) -> anyhow::Result<PathBuf> {
    let name = Adapter::open(dir)?.base_model.with_context(|| {
        format!(
            "{} names no base model; pass the base with --model and this with --adapter",
            dir.display()
        )
    })?;
    [dir.join(&name), PathBuf::from(&name)].into_iter().find(|path| path.is_dir()).with_context(|| {
        format!(
            "the base model {name:?} of {} is no directory here; pass the base with --model and this with --adapter",
            dir.display()
        )
    })
}

/// A question with one `<image>` per file; where it names none, they come first.
fn with_images(question: &Question) -> anyhow::Result<String> {
    let (prompt, images) = (&question.prompt, question.images.len());
    match prompt.matches("<image>").count() {
        0 => Ok(format!("{}{prompt}", "<image>\n".repeat(images))),
        marks if marks == images => Ok(prompt.clone()),
        marks => anyhow::bail!(
            "the prompt has {marks} <image> but there are {images} image(s); make them equal"
        ),
    }
}

/// The tokenizer of a GGUF file.
///
/// # Errors
/// If its algorithm is not known, or its parts do not fit together.
pub fn gguf_tokenizer(vocabulary: &GgufVocabulary) -> anyhow::Result<TextTokenizer> {
    let GgufVocabulary { model, pre, tokens, special, merges, bos, eos, .. } = vocabulary.clone();
    Ok(match model.as_str() {
        "gpt2" => BpeVocabulary { tokens, merges, pre, special, bos, eos }.tokenizer()?,
        "llama" => {
            let user_defined = vocabulary.user_defined.clone();
            let control = special.into_iter().filter(|id| !user_defined.contains(id)).collect();
            SentencePieceVocabulary {
                tokens,
                scores: vocabulary.scores.clone(),
                control,
                user_defined,
                unknown: vocabulary.unknown,
                bos,
                eos,
                add_space_prefix: vocabulary.add_space_prefix,
            }
            .tokenizer()?
        }
        other => anyhow::bail!(
            "the file's tokenizer is of the kind {other:?}; gpt2 and llama are read from GGUF: put the model's \
             tokenizer.json beside the file"
        ),
    })
}

fn read_json(path: &Path) -> anyhow::Result<Option<serde_json::Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = serde_json::from_slice(&text);
    Ok(Some(json.with_context(|| format!("{} is malformed", path.display()))?))
}

/// The chat template in Jinja, from wherever a directory keeps it.
fn chat_template(dir: &Path) -> Option<String> {
    if let Ok(text) = std::fs::read_to_string(dir.join("chat_template.jinja")) {
        return Some(text);
    }
    ["chat_template.json", "tokenizer_config.json"].iter().find_map(|name| {
        let json = read_json(&dir.join(name)).ok()??;
        json.get("chat_template")?.as_str().map(str::to_owned)
    })
}

/// End tokens of `generation_config.json`, else of `config.json`: one or several.
fn end_tokens(dir: &Path) -> anyhow::Result<Vec<i64>> {
    for name in ["generation_config.json", "config.json"] {
        let Some(json) = read_json(&dir.join(name))? else { continue };
        match json.get("eos_token_id") {
            Some(serde_json::Value::Array(ids)) => {
                return Ok(ids.iter().filter_map(serde_json::Value::as_i64).collect());
            }
            Some(id) if id.is_i64() => return Ok(id.as_i64().into_iter().collect()),
            _ => {}
        }
    }
    Ok(Vec::new())
}

/// The image processor of a directory, or LLaVA 1.5's for the tower's size.
fn processor<B: Backend>(
    dir: &Path,
    fit: Option<FitMode>,
    model: &Model<B>,
) -> anyhow::Result<ImageProcessor> {
    let vision = match model {
        Model::Llava(model) => &model.config.vision,
        Model::Llama(_) => return Ok(ImageProcessor::default()),
    };
    let side = vision.image_size();
    let found = match read_processor(dir) {
        Ok(found) => found.map(|ProcessorFile { processor, .. }| processor),
        // With --fit, whatever the file says is overridden.
        Err(error) if fit.is_none() => return Err(error.into()),
        Err(_) => None,
    };
    let mut processor =
        found.unwrap_or_else(|| ImageProcessor::new(side, FitMode::Pad, vision.normalisation()));
    processor.fit = fit.unwrap_or(processor.fit);
    anyhow::ensure!(
        processor.size == side,
        "{}: images are made {} pixels a side, the vision tower takes {side}; the files do not belong together",
        dir.display(),
        processor.size
    );
    Ok(processor)
}
