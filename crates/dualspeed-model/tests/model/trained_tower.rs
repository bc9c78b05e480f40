//! A vision tower that is trained with the rest of the model, and one that is not.

use burn::module::AutodiffModule;
use dualspeed_model::vision::features::{CLS_ATTENTION, KEYS};
use dualspeed_model::{
    DualSpeedObjective, Forward, Llava, Needs, PrunerSpec, Registry, StepContext, Trainable, View,
};
use dualspeed_ops::Backend;

use crate::support::{
    A, B, Batch, check_differences, config, gradients, inference, losses, model, random, values,
};

const TOWER: Trainable = Trainable { vision_tower: true, ..Trainable::nothing() };

/// The pixels' way through the whole model.
fn run<T: Backend>(model: &Llava<T>, batch: &Batch, view: &View, pruner: &str) -> Forward<T> {
    let needs = Needs::of([CLS_ATTENTION, KEYS]);
    let features = model.encode(random([3, 3, 16, 16], 9), &needs).unwrap();
    let pruner = Registry::<T>::builtin().build(&PrunerSpec::new(pruner)).unwrap();
    let inputs = batch.inputs(Some(&features));
    model.forward(&inputs, view, Some(&*pruner), &inference()).unwrap()
}

fn loss<T: Backend>(
    model: &Llava<T>,
    student: &Forward<T>,
    teacher: Option<&Forward<T>>,
) -> burn::tensor::Tensor<T, 1> {
    let losses = losses(model, student, teacher, DualSpeedObjective::default()).unwrap();
    losses.loss(losses.tokens).unwrap()
}

#[test]
fn gradients_of_a_trained_tower_equal_finite_differences() {
    let model = model::<A>(&config()).with_trainable(TOWER).unwrap();
    let (inner, batch) = (model.valid(), Batch::mixed());
    let is_tower = |path: &str| path.starts_with("vision_tower.");
    // Picks and pooling weights that do not depend on the features: what is chosen has no gradient.
    let fast = View::Pruned { keep: 4, isolator: true };
    for (view, pruner) in [(View::Full, "none"), (fast, "uniform"), (fast, "avgpool2d")] {
        let found = gradients(&model, &loss(&model, &run(&model, &batch, &view, pruner), None));
        assert!(found.keys().all(|path| is_tower(path)), "only the tower is trained");
        let differences =
            |moved: &Llava<B>| values(&loss(moved, &run(moved, &batch, &view, pruner), None))[0];
        let compared = check_differences(&inner, &found, is_tower, 5e-3, differences);
        assert!(compared >= 15, "{pruner}: {compared} of {}", found.len());
    }
    // A slow step: the student's tower moves, the teacher is a constant.
    let teacher = run(&inner, &batch, &fast, "uniform");
    let on_outer = Forward::<A>::from_inner(teacher.clone());
    let student = run(&model, &batch, &View::Full, "none");
    let found = gradients(&model, &loss(&model, &student, Some(&on_outer)));
    let differences = |moved: &Llava<B>| {
        let student = run(moved, &batch, &View::Full, "none");
        values(&loss(moved, &student, Some(&teacher)))[0]
    };
    let compared = check_differences(&inner, &found, is_tower, 5e-3, differences);
    assert!(compared >= 15, "slow: {compared} of {}", found.len());
}

/// Of the tower only what the pruner kept gets a gradient, and none comes from the choice itself.
#[test]
fn choosing_tokens_gives_the_tower_no_gradient() {
    let model = model::<A>(&config()).with_trainable(TOWER).unwrap();
    let batch = Batch::mixed();
    let view = View::Pruned { keep: 4, isolator: true };
    for name in ["divprune", "fastervlm", "visionzip"] {
        let needs = Needs::of([CLS_ATTENTION, KEYS]);
        let features = model.encode(random([3, 3, 16, 16], 9), &needs).unwrap();
        let pruner = Registry::<A>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let (ctx, inputs) = (StepContext::training(1, 0), batch.inputs(Some(&features)));
        let selection = model.select(&inputs, &view, Some(&*pruner), &ctx).unwrap().unwrap();
        // The same picks, made from features that know of no gradient.
        let constant = selection.inner();
        let cut = batch.inputs(Some(&features)).inner().features.unwrap();
        let tokens = constant.apply_to_features(&cut);
        let kept = selection.apply_to_features(&features);
        assert_eq!(values(&kept), values(&tokens), "{name}");
        let found = gradients(&model, &kept.sum());
        assert!(found.contains_key("vision_tower.encoder.layers.0.self_attn.q_proj.weight"));
        // Features of the choice alone end nowhere.
        let chosen = selection.apply_to(random::<A, 3>([3, 16, 5], 1));
        assert!(gradients(&model, &chosen.sum()).is_empty(), "{name}");
    }
}

#[test]
fn a_frozen_tower_has_no_gradient_and_its_features_none_either() {
    let model = model::<A>(&config());
    assert!(!model.trainable().vision_tower, "frozen unless it is asked to be trained");
    let batch = Batch::mixed();
    for trainable in [Trainable::pretrain(), Trainable::full()] {
        let model = model.clone().with_trainable(trainable).unwrap();
        let features = model.encode(random([3, 3, 16, 16], 9), &Needs::of([KEYS])).unwrap();
        for (name, feature) in features.iter() {
            let found = gradients(&model, &feature.clone().sum());
            assert!(found.is_empty(), "{name}: {:?}", found.keys());
        }
        let student = run(&model, &batch, &View::Full, "none");
        let found = gradients(&model, &loss(&model, &student, None));
        assert!(found.contains_key("mm_projector.linear_1.weight"));
        assert!(found.keys().all(|path| !path.starts_with("vision_tower.")), "{:?}", found.keys());
        // Thawed and frozen again: as before.
        let thawed = Trainable { vision_tower: true, ..trainable };
        let thawed = model.clone().with_trainable(thawed).unwrap();
        let features = thawed.encode(random([3, 3, 16, 16], 9), &Needs::none()).unwrap();
        assert!(!gradients(&thawed, &features.hidden().sum()).is_empty());
        let again = thawed.with_trainable(trainable).unwrap();
        let features = again.encode(random([3, 3, 16, 16], 9), &Needs::none()).unwrap();
        assert!(gradients(&again, &features.hidden().sum()).is_empty());
    }
}

/// The teacher of a model whose tower is trained is a constant, too.
#[test]
fn a_teacher_holds_no_graph_of_a_trained_tower() {
    let trainable = Trainable { vision_tower: true, ..Trainable::full() };
    let model = model::<A>(&config()).with_trainable(trainable).unwrap();
    let batch = Batch::mixed();
    let features = model.encode(random([3, 3, 16, 16], 9), &Needs::none()).unwrap();
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let view = View::Pruned { keep: 4, isolator: true };
    let (ctx, inputs) = (StepContext::training(1, 0), batch.inputs(Some(&features)));
    let teacher = model.forward_teacher(&inputs, &view, &*pruner, &ctx).unwrap();
    assert!(gradients(&model, &teacher.hidden.clone().sum()).is_empty());
    let student = model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
    assert_eq!(values(&teacher.hidden), values(&student.hidden));
}
