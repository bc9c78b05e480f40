//! Who is trained, who is in a record.

use std::collections::BTreeSet;

use burn::module::{AutodiffModule, Module};
use burn::optim::GradientsParams;
use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};
use dualspeed_model::{
    Llava, ModelError, ParamGroup, PrunerSpec, Registry, StepContext, Trainable, View, fast_loss,
};

use crate::support::{A, Batch, config, device, encode, lora, model};

/// Paths of the parameters that have a gradient after a fast step.
fn with_gradient(model: &Llava<A>) -> BTreeSet<String> {
    let batch = Batch::mixed();
    let visual = encode(model, 3);
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let view = View::Pruned { keep: 4, isolator: true };
    let ctx = StepContext::training(1, 0, batch.ctx().sample_ids);
    let forward = model.forward(batch.text(), Some(&visual), &view, Some(&*pruner), &ctx).unwrap();
    let sums = fast_loss(model, &forward);
    let grads = GradientsParams::from_grads(sums.loss(sums.tokens, 0, 0.0).backward(), model);
    let infos = model.param_groups();
    assert_eq!(
        grads.len(),
        infos.iter().filter(|info| has_gradient(&grads, info)).count(),
        "a gradient belongs to no parameter"
    );
    infos.into_iter().filter(|info| has_gradient(&grads, info)).map(|info| info.path).collect()
}

fn has_gradient(grads: &GradientsParams, info: &dualspeed_model::ParamInfo) -> bool {
    use crate::support::B;
    match info.shape.len() {
        1 => grads.get::<B, 1>(info.id).is_some(),
        2 => grads.get::<B, 2>(info.id).is_some(),
        _ => grads.get::<B, 4>(info.id).is_some(),
    }
}

#[test]
fn exactly_the_chosen_parts_have_gradients() {
    let base = model::<A>(&config()).with_lora(&lora(), &device::<A>(), 5).unwrap();
    for trainable in [Trainable::pretrain(), Trainable::finetune_lora(), Trainable::full()] {
        let model = base.clone().with_trainable(trainable).unwrap();
        assert_eq!(model.trainable(), trainable);
        let expected: BTreeSet<String> = model
            .param_groups()
            .into_iter()
            .filter(|info| info.trainable)
            .map(|info| info.path)
            .collect();
        assert!(!expected.is_empty());
        assert_eq!(with_gradient(&model), expected, "{trainable:?}");
        let groups = model.param_groups();
        assert!(groups.iter().all(|info| info.group != ParamGroup::VisionTower || !info.trainable));
        let ids: BTreeSet<_> = groups.iter().map(|info| info.id).collect();
        assert_eq!(ids.len(), groups.len(), "ids are unique");
        let elements: usize = groups.iter().map(dualspeed_model::ParamInfo::num_elements).sum();
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
    assert_eq!(a.param_groups(), b.param_groups());
    let paths: BTreeSet<String> = a.param_groups().into_iter().map(|info| info.path).collect();
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
    for trainable in [Trainable::nothing(), Trainable::pretrain(), Trainable::full()] {
        let model = base.clone().with_trainable(trainable).unwrap();
        let record = Recorder::<A>::record(&recorder, model.clone().into_record(), ()).unwrap();
        sizes.push(record.len());
        let other: Llava<A> = config().init(&device::<A>(), 77).unwrap();
        let other = other.with_lora(&lora(), &device::<A>(), 77).unwrap();
        let other = other.with_trainable(trainable).unwrap();
        let loaded = other.load_record(recorder.load(record, &device::<A>()).unwrap());
        assert_eq!(loaded.trainable(), trainable);
        let same = |a: &Llava<A>, b: &Llava<A>, f: fn(&Llava<A>) -> Vec<f32>| f(a) == f(b);
        let projector =
            |m: &Llava<A>| crate::support::values(&m.mm_projector.linear_1.weight.val());
        let decoder = |m: &Llava<A>| crate::support::values(&m.language_model.lm_head_weight());
        assert_eq!(same(&loaded, &model, projector), trainable.projector);
        assert_eq!(same(&loaded, &model, decoder), trainable.language_model);
    }
    let trained = |trainable| {
        let model = base.clone().with_trainable(trainable).unwrap();
        let infos = model.param_groups();
        let trained = infos.iter().filter(|info| info.trainable);
        trained.map(dualspeed_model::ParamInfo::num_elements).sum::<usize>()
    };
    // Type names and a `None` per part.
    assert!(sizes[0] < 256, "{sizes:?}");
    for (size, trainable) in [(sizes[1], Trainable::pretrain()), (sizes[2], Trainable::full())] {
        let bytes = 4 * trained(trainable);
        assert!(size >= bytes && size < bytes * 2, "{size} for {bytes}");
    }
}
