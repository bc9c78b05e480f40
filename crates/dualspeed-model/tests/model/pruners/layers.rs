//! Drops inside the decoder.

use std::sync::Arc;

use burn::tensor::Tensor;
use dualspeed_model::pruner::{DropPositions, DropScore};
use dualspeed_model::{
    GenerateOptions, Kept, LayerDrop, Llava, LlavaConfig, PruneContext, PruneError, Pruner,
    PrunerSpec, Registry, StepContext, View, VisualTokens, fast_loss,
};
use dualspeed_ops::Backend;

use crate::support::{A, B, Batch, assert_close, config, encode, lora, model, values};

/// Drops to `keep` after every block, by evenly spaced places, positions as said.
#[derive(Debug, Clone, Copy)]
struct Each {
    keep: usize,
    positions: DropPositions,
    score: DropScore,
}

impl LayerDrop for Each {
    fn keep_after(&self, layer: usize, _layers: usize, _visual: usize) -> Option<usize> {
        (layer == 0).then_some(self.keep)
    }

    fn score(&self) -> DropScore {
        self.score
    }

    fn positions(&self) -> DropPositions {
        self.positions
    }
}

impl<T: Backend> Pruner<T> for Each {
    fn name(&self) -> &str {
        "each"
    }

    fn layer_drop(&self, _keep: usize) -> Option<Arc<dyn LayerDrop>> {
        Some(Arc::new(*self))
    }

    fn prune(
        &self,
        _visual: &VisualTokens<T>,
        _keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<T>, PruneError> {
        Err(PruneError::Text { problem: "is not asked".into() })
    }
}

fn each(keep: usize) -> Each {
    Each { keep, positions: DropPositions::Original, score: DropScore::InstructionAttention }
}

fn deep() -> LlavaConfig {
    let mut config = config();
    config.text.num_hidden_layers = 4;
    config
}

fn hidden(model: &Llava<B>, batch: &Batch, pruner: &dyn Pruner<B>, ctx: &StepContext) -> Vec<f32> {
    let visual = encode(model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let forward = model.forward(batch.text(), Some(&visual), &view, Some(pruner), ctx).unwrap();
    assert_eq!(forward.visual_tokens, 48, "all tokens enter the decoder");
    values(&forward.hidden)
}

/// A drop that keeps every token changes nothing, whatever ranks them.
#[test]
fn keeping_everything_changes_nothing() {
    let (model, batch) = (model::<B>(&deep()), Batch::mixed());
    let visual = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let none = Registry::<B>::builtin().build(&PrunerSpec::new("none")).unwrap();
    let full = View::Pruned { keep: 16, isolator: true };
    let plain = model.forward(batch.text(), Some(&visual), &full, Some(&*none), &batch.ctx());
    let kept = model.forward(batch.text(), Some(&visual), &view, Some(&each(16)), &batch.ctx());
    let (plain, kept) = (plain.unwrap(), kept.unwrap());
    assert_eq!(plain.targets, kept.targets);
    assert_close(&values(&plain.hidden), &values(&kept.hidden), 1e-6);
}

/// Against a decoder that masks instead of removing: the blocks after the drop on the sequence
/// without the dropped tokens, one sample at a time, with the positions the tokens had.
#[test]
fn blocks_after_a_drop_see_the_kept_tokens_at_their_positions() {
    let mut two = config();
    two.text.num_hidden_layers = 2;
    let model = model::<B>(&two);
    let batch = Batch::mixed();
    let drop = Each { score: DropScore::Uniform, ..each(4) };
    let dropped = hidden(&model, &batch, &drop, &batch.ctx());

    // The first block of every sample alone, unpadded; then every second half by hand.
    let visual = encode(&model, 3);
    let mut expected = Vec::new();
    let mut image = 0;
    for sample in 0..3 {
        let one = Batch {
            input_ids: vec![batch.input_ids[sample].clone()],
            labels: vec![batch.labels[sample].clone()],
        };
        let images = one.input_ids[0].iter().filter(|id| **id == -200).count();
        let own =
            VisualTokens::<B>::new(
                visual.projected.clone().narrow(0, image, images.max(1)),
                dualspeed_model::VisionFeatures::from_hidden(
                    visual.features.hidden.clone().narrow(0, image, images.max(1)),
                ),
            );
        image += images;
        let ctx = StepContext::inference(1, vec![format!("sample-{sample}")]);
        let view = View::Pruned { keep: 4, isolator: true };
        let own = (images > 0).then_some(&own);
        let forward = model.forward(one.text(), own, &view, Some(&drop), &ctx).unwrap();
        expected.extend(values(&forward.hidden));
    }
    assert_close(&dropped, &expected, 1e-5);
}

/// Dropping everything but a few at the first block of a model whose first block is the identity is
/// pruning before the decoder with the positions of the full sequence: renumbered positions make the
/// two the same.
#[test]
fn a_drop_after_an_idle_block_is_pruning_before_the_decoder() {
    let mut config = config();
    config.text.num_hidden_layers = 3;
    let mut model = model::<B>(&config);
    let mut language_model = model.language_model.clone().into_inner();
    let layer = &mut language_model.layers[0];
    for weight in [&mut layer.self_attn.o_proj.weight, &mut layer.mlp.down_proj.weight] {
        *weight = weight.clone().map(|w| w.zeros_like());
    }
    model.language_model = dualspeed_model::Freezable::new(language_model.clone());
    let batch = Batch::mixed();
    let drop = Each { positions: DropPositions::Renumbered, score: DropScore::Uniform, keep: 4 };
    let dropped = hidden(&model, &batch, &drop, &batch.ctx());
    language_model.layers.remove(0);
    model.language_model = dualspeed_model::Freezable::new(language_model);
    let uniform = Registry::<B>::builtin().build(&PrunerSpec::new("uniform")).unwrap();
    let visual = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let pruned = model.forward(batch.text(), Some(&visual), &view, Some(&*uniform), &batch.ctx());
    let pruned = pruned.unwrap();
    assert_eq!(pruned.visual_tokens, 12);
    assert_close(&dropped, &values(&pruned.hidden), 1e-5);
}

/// Text generated token by token after a drop equals the forward over the whole text: what the caches
/// of the blocks hold, and at which positions.
#[test]
fn generation_after_a_drop_equals_the_whole_forward() {
    let model = model::<B>(&deep());
    for spec in ["pyramiddrop", "pyramiddrop:compat=official", "pyramiddrop:score=uniform"] {
        let spec: PrunerSpec = spec.parse().unwrap();
        let pruner = Registry::<B>::builtin().build(&spec).unwrap();
        let visual = encode(&model, 1);
        let view = View::Pruned { keep: 3, isolator: true };
        let prompt = vec![1, -200, 7, 8];
        let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
        let text = model.generate(&prompt, Some(&visual), &view, Some(&*pruner), &options).unwrap();
        // Teacher-forced: the same tokens supervised; the instruction ends with the prompt.
        let ids = [prompt.clone(), text.clone()].concat();
        let labels = [vec![-100; prompt.len()], text.clone()].concat();
        let batch = Batch { input_ids: vec![ids], labels: vec![labels] };
        let ctx = StepContext::inference(0, vec!["prompt".into()]);
        let forward =
            model.forward(batch.text(), Some(&visual), &view, Some(&*pruner), &ctx).unwrap();
        let logits = forward.hidden.matmul(model.lm_head_weight());
        let best: Vec<i64> = logits.argmax(1).into_data().iter::<i64>().collect();
        assert_eq!(best, text, "{spec}");
    }
}

#[test]
fn training_through_drops_has_gradients_and_dropout() {
    let config = LlavaConfig { lora: Some(lora()), ..deep() };
    let model = model::<A>(&config);
    let batch = Batch::mixed();
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("pyramiddrop")).unwrap();
    let visual = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let ids = (0..3).map(|i| format!("sample-{i}")).collect();
    let ctx = StepContext::training(1, 5, ids);
    let run = || model.forward(batch.text(), Some(&visual), &view, Some(&*pruner), &ctx).unwrap();
    assert_eq!(values(&run().hidden), values(&run().hidden));
    let losses = fast_loss(&model, &run());
    let grads = losses.ce.backward();
    let layers = &model.language_model.layers;
    for layer in [0, 3] {
        let grad = layers[layer].self_attn.v_proj.weight.val().grad(&grads).unwrap();
        assert!(values(&grad).iter().any(|x| x.abs() > 0.0), "layer {layer}");
    }
    let teacher = model.prune(batch.text(), Some(&visual), &view, Some(&*pruner), &ctx).unwrap();
    let teacher = model.forward_teacher(batch.text(), teacher.as_ref(), &view, &ctx).unwrap();
    assert_close(&values(&teacher.hidden), &values(&run().hidden), 1e-5);
}

#[test]
fn pyramids_halve_as_published_and_shallow_decoders_are_refused() {
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("pyramiddrop")).unwrap();
    let drop = pruner.layer_drop(72).unwrap();
    let drops: Vec<(usize, usize)> =
        (0..32).filter_map(|layer| Some((layer, drop.keep_after(layer, 32, 576)?))).collect();
    assert_eq!(drops, [(7, 288), (15, 144), (23, 72)]);
    let mut config = config();
    config.text.num_hidden_layers = 1;
    let (model, batch) = (model::<B>(&config), Batch::mixed());
    let visual = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let error = model
        .forward(batch.text(), Some(&visual), &view, Some(&*pruner), &batch.ctx())
        .unwrap_err();
    assert!(error.to_string().contains("drops nothing"), "{error}");
}

/// The tokens that the instruction attends to stay: a decoder whose first block attends to one patch.
#[test]
fn what_the_instruction_attends_to_stays() {
    let (model, batch) = (model::<B>(&deep()), Batch::mixed());
    let by_attention = hidden(&model, &batch, &each(4), &batch.ctx());
    let uniform = Each { score: DropScore::Uniform, ..each(4) };
    assert_ne!(by_attention, hidden(&model, &batch, &uniform, &batch.ctx()));
    // Ranked by attention, a token that no query finds goes first: its change is not seen later.
    let visual = encode(&model, 3);
    let shift = |at: usize| {
        let mut moved = visual.clone();
        let row = moved.projected.clone().narrow(0, 0, 1).narrow(1, at, 1);
        let row: Tensor<B, 3> = row * 1.0001;
        moved.projected = moved.projected.slice_assign([0..1, at..at + 1], row);
        let view = View::Pruned { keep: 4, isolator: true };
        let ctx = batch.ctx();
        values(
            &model.forward(batch.text(), Some(&moved), &view, Some(&each(4)), &ctx).unwrap().hidden,
        )
    };
    let base = by_attention;
    let change =
        |at: usize| -> f32 { shift(at).iter().zip(&base).map(|(x, y)| (x - y).abs()).sum() };
    let mut changes: Vec<f32> = (0..16).map(change).collect();
    changes.sort_by(f32::total_cmp);
    assert!(changes[15] > 2.0 * changes[0], "{changes:?}");
}
