//! Who is trained, who is in a record.

use std::collections::BTreeSet;

use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsParams;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use dualspeed_model::nn::params::trainable_parameters;
use dualspeed_model::{
    DualSpeedObjective, Llava, ModelError, ParamGroup, ParamInfo, PrunerSpec, Registry,
    StepContext, Trainable, View,
};

use crate::support::{A, B, Batch, config, device, encode, lora, losses, model, values};

/// Paths of the parameters that have a gradient after a fast step.
fn with_gradient(model: &Llava<A>) -> BTreeSet<String> {
    let batch = Batch::mixed();
    let features = encode(model, 3);
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let view = View::Pruned { keep: 4, isolator: true };
    let ctx = StepContext::training(1, 0);
    let inputs = batch.inputs(Some(&features));
    let forward = model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
    let losses = losses(model, &forward, None, DualSpeedObjective::default()).unwrap();
    let loss = losses.loss(losses.tokens).unwrap();
    let grads = GradientsParams::from_grads(loss.backward(), model);
    let infos = model.parameters();
    assert_eq!(
        grads.len(),
        infos.iter().filter(|info| has_gradient(&grads, info)).count(),
        "a gradient belongs to no parameter"
    );
    infos.into_iter().filter(|info| has_gradient(&grads, info)).map(|info| info.path).collect()
}

fn has_gradient(grads: &GradientsParams, info: &ParamInfo) -> bool {
    match info.shape.len() {
        1 => grads.get::<B, 1>(info.id).is_some(),
        2 => grads.get::<B, 2>(info.id).is_some(),
        _ => grads.get::<B, 4>(info.id).is_some(),
    }
}

/// Parts of the vision tower that come after the selected hidden state: no loss depends on them.
fn is_unused(path: &str) -> bool {
    let unused = ["encoder.layers.2.", "post_layernorm.", "visual_projection."];
    unused.iter().any(|part| path.starts_with(&format!("vision_tower.{part}")))
}

#[test]
fn exactly_the_chosen_parts_have_gradients() {
    let base = model::<A>(&config()).with_lora(&lora(), &device::<A>(), 5).unwrap();
    let whole = Trainable { vision_tower: true, lora: true, ..Trainable::full() };
    let tower = Trainable { vision_tower: true, ..Trainable::nothing() };
    for trainable in
        [Trainable::pretrain(), Trainable::finetune_lora(), Trainable::full(), tower, whole]
    {
        let model = base.clone().with_trainable(trainable).unwrap();
        assert_eq!(model.trainable(), trainable);
        let trained: BTreeSet<String> =
            trainable_parameters(&model, "").into_iter().map(|info| info.path).collect();
        assert!(!trained.is_empty());
        let groups = model.parameters();
        let of_groups = groups.iter().filter(|info| {
            let group = ParamGroup::of(&info.path);
            trainable.has(group.unwrap_or_else(|| panic!("{} is in no group", info.path)))
        });
        assert_eq!(trained, of_groups.map(|info| info.path.clone()).collect(), "{trainable:?}");
        let expected: BTreeSet<String> =
            trained.into_iter().filter(|path| !is_unused(path)).collect();
        assert_eq!(with_gradient(&model), expected, "{trainable:?}");
        let ids: BTreeSet<_> = groups.iter().map(|info| info.id).collect();
        assert_eq!(ids.len(), groups.len(), "ids are unique");
        let elements: usize = groups.iter().map(ParamInfo::num_elements).sum();
        assert_eq!(elements, model.num_params(), "counters see every parameter");
        // The flags survive the way to the inner backend and back.
        let back = <Llava<A> as AutodiffModule<A>>::from_inner(model.valid());
        assert_eq!(with_gradient(&back), expected, "{trainable:?}");
    }
    let error = model::<A>(&config()).with_trainable(Trainable::finetune_lora()).unwrap_err();
    assert!(matches!(error, ModelError::NoLora));
}

#[test]
fn ids_are_stable_and_paths_are_the_checkpoints() {
    let (a, b) = (model::<A>(&config()), model::<A>(&config()));
    assert_eq!(a.parameters(), b.parameters());
    let paths: BTreeSet<String> = a.parameters().into_iter().map(|info| info.path).collect();
    for path in [
        "vision_tower.embeddings.class_embedding",
        "vision_tower.encoder.layers.0.self_attn.q_proj.weight",
        "vision_tower.pre_layrnorm.weight",
        "mm_projector.linear_2.bias",
        "mode_isolator",
        "language_model.embed_tokens.weight",
        "language_model.layers.1.mlp.gate_proj.weight",
    ] {
        assert!(paths.contains(path), "{path} not in {paths:?}");
    }
}

#[test]
fn records_hold_what_is_trained_and_load_into_it() {
    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let base = model::<A>(&config()).with_lora(&lora(), &device::<A>(), 5).unwrap();
    let mut sizes = Vec::new();
    let whole = Trainable { vision_tower: true, lora: true, ..Trainable::full() };
    for trainable in [Trainable::nothing(), Trainable::pretrain(), Trainable::full(), whole] {
        let model = base.clone().with_trainable(trainable).unwrap();
        let record = Recorder::<A>::record(&recorder, model.clone().into_record(), ()).unwrap();
        sizes.push(record.len());
        let other: Llava<A> = config().init(&device::<A>(), 77).unwrap();
        let other = other.with_lora(&lora(), &device::<A>(), 77).unwrap();
        let other = other.with_trainable(trainable).unwrap();
        let loaded = other.load_record(recorder.load(record, &device::<A>()).unwrap());
        assert_eq!(loaded.trainable(), trainable);
        let same = |a: &Llava<A>, b: &Llava<A>, f: fn(&Llava<A>) -> Vec<f32>| f(a) == f(b);
        let projector = |m: &Llava<A>| values(&m.mm_projector.mlp().unwrap().linear_1.weight.val());
        let decoder = |m: &Llava<A>| values(&m.language_model.lm_head_weight());
        let tower = |m: &Llava<A>| {
            let embeddings = &m.vision_tower.vit().unwrap().embeddings;
            values(&embeddings.class_embedding.as_ref().unwrap().val())
        };
        assert_eq!(same(&loaded, &model, tower), trainable.vision_tower);
        assert_eq!(same(&loaded, &model, projector), trainable.projector);
        assert_eq!(same(&loaded, &model, decoder), trainable.language_model);
    }
    let trained = |trainable| {
        let model = base.clone().with_trainable(trainable).unwrap();
        trainable_parameters(&model, "").iter().map(ParamInfo::num_elements).sum::<usize>()
    };
    // Type names and a `None` per part.
    assert!(sizes[0] < 256, "{sizes:?}");
    for (size, trainable) in
        [(sizes[1], Trainable::pretrain()), (sizes[2], Trainable::full()), (sizes[3], whole)]
    {
        let bytes = 4 * trained(trainable);
        assert!(size >= bytes && size < bytes * 2, "{size} for {bytes}");
    }
}
