//! Drops inside the decoder.

use std::sync::Arc;

use burn::tensor::Tensor;
use dualspeed_model::pruner::{DropPositions, DropScore};
use dualspeed_model::vision::features::HIDDEN;
use dualspeed_model::{
    DecoderConfig, DualSpeedObjective, GenerateOptions, Kept, LayerDrop, Llava, LlavaConfig,
    PruneContext, PruneError, Pruner, PrunerSpec, Registry, StepContext, View, VisualTokens,
};
use dualspeed_ops::Backend;

use crate::support::{
    A, B, Batch, assert_close, config, encode, generate, images, inference, lora, losses, model,
    scrambled, values,
};

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
    let features = encode(model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let inputs = batch.inputs(Some(&features));
    let forward = model.forward(&inputs, &view, Some(pruner), ctx).unwrap();
    assert_eq!(forward.visual_tokens, 48, "all tokens enter the decoder");
    values(&forward.hidden)
}

/// A drop that keeps every token changes nothing, whatever ranks them.
#[test]
fn keeping_everything_changes_nothing() {
    let (model, batch) = (model::<B>(&deep()), Batch::mixed());
    let features = encode(&model, 3);
    let inputs = batch.inputs(Some(&features));
    let view = View::Pruned { keep: 4, isolator: true };
    let none = Registry::<B>::builtin().build(&PrunerSpec::new("none")).unwrap();
    let full = View::Pruned { keep: 16, isolator: true };
    let plain = model.forward(&inputs, &full, Some(&*none), &inference());
    let kept = model.forward(&inputs, &view, Some(&each(16)), &inference());
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
    let dropped = hidden(&model, &batch, &drop, &inference());

    // The first block of every sample alone, unpadded; then every second half by hand.
    let features = encode(&model, 3);
    let mut expected = Vec::new();
    let mut image = 0;
    for sample in 0..3 {
        let one = batch.samples(sample..sample + 1);
        let count = one.input_ids[0].iter().filter(|id| **id == -200).count();
        let own = (count > 0).then(|| images(&features, image..image + count));
        image += count;
        let view = View::Pruned { keep: 4, isolator: true };
        let inputs = one.inputs(own.as_ref());
        let forward = model.forward(&inputs, &view, Some(&drop), &inference()).unwrap();
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
    let dropped = hidden(&model, &batch, &drop, &inference());
    language_model.layers.remove(0);
    model.language_model = dualspeed_model::Freezable::new(language_model);
    let uniform = Registry::<B>::builtin().build(&PrunerSpec::new("uniform")).unwrap();
    let features = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let inputs = batch.inputs(Some(&features));
    let pruned = model.forward(&inputs, &view, Some(&*uniform), &inference());
    let pruned = pruned.unwrap();
    assert_eq!(pruned.visual_tokens, 12);
    assert_close(&dropped, &values(&pruned.hidden), 1e-5);
}

/// Text generated token by token after a drop equals the forward over the whole text: what the caches
/// of the blocks hold, and at which positions.
#[test]
fn generation_after_a_drop_equals_the_whole_forward() {
    let flags = DecoderConfig { qkv_bias: true, qk_norm: true, head_dim: Some(6), ..deep().text };
    let axes = DecoderConfig {
        head_dim: Some(8),
        mrope_section: Some([1, 1, 2]),
        rope_theta: 100.0,
        ..deep().text
    };
    for text in [deep().text, flags, axes] {
        let model = model::<B>(&LlavaConfig { text, ..deep() });
        let model = scrambled(model, "language_model.layers", 0.1);
        for spec in ["pyramiddrop", "pyramiddrop:compat=official", "pyramiddrop:score=uniform"] {
            let spec: PrunerSpec = spec.parse().unwrap();
            let pruner = Registry::<B>::builtin().build(&spec).unwrap();
            let features = encode(&model, 1);
            let view = View::Pruned { keep: 3, isolator: true };
            let prompt = vec![1, -200, 7, 8];
            let options = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
            let batch = Batch::prompt(&prompt);
            let inputs = batch.inputs(Some(&features));
            let text = generate(&model, &inputs, &view, Some(&*pruner), &options).unwrap();
            // Teacher-forced: the same tokens supervised; the instruction ends with the prompt.
            let mut batch = Batch::prompt(&[prompt.clone(), text.ids.clone()].concat());
            batch.labels[0][prompt.len()..].copy_from_slice(&text.ids);
            let inputs = batch.inputs(Some(&features));
            let ctx = StepContext::inference(0);
            let forward = model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
            let logits = forward.hidden.matmul(model.lm_head_weight());
            let best: Vec<i64> = logits.clone().argmax(1).into_data().iter::<i64>().collect();
            assert_eq!(best, text.ids, "{spec}");
            let log_probs = values(&burn::tensor::activation::log_softmax(logits, 1).max_dim(1));
            let found: Vec<f32> = text.log_probs.iter().map(|x| *x as f32).collect();
            assert_close(&found, &log_probs, 1e-5);
        }
    }
}

#[test]
fn training_through_drops_has_gradients_and_dropout() {
    let config = LlavaConfig { lora: Some(lora()), ..deep() };
    let model = model::<A>(&config);
    let batch = Batch::mixed();
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("pyramiddrop")).unwrap();
    let features = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let (ctx, inputs) = (StepContext::training(1, 5), batch.inputs(Some(&features)));
    let run = || model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
    assert_eq!(values(&run().hidden), values(&run().hidden));
    let losses = losses(&model, &run(), None, DualSpeedObjective::default()).unwrap();
    let grads = losses.weighted_sum().unwrap().backward();
    let layers = &model.language_model.layers;
    for layer in [0, 3] {
        let grad = layers[layer].self_attn.v_proj.weight.val().grad(&grads).unwrap();
        assert!(values(&grad).iter().any(|x| x.abs() > 0.0), "layer {layer}");
    }
    let teacher = model.forward_teacher(&inputs, &view, &*pruner, &ctx).unwrap();
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
    let features = encode(&model, 3);
    let view = View::Pruned { keep: 4, isolator: true };
    let inputs = batch.inputs(Some(&features));
    let error = model.forward(&inputs, &view, Some(&*pruner), &inference()).unwrap_err();
    assert!(error.to_string().contains("drops nothing"), "{error}");
}

/// The tokens that the instruction attends to stay: a decoder whose first block attends to one patch.
#[test]
fn what_the_instruction_attends_to_stays() {
    let (model, batch) = (model::<B>(&deep()), Batch::mixed());
    let by_attention = hidden(&model, &batch, &each(4), &inference());
    let uniform = Each { score: DropScore::Uniform, ..each(4) };
    assert_ne!(by_attention, hidden(&model, &batch, &uniform, &inference()));
    // Ranked by attention, a token that no query finds goes first: its change is not seen later.
    let features = encode(&model, 3);
    let shift = |at: usize| {
        let row = features.hidden().narrow(0, 0, 1).narrow(1, at, 1);
        let row: Tensor<B, 3> = row * 1.0001;
        let moved = features.hidden().slice_assign([0..1, at..at + 1], row);
        let moved = features.clone().with(HIDDEN, moved);
        let view = View::Pruned { keep: 4, isolator: true };
        let inputs = batch.inputs(Some(&moved));
        values(&model.forward(&inputs, &view, Some(&each(4)), &inference()).unwrap().hidden)
    };
    let base = by_attention;
    let change =
        |at: usize| -> f32 { shift(at).iter().zip(&base).map(|(x, y)| (x - y).abs()).sum() };
    let mut changes: Vec<f32> = (0..16).map(change).collect();
    changes.sort_by(f32::total_cmp);
    assert!(changes[15] > 2.0 * changes[0], "{changes:?}");
}
