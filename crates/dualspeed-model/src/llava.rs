//! The whole model: vision tower, projector, pruner, isolator, splice, language model.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::anyres::{self, TileLayout};
use crate::config::{LlavaConfig, LoraConfig, PositionPolicy};
use crate::error::ModelError;
use crate::forward::{Forward, StepContext, View};
use crate::freeze::{Freezable, Frozen};
use crate::init::Init;
use crate::llama::{Llama, LlamaOptions};
use crate::lora::Lora;
use crate::projector::MlpProjector;
use crate::pruner::{
    KeptTokens, PruneError, Pruner, QuestionTokens, Tiles, VisualTokens, keep_all, select,
};
use crate::splice::{
    IGNORE_INDEX, IMAGE_TOKEN_INDEX, ImageRows, SpliceOptions, SplicePlan, TextBatch,
};
use crate::stages::cast;
use crate::towers::Tower;
use crate::vision::{Needs, VisionFeatures, VisionTower};

/// A LLaVA-family model with a mode isolator and, by option, low-rank adapters.
#[derive(Module, Debug)]
pub struct Llava<B: Backend> {
    /// The vision tower; never trained here, never in a record.
    pub vision_tower: Frozen<Tower<B>>,
    /// From vision features to the embedding space.
    pub mm_projector: Freezable<MlpProjector<B>>,
    /// Ends each row of patches of an image of several tiles, `[d]`.
    pub image_newline: Freezable<Option<Param<Tensor<B, 1>>>>,
    /// The soft prompt M `[l, d]` put before pruned visual tokens.
    pub mode_isolator: Freezable<Option<Param<Tensor<B, 2>>>>,
    /// The decoder.
    pub language_model: Freezable<Llama<B>>,
    /// Low-rank adapters on the decoder.
    pub lora: Freezable<Option<Lora<B>>>,
    /// The configuration this was built from.
    pub config: LlavaConfig,
}

/// What the model is shown.
#[derive(Clone, Debug)]
pub enum VisionInput<B: Backend> {
    /// Normalised pixels, `[images, 3, side, side]`.
    Pixels(Tensor<B, 4>),
    /// The vision tower's output, from a cache.
    Features(VisionFeatures<B>),
}

impl LlavaConfig {
    /// Builds the model with weights that are a function of the seed alone.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is invalid.
    pub fn init<B: Backend>(&self, device: &B::Device, seed: u64) -> Result<Llava<B>, ModelError> {
        self.validate()?;
        let init = Init::new(seed, device);
        let d = self.text.hidden_size;
        let isolator = isolator(&init, self.isolator_length, d);
        let newline = self
            .anyres
            .is_some()
            .then(|| init.at("image_newline").normal([d], (d as f64).powf(-0.5)));
        let model = Llava {
            vision_tower: Frozen::new(self.vision.init(&init.at("vision_tower").frozen())),
            mm_projector: Freezable::new(MlpProjector::init(
                &init.at("mm_projector"),
                self.mm_projector_type,
                self.vision.hidden_size(),
                d,
            )),
            image_newline: Freezable::new(newline),
            mode_isolator: Freezable::new(isolator),
            language_model: Freezable::new(self.text.init(&init.at("language_model"))),
            lora: Freezable::new(None),
            config: self.clone(),
        };
        Ok(match &self.lora {
            Some(lora) => model.with_lora(lora, device, seed)?,
            None => model,
        })
    }
}

/// Source: the published code's init of the soft prompt, U(-1/sqrt(d), 1/sqrt(d)).
fn isolator<B: Backend>(init: &Init<'_, B>, l: usize, d: usize) -> Option<Param<Tensor<B, 2>>> {
    (l > 0).then(|| init.at("mode_isolator").uniform([l, d], (d as f64).powf(-0.5)))
}

impl<B: Backend> Llava<B> {
    /// The same model with a fresh mode isolator of another length; 0 takes it away.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is then invalid.
    pub fn with_isolator_length(
        mut self,
        length: usize,
        device: &B::Device,
        seed: u64,
    ) -> Result<Self, ModelError> {
        self.config.isolator_length = length;
        self.config.validate()?;
        let fresh = isolator(&Init::new(seed, device), length, self.config.text.hidden_size);
        self.mode_isolator = Freezable::new(fresh);
        Ok(self)
    }

    /// The same model with another vision tower, which is frozen.
    ///
    /// # Errors
    /// [`ModelError::FeatureShape`] if its features do not fit the projector.
    pub fn with_vision_tower(mut self, tower: impl Into<Tower<B>>) -> Result<Self, ModelError> {
        let tower = tower.into();
        let (tokens, hidden) = (self.config.vision.num_tokens(), self.config.vision.hidden_size());
        let geometry = tower.geometry();
        if (geometry.num_patches, geometry.hidden) != (tokens, hidden) {
            let found = vec![geometry.num_patches, geometry.hidden];
            return Err(ModelError::FeatureShape { found, tokens, hidden });
        }
        self.config.vision = tower.config();
        self.vision_tower = Frozen::new(tower);
        Ok(self)
    }

    /// The same model with fresh low-rank adapters, which change nothing until they are trained.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the adapter configuration is invalid.
    pub fn with_lora(
        mut self,
        config: &LoraConfig,
        device: &B::Device,
        seed: u64,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let init = Init::new(seed, device).at("lora");
        self.lora = Freezable::new(Some(Lora::init(&init, config, &self.config.text)));
        self.config.lora = Some(config.clone());
        Ok(self)
    }

    /// The same model with its adapters taken off, not folded in.
    pub fn without_lora(mut self) -> Self {
        self.lora = Freezable::new(None);
        self.config.lora = None;
        self
    }

    /// The same model with the adapters folded into the decoder.
    pub fn merge_lora(mut self) -> Self {
        if let Some(lora) = &*self.lora {
            let frozen = self.language_model.is_frozen();
            let merged = self.language_model.clone().into_inner().merge_lora(lora);
            self.language_model = Freezable::new(merged).set_frozen::<B>(frozen);
        }
        self.lora = Freezable::new(None);
        self.config.lora = None;
        self
    }

    /// Vision tower (without gradient) and projector (with): the part that the teacher and the
    /// student of a slow step share.
    ///
    /// # Errors
    /// [`ModelError::ImageShape`] or [`ModelError::FeatureShape`] if the input does not fit.
    pub fn encode(
        &self,
        input: VisionInput<B>,
        needs: Needs,
    ) -> Result<VisualTokens<B>, ModelError> {
        let geometry = self.vision_tower.geometry();
        let features = match input {
            VisionInput::Pixels(pixel_values) => {
                let found = pixel_values.dims();
                let side = geometry.image_size;
                if found[0] == 0 || found[1..] != [3, side, side] {
                    return Err(ModelError::ImageShape { found: found.to_vec(), expected: side });
                }
                self.vision_tower.features(pixel_values, needs)
            }
            VisionInput::Features(features) => features,
        };
        let mut features = features.detach(); // [images, n, d_v]
        features.hidden = cast(features.hidden, self.config.dtype.float());
        let (found, tokens, hidden) =
            (features.hidden.dims(), geometry.num_patches, geometry.hidden);
        if found[0] == 0 || found[1..] != [tokens, hidden] {
            return Err(ModelError::FeatureShape { found: found.to_vec(), tokens, hidden });
        }
        let projected = self.mm_projector.forward(features.hidden.clone()); // [images, n, d]
        Ok(VisualTokens::new(projected, features))
    }

    /// The forward: prune, splice, decode; hidden states at supervised positions only.
    ///
    /// `visual` holds the batch's images, sample-major; `None` for a text-only batch.
    ///
    /// # Errors
    /// [`ModelError`] if text, images, view and pruner do not fit together.
    pub fn forward(
        &self,
        batch: TextBatch<'_>,
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        ctx: &StepContext,
    ) -> Result<Forward<B>, ModelError> {
        let kept = self.prune(batch, visual, view, pruner, ctx)?; // [images, keep, d]
        self.forward_kept(batch, kept.as_ref(), view, ctx)
    }

    /// [`Llava::forward`] after pruning.
    ///
    /// # Errors
    /// [`ModelError`] if text, images and view do not fit together.
    pub fn forward_kept(
        &self,
        batch: TextBatch<'_>,
        kept: Option<&KeptTokens<B>>,
        view: &View,
        ctx: &StepContext,
    ) -> Result<Forward<B>, ModelError> {
        let plan = self.plan(batch, kept, view, self.config.max_length, &ctx.layouts)?;
        if plan.rows.is_empty() {
            return Err(ModelError::NothingSupervised { samples: ctx.sample_ids.clone() });
        }
        let inputs_embeds = self.splice(&plan, kept, view)?; // [b, s, d]
        let dropout = self.lora.as_ref().and_then(|_| ctx.dropout_states(&plan));
        let keep = ctx.recompute.map(|recompute| {
            let element = inputs_embeds.dtype().size();
            recompute.blocks(&self.config, plan.lengths.len() * plan.seq, element)
        });
        let options = LlamaOptions {
            rows: Some(&plan.rows),
            lora: self.lora.as_ref(),
            dropout: dropout.as_ref(),
            cache: None,
            keep: keep.as_deref(),
            positions: plan.positions.as_deref(),
            drop: kept.and_then(|kept| kept.drop_plan(&plan)),
        };
        let hidden = self.language_model.forward(inputs_embeds, options); // [supervised, d]
        Ok(Forward::new(hidden, plan, kept.and_then(|kept| kept.indices.clone())))
    }

    /// Applies the view to the visual tokens.
    ///
    /// # Errors
    /// [`ModelError`] if the pruner fails or the context does not name the samples.
    pub fn prune(
        &self,
        batch: TextBatch<'_>,
        visual: Option<&VisualTokens<B>>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        ctx: &StepContext,
    ) -> Result<Option<KeptTokens<B>>, ModelError> {
        let Some(visual) = visual else { return Ok(None) };
        let tiled = self.tiled(visual, &ctx.layouts)?;
        let visual = tiled.as_ref().unwrap_or(visual);
        let View::Pruned { keep, .. } = view else {
            return Ok(Some(KeptTokens { indices: None, ..keep_all(visual)? }));
        };
        let pruner = pruner.ok_or(ModelError::NoPruner)?;
        let images = batch.images_per_sample();
        let (placeholders, found) = (images.iter().sum(), visual.images());
        if placeholders != found {
            return Err(ModelError::ImageCount { placeholders, images: found });
        }
        let guided = pruner.needs().question.then(|| {
            let question = Some(self.question_tokens(batch, &images));
            VisualTokens { question, ..visual.clone() }
        });
        let visual = guided.as_ref().unwrap_or(visual);
        let mut kept = select(pruner, visual, *keep, &ctx.for_images(&images)?)?;
        if ctx.verify_picks {
            let tiles = visual.tiles.as_ref().and_then(|tiles| tiles.per_image.iter().max());
            kept.verify(pruner.name(), visual.tokens() * tiles.unwrap_or(&1))?;
        }
        let blocks = self.language_model.layers.len();
        if let Some(drop) = &kept.layer_drop
            && (0..blocks).all(|block| drop.keep_after(block, blocks, kept.keep()).is_none())
        {
            return Err(PruneError::NoDrop { pruner: pruner.name().to_owned(), blocks }.into());
        }
        if kept.unprojected {
            kept.tokens = self.mm_projector.forward(kept.tokens); // [images, keep, d]
            kept.unprojected = false;
        } else if ctx.project_kept
            && let Some(indices) = &kept.indices
        {
            kept.tokens = self.project_kept(visual, indices.clone());
        }
        Ok(Some(kept))
    }

    /// Projected tokens at `indices` `[images, keep]` of each image's rows, from the hidden states: `[images, keep, d]`.
    fn project_kept(&self, visual: &VisualTokens<B>, indices: Tensor<B, 2, Int>) -> Tensor<B, 3> {
        let hidden = visual.features.hidden.clone();
        let ([rows, n, d_v], [images, keep]) = (hidden.dims(), indices.dims());
        let per_image = visual.tiles.as_ref().map(|tiles| tiles.per_image.clone());
        let per_image = per_image.unwrap_or_else(|| vec![1; images]);
        let first_rows = per_image.iter().scan(0, |next, rows| {
            let first = *next;
            *next += rows;
            Some((first * n) as i64)
        });
        let starts = TensorData::new(first_rows.collect::<Vec<i64>>(), [images, 1]);
        let starts = Tensor::<B, 2, Int>::from_data(starts, &hidden.device());
        // Entries behind an image's length point nowhere in particular.
        let flat = (indices + starts).clamp(0, (rows * n) as i64 - 1).reshape([images * keep]);
        let kept = dualspeed_ops::select_rows(hidden.reshape([rows * n, d_v]), flat);
        self.mm_projector.forward(kept.reshape([images, keep, d_v]))
    }

    /// Visual tokens as tiles of images, with masks over what shows only canvas; `None` where each row is an image.
    fn tiled(
        &self,
        visual: &VisualTokens<B>,
        layouts: &[TileLayout],
    ) -> Result<Option<VisualTokens<B>>, ModelError> {
        if layouts.is_empty() {
            return Ok(None);
        }
        let (tiles, tokens) = (visual.rows(), visual.tokens());
        let fits = |layout: &TileLayout| layout.is_valid() && layout.tile_tokens() == tokens;
        let expected = layouts.iter().map(TileLayout::tiles).sum();
        if self.image_newline.is_none() || tiles != expected || !layouts.iter().all(fits) {
            return Err(ModelError::Tiles { tiles, tokens, expected });
        }
        let tiles = Tiles {
            per_image: layouts.iter().map(TileLayout::tiles).collect(),
            valid: Some(layouts.iter().flat_map(TileLayout::valid).collect()),
        };
        Ok(Some(VisualTokens { tiles: Some(tiles), ..visual.clone() }))
    }

    /// Embeddings of each image's question: the tokens of its sample between the first image and the
    /// first supervised token, or all before that where there are none. `images` counts those of each
    /// sample.
    pub fn question_tokens(&self, batch: TextBatch<'_>, images: &[usize]) -> QuestionTokens<B> {
        let mut questions: Vec<Vec<i64>> = Vec::new();
        for ((ids, labels), count) in batch.input_ids.iter().zip(batch.labels).zip(images) {
            let end = labels.iter().position(|label| *label != IGNORE_INDEX).unwrap_or(ids.len());
            let text = |ids: &[i64]| -> Vec<i64> {
                ids.iter().copied().filter(|id| *id != IMAGE_TOKEN_INDEX).collect()
            };
            let image = ids.iter().position(|id| *id == IMAGE_TOKEN_INDEX).unwrap_or(0);
            let after = text(&ids[image.min(end)..end]);
            let question = if after.is_empty() { text(&ids[..end]) } else { after };
            questions.extend(std::iter::repeat_n(question, *count));
        }
        let lengths: Vec<usize> = questions.iter().map(Vec::len).collect();
        let m = lengths.iter().copied().max().unwrap_or(0).max(1);
        let device = self.language_model.embed_tokens.weight.device();
        let (mut ids, mut there) = (Vec::new(), Vec::new());
        for question in &questions {
            ids.extend((0..m).map(|i| question.get(i).copied().unwrap_or(0)));
            there.extend((0..m).map(|i| if i < question.len() { 1f32 } else { 0.0 }));
        }
        let ids = TensorData::new(ids, [questions.len() * m]);
        let embeds = self.language_model.embed(Tensor::<B, 1, Int>::from_data(ids, &device));
        let there = TensorData::new(there, [questions.len() * m, 1]);
        let there = Tensor::<B, 2>::from_data(there, &device).cast(embeds.dtype());
        let d = embeds.dims()[1];
        let embeds = (embeds.detach() * there).reshape([questions.len(), m, d]);
        QuestionTokens { embeds, lengths }
    }

    /// Lays out a batch of text and kept visual tokens.
    pub(crate) fn plan(
        &self,
        batch: TextBatch<'_>,
        kept: Option<&KeptTokens<B>>,
        view: &View,
        max_length: Option<usize>,
        layouts: &[TileLayout],
    ) -> Result<SplicePlan, ModelError> {
        let (images, keep) = kept.map_or((0, 0), |kept| (kept.tokens.dims()[0], kept.keep()));
        if view.isolator() && self.mode_isolator.is_none() {
            return Err(ModelError::NoIsolator);
        }
        let options = SpliceOptions {
            vocab_size: self.config.text.vocab_size,
            isolator_length: if view.isolator() { self.config.isolator_length } else { 0 },
            pad_to_multiple: self.config.pad_to_multiple,
            max_length,
        };
        let policy = self.config.visual_positions;
        let rows = match kept {
            None => Vec::new(),
            Some(kept) if !layouts.is_empty() => {
                let newline = self.config.anyres.as_ref().map(|anyres| anyres.newline);
                anyres::image_rows(layouts, kept, newline.unwrap_or_default())
            }
            Some(kept) if policy == PositionPolicy::Original => {
                anyres::single_rows(kept, self.config.vision.num_tokens())
            }
            Some(kept) => {
                let lengths = kept.lengths.iter().enumerate();
                lengths.map(|(image, n)| ImageRows::consecutive(image * keep, *n)).collect()
            }
        };
        // The newline stands behind the tokens.
        let table = images * keep + usize::from(kept.is_some() && self.image_newline.is_some());
        Ok(SplicePlan::with_rows(batch, &rows, table, policy, options)?)
    }

    /// Embeddings of a planned batch, `[b, s, d]`.
    pub(crate) fn splice(
        &self,
        plan: &SplicePlan,
        kept: Option<&KeptTokens<B>>,
        view: &View,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let device = self.language_model.embed_tokens.weight.device();
        let text = (!plan.text_ids.is_empty()).then(|| {
            let ids = TensorData::new(plan.text_ids.clone(), [plan.text_ids.len()]);
            self.language_model.embed(Tensor::<B, 1, Int>::from_data(ids, &device)) // [text, d]
        });
        let visual = kept.map(|kept| {
            let [images, keep, d] = kept.tokens.dims();
            let tokens = kept.tokens.clone().reshape([images * keep, d]);
            match &*self.image_newline {
                Some(newline) => {
                    let dtype = tokens.dtype();
                    let newline = newline.val().unsqueeze::<2>(); // [1, d]
                    let newline =
                        if newline.dtype() == dtype { newline } else { newline.cast(dtype) };
                    Tensor::cat(vec![tokens, newline], 0)
                }
                None => tokens,
            }
        });
        // Only where an image stands: a text-only batch gives the isolator no gradient.
        let isolator = match (&*self.mode_isolator, kept) {
            (Some(isolator), Some(_)) if view.isolator() => Some(isolator.val()), // [l, d]
            _ => None,
        };
        // The trained parts (isolator, a projector's f32 output) join the activations' type here.
        let dtype = self.config.dtype.float();
        let [text, visual, isolator] = [text, visual, isolator].map(|x| x.map(|x| cast(x, dtype)));
        Ok(plan.assemble(text, visual, isolator).ok_or(crate::splice::SpliceError::Empty)?)
    }

    /// The output head, `[d, vocab]`.
    pub fn lm_head_weight(&self) -> Tensor<B, 2> {
        self.language_model.lm_head_weight()
    }
}
