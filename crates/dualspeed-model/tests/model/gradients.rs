//! Where gradients go in each mode, and whether they are right.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use dualspeed_model::{
    Llava, LlavaConfig, LossSums, PrunerSpec, Registry, StepContext, Trainable, View, VisualTokens,
    fast_loss, slow_loss,
};

use crate::support::{A, B, Batch, assert_close, config, encode, lora, model, values};

const FAST: View = View::Pruned { keep: 4, isolator: true };

fn ctx(batch: &Batch) -> StepContext {
    StepContext::training(1, 0, batch.ctx().sample_ids)
}

fn slow_sums(model: &Llava<A>, visual: &VisualTokens<A>, batch: &Batch) -> LossSums<A> {
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let ctx = ctx(batch);
    let kept = model.prune(batch.text(), Some(visual), &FAST, Some(&*pruner), &ctx).unwrap();
    let teacher = model.forward_teacher(batch.text(), kept.as_ref(), &FAST, &ctx).unwrap();
    let student = model.forward(batch.text(), Some(visual), &View::Full, None, &ctx).unwrap();
    slow_loss(model, &student, &teacher, 1.0).unwrap()
}

fn fast_sums(model: &Llava<A>, visual: &VisualTokens<A>, batch: &Batch) -> LossSums<A> {
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let forward =
        model.forward(batch.text(), Some(visual), &FAST, Some(&*pruner), &ctx(batch)).unwrap();
    fast_loss(model, &forward)
}

#[test]
fn the_isolator_learns_in_fast_steps_only_and_the_projector_in_both() {
    let model = model::<A>(&config()).with_trainable(Trainable::pretrain()).unwrap();
    let batch = Batch::mixed();
    let visual = encode(&model, 3);
    let isolator = (*model.mode_isolator).as_ref().unwrap().val();
    let projector = model.mm_projector.linear_1.weight.val();
    let size = |x: Option<Tensor<B, 2>>| x.map(|x| values(&x.abs().sum())[0]);

    let sums = fast_sums(&model, &visual, &batch);
    let grads = sums.loss(sums.tokens, 0, 0.0).backward();
    assert!(size(isolator.grad(&grads)).unwrap() > 1e-4);
    assert!(size(projector.grad(&grads)).unwrap() > 1e-4);

    let visual = encode(&model, 3);
    let sums = slow_sums(&model, &visual, &batch);
    let grads = sums.loss(sums.tokens, sums.kl_tokens, 1.0).backward();
    assert!(isolator.grad(&grads).is_none());
    assert!(size(projector.grad(&grads)).unwrap() > 1e-4);
}

#[test]
fn the_teacher_is_the_same_function_without_a_gradient() {
    let model = model::<A>(&config());
    let batch = Batch::mixed();
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let visual = encode(&model, 3);
    let run =
        model.forward(batch.text(), Some(&visual), &FAST, Some(&*pruner), &ctx(&batch)).unwrap();
    let kept =
        model.prune(batch.text(), Some(&visual), &FAST, Some(&*pruner), &ctx(&batch)).unwrap();
    let teacher = model.forward_teacher(batch.text(), kept.as_ref(), &FAST, &ctx(&batch)).unwrap();
    assert_close(&values(&teacher.hidden), &values(&run.hidden), 1e-5);
    assert!(!teacher.hidden.is_require_grad());
}

/// The slow loss as a function of one projector weight, by central differences.
#[test]
fn the_slow_gradient_equals_finite_differences() {
    let model = model::<A>(&config());
    let batch = Batch::mixed();
    let visual = encode(&model, 3);
    let sums = slow_sums(&model, &visual, &batch);
    let grads = sums.loss(sums.tokens, sums.kl_tokens, 1.0).backward();
    let weight = model.mm_projector.linear_1.weight.val();
    let grad = values(&weight.grad(&grads).unwrap());
    // The teacher is a constant, so it is computed once; the student moves.
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let kept =
        model.prune(batch.text(), Some(&visual), &FAST, Some(&*pruner), &ctx(&batch)).unwrap();
    let inner = model.valid();
    let kept = kept.unwrap().inner();
    let teacher = inner.forward_kept(batch.text(), Some(&kept), &FAST, &ctx(&batch)).unwrap();
    let loss = |model: &Llava<B>| {
        let visual = encode(model, 3);
        let student =
            model.forward(batch.text(), Some(&visual), &View::Full, None, &ctx(&batch)).unwrap();
        let sums = slow_loss(&inner, &student, &teacher, 1.0).unwrap();
        values(&sums.loss(sums.tokens, sums.kl_tokens, 1.0))[0]
    };
    let step = 1e-2;
    for (row, column) in [(0, 0), (3, 7), (15, 2)] {
        let moved = |by: f32| {
            let mut model = inner.clone();
            let mut projector = model.mm_projector.clone().into_inner();
            projector.linear_1.weight = projector.linear_1.weight.map(|weight| {
                let cell = weight.clone().slice([row..row + 1, column..column + 1]) + by;
                weight.slice_assign([row..row + 1, column..column + 1], cell)
            });
            model.mm_projector = dualspeed_model::Freezable::new(projector);
            loss(&model)
        };
        let numeric = (moved(step) - moved(-step)) / (2.0 * step);
        let analytic = grad[row * 16 + column];
        assert!((numeric - analytic).abs() < 2e-3 + 0.03 * analytic.abs(), "{numeric} {analytic}");
    }
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    let model = model::<A>(&config()).with_trainable(Trainable::full()).unwrap();
    let batch = Batch::mixed();
    let visual = encode(&model, 3);
    let weight = model.language_model.layers[0].self_attn.q_proj.weight.val();
    let whole = slow_sums(&model, &visual, &batch);
    let tokens = whole.tokens;
    let whole = values(&weight.grad(&whole.loss(tokens, tokens, 1.0).backward()).unwrap());
    let mut sum = vec![0.0; whole.len()];
    for (samples, images) in [(0..2, 0..1), (2..3, 1..3)] {
        let part = Batch {
            input_ids: batch.input_ids[samples.clone()].to_vec(),
            labels: batch.labels[samples].to_vec(),
        };
        let visual = encode(&model, 3);
        let hidden = visual.features.hidden.narrow(0, images.start, images.len());
        let visual = VisualTokens::new(
            visual.projected.narrow(0, images.start, images.len()),
            dualspeed_model::VisionFeatures::from_hidden(hidden),
        );
        let loss = slow_sums(&model, &visual, &part).loss(tokens, tokens, 1.0);
        for (sum, grad) in sum.iter_mut().zip(values(&weight.grad(&loss.backward()).unwrap())) {
            *sum += grad;
        }
    }
    assert_close(&sum, &whole, 1e-5);
}

/// Recomputation changes what is held, not what is computed: loss and every gradient of a LoRA step with dropout, and
/// of a step that trains the decoder.
#[test]
fn recomputed_blocks_give_the_same_gradients() {
    use dualspeed_model::Recompute;
    use dualspeed_model::memory::block_bytes;
    use dualspeed_ops::Keep;

    let adapted = LlavaConfig { lora: Some(lora()), ..config() };
    for (config, trainable) in
        [(adapted, Trainable::finetune_lora()), (config(), Trainable::full())]
    {
        let model = model::<A>(&config).with_trainable(trainable).unwrap();
        let batch = Batch::mixed();
        let gradients = |recompute: Option<Recompute>| {
            let ctx = StepContext { recompute, ..ctx(&batch) };
            let visual = encode(&model, 3);
            let forward =
                model.forward(batch.text(), Some(&visual), &View::Full, None, &ctx).unwrap();
            let sums = fast_loss(&model, &forward);
            let loss = sums.loss(sums.tokens, 0, 0.0);
            let grads = loss.backward();
            let mut found = vec![("loss".to_string(), values(&loss))];
            let weight = model.mm_projector.linear_1.weight.val();
            found.push(("projector".into(), values(&weight.grad(&grads).unwrap())));
            for (index, layer) in model.language_model.layers.iter().enumerate() {
                let pair = model.lora.as_ref().map(|lora| &lora.layers[index]);
                let tensors = match pair {
                    Some(layer) => vec![
                        layer.k_proj.as_ref().unwrap().lora_a.val(),
                        layer.down_proj.as_ref().unwrap().lora_b.val(),
                    ],
                    None => {
                        vec![layer.self_attn.k_proj.weight.val(), layer.mlp.up_proj.weight.val()]
                    }
                };
                for tensor in tensors {
                    found.push((format!("block {index}"), values(&tensor.grad(&grads).unwrap())));
                }
            }
            found
        };
        let whole = gradients(None);
        let bytes = |keep| block_bytes(&config.text, config.lora.as_ref(), keep, 64, 4);
        let budget = 2 * bytes(Keep::All) + bytes(Keep::Products) + bytes(Keep::Input);
        for recompute in [Keep::Input, Keep::Attention, Keep::Products, Keep::All]
            .map(Recompute::Same)
            .into_iter()
            .chain([Recompute::Within(budget)])
        {
            for ((name, whole), (_, again)) in whole.iter().zip(gradients(Some(recompute))) {
                let largest = whole.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let difference =
                    whole.iter().zip(&again).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    difference <= 2e-6 * largest.max(1.0),
                    "{recompute:?} {name}: {difference}"
                );
            }
        }
    }
}

/// Projecting selected tokens by themselves changes what the backward pass runs over, not what comes out: flat images, and
/// images of several tiles with padding.
#[test]
fn selected_tokens_are_projected_by_themselves() {
    use dualspeed_model::{AnyresConfig, TileLayout};

    let layout = |grid, rows, columns| TileLayout { side: 4, grid, rows, columns };
    let layouts =
        vec![layout([1, 2], 0..4, 1..7), layout([2, 1], 0..8, 0..4), layout([1, 1], 1..3, 0..4)];
    let tiled = LlavaConfig { anyres: Some(AnyresConfig::default()), ..config() };
    for (config, layouts) in [(config(), Vec::new()), (tiled, layouts)] {
        let model = model::<A>(&config).with_trainable(Trainable::pretrain()).unwrap();
        let batch = Batch::mixed();
        let rows = if layouts.is_empty() { 3 } else { 8 };
        let visual = encode(&model, rows);
        let gradients = |project_kept: bool| {
            let ctx = StepContext { project_kept, layouts: layouts.clone(), ..ctx(&batch) };
            let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
            let forward =
                model.forward(batch.text(), Some(&visual), &FAST, Some(&*pruner), &ctx).unwrap();
            let sums = fast_loss(&model, &forward);
            let loss = sums.loss(sums.tokens, 0, 0.0);
            let grads = loss.backward();
            let layers =
                [&model.mm_projector.linear_1, model.mm_projector.linear_2.as_ref().unwrap()];
            let mut found = values(&loss);
            for layer in layers {
                found.extend(values(&layer.weight.val().grad(&grads).unwrap()));
                found.extend(values(&layer.bias.as_ref().unwrap().val().grad(&grads).unwrap()));
            }
            found
        };
        let (all, kept) = (gradients(false), gradients(true));
        assert!(all.iter().any(|x| x.abs() > 1e-3), "the projector learns something");
        assert_close(&kept, &all, 1e-5);
    }
}
