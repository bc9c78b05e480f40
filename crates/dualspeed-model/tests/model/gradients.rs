//! Where gradients go in each mode, and whether they are right.

use burn::module::AutodiffModule;
use burn::tensor::Tensor;
use dualspeed_model::memory::block_bytes;
use dualspeed_model::objective::{CORRECT, CROSS_ENTROPY, DISTILLATION};
use dualspeed_model::{
    DecoderConfig, DualSpeedObjective, Forward, Llava, LlavaConfig, Losses, PrunerSpec, Recompute,
    Registry, StepContext, Trainable, View, VisionFeatures,
};
use dualspeed_ops::Keep;

use crate::support::{
    A, B, Batch, assert_close, check_differences, config, encode, gradients, images, lora, losses,
    model, scrambled, sum, values,
};

const FAST: View = View::Pruned { keep: 4, isolator: true };

fn ctx() -> StepContext {
    StepContext::training(1, 0)
}

fn teacher(model: &Llava<A>, features: &VisionFeatures<A>, batch: &Batch) -> Forward<A> {
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    model.forward_teacher(&batch.inputs(Some(features)), &FAST, &*pruner, &ctx()).unwrap()
}

/// A slow step; a batch without an image has no teacher.
fn slow(model: &Llava<A>, features: Option<&VisionFeatures<A>>, batch: &Batch) -> Losses<A> {
    let teacher = features.map(|features| teacher(model, features, batch));
    let student = model.forward(&batch.inputs(features), &View::Full, None, &ctx()).unwrap();
    losses(model, &student, teacher.as_ref(), DualSpeedObjective::default()).unwrap()
}

fn fast(model: &Llava<A>, features: &VisionFeatures<A>, batch: &Batch) -> Losses<A> {
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let inputs = batch.inputs(Some(features));
    let forward = model.forward(&inputs, &FAST, Some(&*pruner), &ctx()).unwrap();
    losses(model, &forward, None, DualSpeedObjective::default()).unwrap()
}

#[test]
fn the_isolator_learns_in_fast_steps_only_and_the_projector_in_both() {
    let model = model::<A>(&config()).with_trainable(Trainable::pretrain()).unwrap();
    let batch = Batch::mixed();
    let isolator = (*model.mode_isolator).as_ref().unwrap().val();
    let projector = model.mm_projector.mlp().unwrap().linear_1.weight.val();
    let size = |x: Option<Tensor<B, 2>>| x.map(|x| values(&x.abs().sum())[0]);

    let losses = fast(&model, &encode(&model, 3), &batch);
    let grads = losses.loss(losses.tokens).unwrap().backward();
    assert!(size(isolator.grad(&grads)).unwrap() > 1e-4);
    assert!(size(projector.grad(&grads)).unwrap() > 1e-4);

    let losses = slow(&model, Some(&encode(&model, 3)), &batch);
    let grads = losses.loss(losses.tokens).unwrap().backward();
    assert!(isolator.grad(&grads).is_none());
    assert!(size(projector.grad(&grads)).unwrap() > 1e-4);
}

#[test]
fn the_teacher_is_the_same_function_without_a_gradient() {
    let model = model::<A>(&config());
    let batch = Batch::mixed();
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let features = encode(&model, 3);
    let inputs = batch.inputs(Some(&features));
    let run = model.forward(&inputs, &FAST, Some(&*pruner), &ctx()).unwrap();
    let teacher = teacher(&model, &features, &batch);
    assert_close(&values(&teacher.hidden), &values(&run.hidden), 1e-5);
    assert!(!teacher.hidden.is_require_grad());
    assert!(gradients(&model, &teacher.hidden.clone().sum()).is_empty());
    assert_eq!(
        teacher.picks.unwrap().into_data().to_vec::<i64>().unwrap(),
        run.picks.unwrap().into_data().to_vec::<i64>().unwrap()
    );
}

/// The slow loss as a function of projector weights, by central differences.
#[test]
fn the_slow_gradient_equals_finite_differences() {
    let model = model::<A>(&config());
    let batch = Batch::mixed();
    let features = encode(&model, 3);
    let losses = slow(&model, Some(&features), &batch);
    let found = gradients(&model, &losses.loss(losses.tokens).unwrap());
    // The teacher is a constant, so it is computed once; the student moves.
    let inner = model.valid();
    let inner_features = encode(&inner, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let inputs = batch.inputs(Some(&inner_features));
    let teacher = inner.forward(&inputs, &FAST, Some(&*pruner), &ctx()).unwrap();
    let loss = |moved: &Llava<B>| {
        let student = moved.forward(&inputs, &View::Full, None, &ctx()).unwrap();
        let objective = DualSpeedObjective::default();
        let losses = crate::support::losses(&inner, &student, Some(&teacher), objective).unwrap();
        values(&losses.loss(losses.tokens).unwrap())[0]
    };
    let projector = |path: &str| path.starts_with("mm_projector.");
    assert!(check_differences(&inner, &found, projector, 1e-2, loss) >= 2);
    let inner = model.valid();
    let weight = &found["mm_projector.linear_1.weight"];
    for (row, column) in [(0, 0), (3, 7), (15, 2)] {
        let moved = |by: f32| {
            loss(&crate::support::map_params(inner.clone(), |path, numbers| {
                if path == "mm_projector.linear_1.weight" {
                    numbers[row * 16 + column] += by;
                }
            }))
        };
        let numeric = (moved(1e-2) - moved(-1e-2)) / 2e-2;
        let analytic = weight[row * 16 + column];
        assert!((numeric - analytic).abs() < 2e-3 + 0.03 * analytic.abs(), "{numeric} {analytic}");
    }
}

#[test]
fn micro_batches_add_up_to_the_whole_batch() {
    let model = model::<A>(&config()).with_trainable(Trainable::full()).unwrap();
    let batch = Batch::mixed();
    let features = encode(&model, 3);
    let weight = model.language_model.layers[0].self_attn.q_proj.weight.val();
    let whole = slow(&model, Some(&features), &batch);
    let tokens = whole.tokens;
    let whole = values(&weight.grad(&whole.loss(tokens).unwrap().backward()).unwrap());
    let mut total = vec![0.0; whole.len()];
    for (samples, range) in [(0..2, 0..1), (2..3, 1..3)] {
        let features = images(&encode(&model, 3), range);
        let loss = slow(&model, Some(&features), &batch.samples(samples)).loss(tokens).unwrap();
        for (sum, grad) in total.iter_mut().zip(values(&weight.grad(&loss.backward()).unwrap())) {
            *sum += grad;
        }
    }
    assert_close(&total, &whole, 1e-5);
}

/// A slow window of a micro-batch with images and one without: the text-only sample has no teacher whether it stands beside
/// images or alone, and its tokens count in the one divisor either way.
#[test]
fn a_text_only_micro_batch_adds_up_with_those_with_images() {
    let adapted = LlavaConfig { lora: Some(lora()), ..config() };
    let with_tower = Trainable { vision_tower: true, ..Trainable::full() };
    for (config, trainable) in [(adapted, Trainable::finetune_lora()), (config(), with_tower)] {
        let model = scrambled(model::<A>(&config), "lora.", 0.3);
        let model = model.with_trainable(trainable).unwrap();
        let mixed = Batch::mixed();
        let pick = |order: &[usize]| Batch {
            input_ids: order.iter().map(|i| mixed.input_ids[*i].clone()).collect(),
            labels: order.iter().map(|i| mixed.labels[*i].clone()).collect(),
            sample_ids: order.iter().map(|i| mixed.sample_ids[*i].clone()).collect(),
        };
        let (whole, pictures, text) = (pick(&[0, 2, 1]), pick(&[0, 2]), pick(&[1]));
        let one = slow(&model, Some(&encode(&model, 3)), &whole);
        let parts = [slow(&model, Some(&encode(&model, 3)), &pictures), slow(&model, None, &text)];
        let tokens = one.tokens;
        assert_eq!((tokens, parts[0].tokens, parts[1].tokens), (7, 5, 2));
        assert!(parts[1].part(DISTILLATION).is_none(), "a text-only batch has no teacher");
        assert_eq!(one.part(DISTILLATION).unwrap().tokens, 5);
        assert!(sum(&one, DISTILLATION) > 1e-3, "the views are too alike to test anything");
        assert_close(&[sum(&parts[0], DISTILLATION)], &[sum(&one, DISTILLATION)], 1e-5);
        for name in [CROSS_ENTROPY, CORRECT] {
            let added = parts.iter().map(|part| sum(part, name)).sum();
            assert_close(&[added], &[sum(&one, name)], 1e-4);
        }
        let loss = |losses: &Losses<A>| losses.loss(tokens).unwrap();
        let added: f32 = parts.iter().map(|part| values(&loss(part))[0]).sum();
        assert_close(&[added], &values(&loss(&one)), 1e-5);

        let expected = gradients(&model, &loss(&one));
        let mut added = gradients(&model, &loss(&parts[0]));
        for (path, more) in gradients(&model, &loss(&parts[1])) {
            // The text-only micro-batch may reach only a part of what the images reach.
            let gradient = added.get_mut(&path).unwrap_or_else(|| panic!("{path}"));
            gradient.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        assert_eq!(added.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, expected) in &expected {
            let added = &added[path];
            let apart = added.iter().zip(expected).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart <= 1e-5, "{path}: {apart}");
        }
        let learns = |path: &str| expected[path].iter().any(|x| x.abs() > 1e-4);
        match config.lora {
            Some(_) => assert!(learns("lora.layers.0.q_proj.lora_a")),
            None => assert!(learns("vision_tower.encoder.layers.0.mlp.fc1.weight")),
        }
        // A teacher for the text alone changes nothing: its two views are one.
        let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
        let inputs = text.inputs::<A>(None);
        let teacher = model.forward_teacher(&inputs, &FAST, &*pruner, &ctx()).unwrap();
        let student = model.forward(&inputs, &View::Full, None, &ctx()).unwrap();
        let objective = DualSpeedObjective::default();
        let asked = losses(&model, &student, Some(&teacher), objective).unwrap();
        assert_eq!(asked.part(DISTILLATION).unwrap().tokens, 0);
        assert_eq!(sum(&asked, DISTILLATION), 0.0);
        assert_eq!(sum(&asked, CROSS_ENTROPY), sum(&parts[1], CROSS_ENTROPY));
    }
}

/// Recomputation changes what is held, not what is computed: loss and every gradient of a LoRA step with dropout, of a step that
/// trains the decoder, and of one whose decoder has every flag set.
#[test]
fn recomputed_blocks_give_the_same_gradients() {
    let adapted = LlavaConfig { lora: Some(lora()), ..config() };
    let flags = DecoderConfig { qkv_bias: true, qk_norm: true, head_dim: Some(6), ..config().text };
    let flagged = LlavaConfig { text: flags, lora: Some(lora()), ..config() };
    let all = Trainable { lora: true, ..Trainable::full() };
    for (config, trainable) in
        [(adapted, Trainable::finetune_lora()), (config(), Trainable::full()), (flagged, all)]
    {
        let model = scrambled(model::<A>(&config), "lora.", 0.3);
        let model = model.with_trainable(trainable).unwrap();
        let (batch, features) = (Batch::mixed(), encode(&model, 3));
        let inputs = batch.inputs(Some(&features));
        let run = |recompute: Option<Recompute>| {
            let ctx = StepContext { recompute, ..ctx() };
            let forward = model.forward(&inputs, &View::Full, None, &ctx).unwrap();
            let losses = losses(&model, &forward, None, DualSpeedObjective::default()).unwrap();
            let loss = losses.loss(losses.tokens).unwrap();
            let mut found = gradients(&model, &loss);
            found.insert("loss".into(), values(&loss));
            found
        };
        let whole = run(None);
        let decoder = if config.lora.is_some() { "lora.layers" } else { "language_model.layers" };
        assert!(whole.contains_key(&format!(
            "{decoder}.1.{}",
            match config.lora {
                Some(_) => "down_proj.lora_b",
                None => "mlp.up_proj.weight",
            }
        )));
        let bytes = |keep| block_bytes(&config.text, config.lora.as_ref(), keep, 64, 4);
        let budget = 2 * bytes(Keep::All) + bytes(Keep::Products) + bytes(Keep::Input);
        for recompute in [Keep::Input, Keep::Attention, Keep::Products, Keep::All]
            .map(Recompute::Same)
            .into_iter()
            .chain([Recompute::Within(budget)])
        {
            let again = run(Some(recompute));
            assert_eq!(again.len(), whole.len());
            for (name, whole) in &whole {
                let largest = whole.iter().fold(1e-3f32, |m, x| m.max(x.abs()));
                let difference =
                    whole.iter().zip(&again[name]).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
                assert!(
                    difference <= 2e-6 * largest.max(1.0),
                    "{recompute:?} {name}: {difference}"
                );
            }
        }
    }
}
