//! The forward: which visual tokens, in which places, through the decoder. Training, teacher, evaluation and generation go this way.

use burn::module::{AutodiffModule, Module};
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use dualspeed_data::{IGNORE_INDEX, IMAGE_TOKEN_INDEX, Tiling};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::context::{Forward, Inputs, StepContext, View, Wanted};
use super::llava::Llava;
use crate::config::PositionPolicy;
use crate::error::ModelError;
use crate::language::{DecoderOptions, KvCache};
use crate::layout::{
    ImageSlots, LayoutError, LayoutOptions, PaddedBatch, Positions, TextBatch, lay_out,
};
use crate::nn::cast;
use crate::projector::Projector;
use crate::pruner::{
    PruneError, Pruner, QuestionTokens, Selection, Tiles, VisualTokens, select, select_all,
};
use crate::vision::VisionTower;
use crate::vision::features::{Needs, QUESTION, VisionFeatures};

impl<B: Backend> Llava<B> {
    /// The forward: hidden states at the wanted positions, of one view of a batch.
    ///
    /// # Errors
    /// [`ModelError`] if text, images, view and pruner do not fit together, or nothing is supervised.
    pub fn forward(
        &self,
        inputs: &Inputs<'_, B>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        ctx: &StepContext,
    ) -> Result<Forward<B>, ModelError> {
        let selection = self.select(inputs, view, pruner, ctx)?; // which visual tokens
        self.run(inputs, selection.as_ref(), view, ctx, None)
    }

    /// [`Llava::forward`] with the visual tokens chosen already; a prompt's keys and values go into `cache`.
    ///
    /// # Errors
    /// [`ModelError`] if text, images and view do not fit together, or nothing is supervised.
    pub fn run(
        &self,
        inputs: &Inputs<'_, B>,
        selection: Option<&Selection<B>>,
        view: &View,
        ctx: &StepContext,
        cache: Option<&mut KvCache<B>>,
    ) -> Result<Forward<B>, ModelError> {
        let batch = self.lay_out(inputs, selection, view, ctx.wanted)?; // which place each has
        let wanted = match ctx.wanted {
            Wanted::Supervised => Some(batch.supervised.clone()),
            Wanted::Last => Some(batch.last_rows()),
            Wanted::All => None,
        };
        if wanted.as_ref().is_some_and(Vec::is_empty) {
            return Err(ModelError::NothingSupervised { samples: inputs.sample_ids.to_vec() });
        }
        let inputs_embeds = self.embed(inputs, selection, &batch, view)?; // [b, s, d]
        let (rows, element) = (batch.samples() * batch.seq, inputs_embeds.dtype().size());
        let keep = ctx.recompute.map(|recompute| recompute.blocks(&self.config, rows, element));
        let dropout = ctx.dropout_states(&batch, inputs.sample_ids);
        let options = DecoderOptions {
            wanted: wanted.as_deref(),
            lora: self.lora.as_ref(),
            dropout: dropout.as_ref().filter(|_| self.lora.is_some()),
            cache,
            keep: keep.as_deref(),
            positions: batch.positions.as_deref(),
            // A cache continues one prompt.
            next_position: batch.next_positions.first().copied(),
            drop: selection.and_then(|selection| selection.drop_plan(&batch)),
        };
        let hidden = self.language_model.forward(inputs_embeds, options); // [wanted, d]
        let n = self.config.num_visual_tokens();
        Ok(Forward::new(hidden, batch, selection.and_then(|selection| selection.picks(n))))
    }

    /// The vision tower's features of `pixel_values` `[images, 3, side, side]`: without gradient unless the tower is trained.
    ///
    /// # Errors
    /// [`ModelError::ImageShape`] if the pixels do not fit the tower.
    pub fn encode(
        &self,
        pixel_values: Tensor<B, 4>,
        needs: &Needs,
    ) -> Result<VisionFeatures<B>, ModelError> {
        let (found, side) = (pixel_values.dims(), self.vision_tower.geometry().image_size);
        if found[0] == 0 || found[1..] != [3, side, side] {
            return Err(ModelError::ImageShape { found: found.to_vec(), expected: side });
        }
        let features = self.vision_tower.features(pixel_values, &needs.of_tower());
        Ok(if self.vision_tower.is_frozen() { features.detach() } else { features })
    }

    /// Decides which visual tokens a view keeps; `None` for a text-only batch.
    ///
    /// # Errors
    /// [`ModelError`] if the pruner fails, or images, tilings and text do not fit together.
    pub fn select(
        &self,
        inputs: &Inputs<'_, B>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
        ctx: &StepContext,
    ) -> Result<Option<Selection<B>>, ModelError> {
        let Some(features) = &inputs.features else { return Ok(None) };
        let View::Pruned { keep, .. } = view else {
            let tiles = self.tiles(features, inputs.tilings)?;
            let n = self.config.num_visual_tokens();
            return Ok(Some(select_all(tiles.as_ref(), features.len(), n)?));
        };
        let pruner = pruner.ok_or(ModelError::NoPruner)?;
        let Some(visual) = self.visual_tokens(inputs, &pruner.needs())? else { return Ok(None) };
        let context = inputs.prune_context(&inputs.text.images_per_sample(), ctx)?;
        let selection = select(pruner, &visual, *keep, &context)?;
        if ctx.verify_picks {
            selection.verify(pruner.name(), visual.num_tokens())?;
        }
        let blocks = self.language_model.layers.len();
        if let Some(drop) = selection.layer_drop()
            && (0..blocks)
                .all(|block| drop.keep_after(block, blocks, selection.longest()).is_none())
        {
            return Err(PruneError::NoDrop { pruner: pruner.name().to_owned(), blocks }.into());
        }
        Ok(Some(selection))
    }

    /// What a pruner that reads `needs` is given of a batch, without gradient; `None` for a text-only batch.
    ///
    /// # Errors
    /// [`ModelError`] if images, tilings and text do not fit together.
    pub fn visual_tokens(
        &self,
        inputs: &Inputs<'_, B>,
        needs: &Needs,
    ) -> Result<Option<VisualTokens<B>>, ModelError> {
        let Some(features) = &inputs.features else { return Ok(None) };
        let tiles = self.tiles(features, inputs.tilings)?;
        let images_per_sample = inputs.text.images_per_sample();
        let placeholders: usize = images_per_sample.iter().sum();
        let images = tiles.as_ref().map_or(features.len(), |tiles| tiles.per_image.len());
        if placeholders != images {
            return Err(LayoutError::ImageCount { placeholders, images }.into());
        }
        let features = features.clone().detach();
        // Scores need no gradient, so the projector keeps nothing for one.
        let projector = self.mm_projector.clone().into_inner().no_grad();
        let question = needs.has(QUESTION);
        Ok(Some(VisualTokens {
            projected: project(&projector, &features, None, self.config.dtype.float()), // [tiles, n, d]
            question: question.then(|| self.question_tokens(inputs.text, &images_per_sample)),
            features,
            tiles,
            compacted: false,
            text: None,
        }))
    }

    /// How the tiles of a batch make up images, with masks over what shows only canvas; `None` where each is an image.
    fn tiles(
        &self,
        features: &VisionFeatures<B>,
        tilings: &[Tiling],
    ) -> Result<Option<Tiles>, ModelError> {
        let (found, geometry) = (features.hidden().dims(), self.vision_tower.geometry());
        let (tokens, hidden) = (geometry.num_tokens, geometry.hidden_size);
        if found[0] == 0 || found[1..] != [tokens, hidden] {
            return Err(ModelError::FeatureShape { found: found.to_vec(), tokens, hidden });
        }
        if tilings.is_empty() {
            return Ok(None);
        }
        let (tiles, tokens) = (features.len(), self.config.num_visual_tokens());
        let fits = |tiling: &Tiling| tiling.is_valid() && tiling.tile_tokens() == tokens;
        let expected = tilings.iter().map(Tiling::tiles).sum();
        if self.image_newline.is_none() || tiles != expected || !tilings.iter().all(fits) {
            return Err(ModelError::Tiles { tiles, tokens, expected });
        }
        Ok(Some(Tiles {
            per_image: tilings.iter().map(Tiling::tiles).collect(),
            valid: Some(tilings.iter().flat_map(Tiling::valid).collect()),
        }))
    }

    /// Embeddings of each image's question: the tokens of its sample between the first image and the
    /// first supervised token, or all before that where there are none.
    fn question_tokens(
        &self,
        batch: TextBatch<'_>,
        images_per_sample: &[usize],
    ) -> QuestionTokens<B> {
        let mut questions: Vec<Vec<i64>> = Vec::new();
        for ((ids, labels), count) in
            batch.input_ids.iter().zip(batch.labels).zip(images_per_sample)
        {
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

    /// Lays out text and kept visual tokens: one sequence of slots per sample, padded into a batch.
    ///
    /// # Errors
    /// [`ModelError`] if text and images do not fit together, or the view asks for an isolator that is not there.
    pub(super) fn lay_out(
        &self,
        inputs: &Inputs<'_, B>,
        selection: Option<&Selection<B>>,
        view: &View,
        wanted: Wanted,
    ) -> Result<PaddedBatch, ModelError> {
        if view.isolator() && self.mode_isolator.is_none() {
            return Err(ModelError::NoIsolator);
        }
        let trains = wanted == Wanted::Supervised;
        let options = LayoutOptions {
            vocab_size: self.config.text.vocab_size,
            isolator_length: if view.isolator() { self.config.isolator_length } else { 0 },
            max_length: self.config.max_length.filter(|_| trains),
            positions: self.positions(),
        };
        let images = match selection {
            Some(selection) => self.image_slots(selection, inputs.tilings),
            None => Vec::new(),
        };
        let table = selection.map_or(0, |selection| images.len() * selection.longest());
        let newline = selection.is_some() && self.image_newline.is_some();
        let sequences = lay_out(inputs.text, &images, options)?;
        let multiple = if trains { self.config.pad_to_multiple } else { 1 };
        Ok(PaddedBatch::new(sequences, table, newline, multiple))
    }

    fn positions(&self) -> Positions {
        match self.config.visual_positions {
            _ if self.config.text.mrope_section.is_some() => Positions::Grid,
            PositionPolicy::Renumbered => Positions::Renumbered,
            PositionPolicy::Original => Positions::Original,
        }
    }

    /// The slots of each image. Where newlines or positions depend on which tokens were kept, picks are read back from the device.
    fn image_slots(&self, selection: &Selection<B>, tilings: &[Tiling]) -> Vec<ImageSlots> {
        let (n, side) = (self.config.num_visual_tokens(), self.config.visual_grid());
        let reads_picks = !tilings.is_empty() || self.positions() != Positions::Renumbered;
        let kept = if reads_picks { selection.kept(n) } else { None };
        let newline = self.config.anyres.as_ref().map(|anyres| anyres.newline).unwrap_or_default();
        let slots = |(image, length): (usize, &usize)| {
            let (start, tiling) = (image * selection.longest(), tilings.get(image));
            match (&kept, tiling) {
                (Some(kept), Some(tiling)) => {
                    ImageSlots::tiled(start, &kept[image], tiling, newline)
                }
                (Some(kept), None) => ImageSlots::flat(start, &kept[image], n, side),
                (None, _) => {
                    let full = tiling.map_or(n, Tiling::full_length);
                    ImageSlots::sequential(start, *length, full)
                }
            }
        };
        selection.lengths().iter().enumerate().map(slots).collect()
    }

    /// Embeddings of a batch as it was laid out, `[b, s, d]`.
    ///
    /// # Errors
    /// [`LayoutError::Empty`] of nothing.
    pub(super) fn embed(
        &self,
        inputs: &Inputs<'_, B>,
        selection: Option<&Selection<B>>,
        batch: &PaddedBatch,
        view: &View,
    ) -> Result<Tensor<B, 3>, ModelError> {
        let device = self.language_model.embed_tokens.weight.device();
        let dtype = self.config.dtype.float();
        let text = (!batch.text_ids.is_empty()).then(|| {
            let ids = TensorData::new(batch.text_ids.clone(), [batch.text_ids.len()]);
            self.language_model.embed(Tensor::<B, 1, Int>::from_data(ids, &device)) // [text, d]
        });
        let images = inputs.features.as_ref().zip(selection);
        let visual = images.map(|(features, selection)| {
            let tokens = project(&self.mm_projector, features, Some(selection), dtype); // [images, longest, d]
            let [images, longest, d] = tokens.dims();
            tokens.reshape([images * longest, d])
        });
        let newline = self.image_newline.as_ref().filter(|_| visual.is_some());
        let newline = newline.map(|newline| newline.val().unsqueeze::<2>()); // [1, d]
        // Only where an image stands: a text-only batch gives the isolator no gradient.
        let isolator = self.mode_isolator.as_ref().filter(|_| visual.is_some() && view.isolator());
        let isolator = isolator.map(|isolator| isolator.val()); // [l, d]
        // The trained parts (isolator, a projector's f32 output) join the activations' type here.
        let parts = [text, visual, newline, isolator].into_iter().flatten();
        let mut parts: Vec<_> = parts.map(|part| cast(part, dtype)).collect();
        let table = if parts.len() > 1 { Some(Tensor::cat(parts, 0)) } else { parts.pop() };
        let table = table.ok_or(LayoutError::Empty)?; // [text + visual + newline + isolator, d]
        let index = TensorData::new(batch.gather.clone(), [batch.gather.len()]);
        let index = Tensor::<B, 1, Int>::from_data(index, &device);
        let d = table.dims()[1];
        let rows = dualspeed_ops::select_rows(table, index);
        Ok(rows.reshape([batch.samples(), batch.seq, d]))
    }
}

/// Projects what a selection keeps, or everything: `[tiles, n, d_v] -> [images, longest, d]`. Gradients flow wherever projector
/// and tower take them; only kept features go through a projector that works token by token.
fn project<B: Backend>(
    projector: &Projector<B>,
    features: &VisionFeatures<B>,
    selection: Option<&Selection<B>>,
    dtype: FloatDType,
) -> Tensor<B, 3> {
    let project = |features| projector.forward(cast(features, dtype));
    match selection {
        None => project(features.hidden()),
        Some(selection) if selection.is_before_projector() => {
            project(selection.apply_to_features(features))
        }
        Some(selection) if projector.is_per_token() && !selection.is_merge() => {
            project(selection.apply_to(features.hidden()))
        }
        Some(selection) => selection.apply_to(project(features.hidden())),
    }
}

impl<B: AutodiffBackend> Llava<B> {
    /// The teacher's forward of a slow step: the same weights in the fast view, without gradient
    /// and without a graph in memory.
    ///
    /// # Errors
    /// As [`Llava::forward`].
    pub fn forward_teacher(
        &self,
        inputs: &Inputs<'_, B>,
        view: &View,
        pruner: &dyn Pruner<B>,
        ctx: &StepContext,
    ) -> Result<Forward<B>, ModelError> {
        let selection = self.select(inputs, view, Some(pruner), ctx)?;
        let selection = selection.as_ref().map(Selection::inner);
        let (inner, model) = (inputs.inner(), self.valid());
        let teacher = model.run(&inner, selection.as_ref(), view, ctx, None)?;
        Ok(Forward::from_inner(teacher))
    }
}
