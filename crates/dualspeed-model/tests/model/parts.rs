//! A vision tower and a projector of another crate, registered by name: four features become one token.

use burn::module::{AutodiffModule, Module};
use burn::tensor::{Int, Tensor};
use dualspeed_core::RegistryError;
use dualspeed_model::config::{
    CustomProjectorConfig, CustomVisionConfig, ModelConfigError, ProjectorType,
};
use dualspeed_model::vision::features::{CLS_ATTENTION, HIDDEN, KEYS};
use dualspeed_model::{
    DualSpeedObjective, Llava, LlavaConfig, ModelError, Needs, ParamGroup, Precision, PruneError,
    PrunerSpec, Registry, StepContext, Trainable, View, VisionFeatures, store,
};
use dualspeed_ops::Backend;

use crate::custom_parts::{WIDTH, custom, merging, model, parts, tower};
use crate::support::{
    A, B, Batch, assert_close, check_differences, config, device, encode, gradients, inference,
    losses, random, scrambled, values,
};

fn features<T: Backend>(model: &Llava<T>) -> VisionFeatures<T> {
    let needs = Needs::of(["brightness", CLS_ATTENTION, KEYS]);
    model.encode(random([3, 3, 16, 16], 9), &needs).unwrap()
}

fn pruner<T: Backend>(spec: &str) -> Box<dyn dualspeed_model::Pruner<T>> {
    Registry::<T>::builtin().build(&spec.parse::<PrunerSpec>().unwrap()).unwrap()
}

#[test]
fn a_merging_projector_makes_a_quarter_of_the_tokens() {
    let (model, batch) = (model::<B>(&custom()), Batch::mixed());
    assert_eq!((model.config.num_visual_tokens(), model.config.visual_grid()), (16, 4));
    assert!(!model.mm_projector.is_per_token());
    let features = features(&model);
    assert_eq!((features.num_tokens(), features.hidden().dims()), (64, [3, 64, WIDTH]));
    assert!(features.get("brightness").is_some());
    assert!(features.get(KEYS).is_none(), "it has none, so it is left out");

    let inputs = batch.inputs(Some(&features));
    let full = model.forward(&inputs, &View::Full, None, &inference()).unwrap();
    assert_eq!(full.visual_tokens, 48);
    assert_eq!(full.lengths, [5 + 16, 4, 6 + 32]);
    // A sample with its tokens in place, put together by hand.
    let projected = model.mm_projector.forward(features.hidden());
    assert_eq!(projected.dims(), [3, 16, 16]);
    let embed = |ids: &[i64]| {
        let ids = Tensor::<B, 1, Int>::from_ints(ids, &device::<B>());
        model.language_model.embed(ids).unsqueeze::<3>()
    };
    let image = projected.clone().narrow(0, 0, 1);
    let embeds = Tensor::cat(vec![embed(&[1]), image, embed(&[7, 8, 9, 2])], 1);
    let hidden = values(&model.language_model.forward(embeds, Default::default()));
    assert_close(&values(&full.hidden)[..32], &hidden[18 * 16..20 * 16], 1e-5);
    // The first token is made of the four features of the upper left corner.
    let corner = [0, 1, 8, 9].map(|at| features.hidden().narrow(0, 0, 1).narrow(1, at, 1));
    let corner = Tensor::cat(corner.to_vec(), 2).reshape([1, 4 * WIDTH]);
    let dualspeed_model::Projector::Custom(projector) = &*model.mm_projector else {
        panic!("the configuration names a projector of this crate")
    };
    let first = corner.matmul(projector.params.matrix("merge.weight").unwrap());
    assert_close(&values(&projected)[..16], &values(&first), 1e-5);
}

#[test]
fn merged_tokens_are_pruned_after_the_projector() {
    let (model, batch) = (model::<B>(&custom()), Batch::mixed());
    let features = features(&model);
    let inputs = batch.inputs(Some(&features));
    let projected = model.mm_projector.forward(features.hidden());
    let view = View::Pruned { keep: 5, isolator: true };
    for name in ["random", "divprune", "uniform", "dart"] {
        let pruner = pruner::<B>(name);
        let forward = model.forward(&inputs, &view, Some(&*pruner), &inference()).unwrap();
        assert_eq!(forward.visual_tokens, 15, "{name}");
        assert_eq!(forward.lengths, [5 + 3 + 5, 4, 6 + 2 * (3 + 5)], "{name}");
        let picks = forward.picks.unwrap();
        assert_eq!(picks.dims(), [3, 5]);
        let picks: Vec<i64> = picks.into_data().iter::<i64>().collect();
        assert!(picks.iter().all(|pick| (0..16).contains(pick)), "{name}: {picks:?}");
        if name == "divprune" {
            // Chosen among projected tokens, not among features.
            let farthest = dualspeed_ops::farthest_points(projected.clone(), 5);
            let mut farthest: Vec<i64> = farthest.into_data().iter::<i64>().collect();
            farthest.chunks_mut(5).for_each(<[i64]>::sort_unstable);
            assert_eq!(picks, farthest);
        }
        let selection = model.select(&inputs, &view, Some(&*pruner), &inference());
        let selection = selection.unwrap().unwrap();
        let kept = values(&selection.apply_to(projected.clone()));
        let all = values(&projected);
        let expected: Vec<f32> = picks
            .chunks(5)
            .enumerate()
            .flat_map(|(image, picks)| {
                let row = |pick: &i64| all[(image * 16 + *pick as usize) * 16..][..16].to_vec();
                picks.iter().flat_map(row).collect::<Vec<f32>>()
            })
            .collect();
        assert_eq!(kept, expected, "{name}");
    }
    let pool = pruner::<B>("avgpool2d");
    let four = View::Pruned { keep: 4, isolator: false };
    let pooled = model.forward(&inputs, &four, Some(&*pool), &inference()).unwrap();
    assert_eq!((pooled.visual_tokens, pooled.picks.is_none()), (12, true));
}

#[test]
fn pruners_of_tower_features_are_refused_behind_a_merging_projector() {
    let batch = Batch::mixed();
    // The custom tower, and CLIP's, whose features every pruner knows.
    let clip = LlavaConfig { mm_projector_type: merging(), ..config() };
    let clip = model::<B>(&clip);
    assert_eq!(clip.config.num_visual_tokens(), 4);
    let own = model::<B>(&custom());
    for (model, features, tokens, count) in
        [(&own, features(&own), 16, 64), (&clip, encode(&clip, 3), 4, 16)]
    {
        let inputs = batch.inputs(Some(&features));
        for name in ["fastervlm", "visionzip", "holov", "vispruner", "trim"] {
            let view = View::Pruned { keep: 3, isolator: false };
            let error = model.forward(&inputs, &view, Some(&*pruner(name)), &inference());
            match error.unwrap_err() {
                ModelError::Prune(PruneError::TokenCount { pruner, features, tokens: found }) => {
                    assert_eq!((&*pruner, features, found), (name, count, tokens));
                }
                other => panic!("{name}: {other}"),
            }
        }
        // With more than there are.
        let view = View::Pruned { keep: tokens + 1, isolator: false };
        let error = model.forward(&inputs, &view, Some(&*pruner("random")), &inference());
        assert!(matches!(
            error.unwrap_err(),
            ModelError::Prune(PruneError::KeepTooMany { tokens: found, .. }) if found == tokens
        ));
    }
}

#[test]
fn gradients_of_a_custom_projector_and_tower_equal_finite_differences() {
    let trainable = Trainable { vision_tower: true, ..Trainable::pretrain() };
    let model = model::<A>(&custom()).with_trainable(trainable).unwrap();
    let (inner, batch) = (model.valid(), Batch::mixed());
    let ctx = StepContext { dropout: false, ..StepContext::training(3, 1) };
    fn run<T: Backend>(
        model: &Llava<T>,
        batch: &Batch,
        (view, name): (View, &str),
        ctx: &StepContext,
    ) -> Tensor<T, 1> {
        let features = model.encode(random([3, 3, 16, 16], 9), &Needs::none()).unwrap();
        let inputs = batch.inputs(Some(&features));
        let forward = model.forward(&inputs, &view, Some(&*pruner(name)), ctx).unwrap();
        let losses = losses(model, &forward, None, DualSpeedObjective::default()).unwrap();
        losses.loss(losses.tokens).unwrap()
    }
    // Random picks depend on no feature, so that a small change of a weight changes no pick.
    let fast = View::Pruned { keep: 5, isolator: true };
    for asked in [(View::Full, "none"), (fast, "random")] {
        let found = gradients(&model, &run(&model, &batch, asked, &ctx));
        let custom =
            |path: &str| path.starts_with("mm_projector.") || path.starts_with("vision_tower.");
        assert!(found.contains_key("mm_projector.params.merge.weight"), "{:?}", found.keys());
        let loss = |moved: &Llava<B>| values(&run(moved, &batch, asked, &ctx))[0];
        let compared = check_differences(&inner, &found, custom, 1e-2, loss);
        assert!(compared >= 4, "{asked:?}: {compared}");
    }
    // Pruned by diversity: gradients flow, to the projector and to the tower behind it.
    let found = gradients(&model, &run(&model, &batch, (fast, "divprune"), &ctx));
    for path in ["mm_projector.params.merge.weight", "vision_tower.params.patch_embedding"] {
        assert!(found[path].iter().any(|x| x.abs() > 1e-4), "{path}");
    }
    // The teacher runs the same code on the inner backend.
    let features = model.encode(random([3, 3, 16, 16], 9), &Needs::none()).unwrap();
    let inputs = batch.inputs(Some(&features));
    let divprune = pruner::<A>("divprune");
    let teacher = model.forward_teacher(&inputs, &fast, &*divprune, &ctx).unwrap();
    let student = model.forward(&inputs, &fast, Some(&*divprune), &ctx).unwrap();
    assert_eq!(values(&teacher.hidden), values(&student.hidden));
}

#[test]
fn parameters_of_other_crates_go_by_their_names() {
    let model = model::<A>(&custom());
    let parameters = model.parameters();
    let shape = |path: &str| {
        let info = parameters.iter().find(|info| info.path == path);
        let info = info.unwrap_or_else(|| panic!("no {path} in {parameters:?}"));
        (info.shape.clone(), ParamGroup::of(&info.path).unwrap())
    };
    let (tower, projector) = (ParamGroup::VisionTower, ParamGroup::Projector);
    assert_eq!(shape("vision_tower.params.patch_embedding"), (vec![12, WIDTH], tower));
    assert_eq!(shape("vision_tower.params.shift"), (vec![WIDTH], tower));
    assert_eq!(shape("vision_tower.params.unused"), (vec![1, 1, 2, 2], tower));
    assert_eq!(shape("mm_projector.params.merge.weight"), (vec![4 * WIDTH, 16], projector));
    assert_eq!(shape("mm_projector.params.merge.bias"), (vec![16], projector));
    let ids: std::collections::BTreeSet<_> = parameters.iter().map(|info| info.id).collect();
    assert_eq!(ids.len(), parameters.len(), "ids are unique");
    let elements: usize = parameters.iter().map(|info| info.num_elements()).sum();
    assert_eq!(elements, model.num_params(), "counters see every parameter");
    // Trained or not, as any other part.
    assert!(!model.trainable().vision_tower && model.trainable().projector);
}

#[test]
fn weights_of_other_crates_survive_the_disk_and_records() {
    use burn::record::{BinBytesRecorder, FullPrecisionSettings, Recorder};

    let everything = Trainable { vision_tower: true, ..Trainable::full() };
    let one = model::<A>(&custom()).with_trainable(everything).unwrap();
    let one = scrambled(one, "", 0.5);
    let batch = Batch::mixed();
    let hidden = |model: &Llava<A>| {
        let features = features(model);
        let inputs = batch.inputs(Some(&features));
        values(&model.forward(&inputs, &View::Full, None, &inference()).unwrap().hidden)
    };
    let fresh = || model::<A>(&custom()).with_trainable(everything).unwrap();
    assert_ne!(hidden(&fresh()), hidden(&one));
    let bytes = store::to_bytes::<A, _>(&one, Precision::Full).unwrap();
    let loaded = store::from_bytes::<A, _>(fresh(), &bytes, "test").unwrap();
    assert_eq!(hidden(&loaded), hidden(&one));

    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    let record = Recorder::<A>::record(&recorder, one.clone().into_record(), ()).unwrap();
    let loaded = fresh().load_record(recorder.load(record, &device::<A>()).unwrap());
    assert_eq!(hidden(&loaded), hidden(&one));
}

#[test]
fn names_that_nobody_registered_are_errors_with_the_nearest() {
    let build = |config: LlavaConfig| {
        config.init_with::<A>(&parts(), &device::<A>(), 5).map(drop).unwrap_err()
    };
    let refused = |error: ModelError| match error {
        ModelError::Config(ModelConfigError::Unknown(error)) => error,
        other => panic!("{other}"),
    };
    let kind = "pathces".to_owned();
    let vision = CustomVisionConfig { kind, ..tower() }.into();
    let error = build(LlavaConfig { vision, ..custom() });
    assert!(error.to_string().contains("did you mean `patches`?"), "{error}");
    match refused(error) {
        RegistryError::Unknown { kind, name, nearest, known } => {
            assert_eq!((kind, &*name), ("vision tower", "pathces"));
            assert_eq!(nearest.as_deref(), Some("patches"));
            assert!(known.contains(&"patches".to_owned()), "{known:?}");
        }
        other => panic!("{other}"),
    }
    let projector = |kind: &str, merge| {
        let (kind, options) = (kind.into(), Default::default());
        let asked = CustomProjectorConfig { kind, merge, options };
        LlavaConfig { mm_projector_type: ProjectorType::Custom(asked), ..custom() }
    };
    let error = build(projector("pixelmerge", 2));
    assert!(error.to_string().contains("did you mean `pixel_merge`?"), "{error}");
    assert!(matches!(refused(error), RegistryError::Unknown { kind: "projector", .. }));
    // A maker may refuse what it is asked for, and options are read.
    let error = refused(build(projector("pixel_merge", 4)));
    assert!(error.to_string().contains("merges 2 x 2 features"), "{error}");
    let options = serde_json::from_str(r#"{ "gian": 1 }"#).unwrap();
    let vision = CustomVisionConfig { options, ..tower() }.into();
    let error = refused(build(LlavaConfig { vision, ..custom() }));
    assert!(error.to_string().contains("did you mean `gain`?"), "{error}");
    // A grid that the projector cannot divide.
    assert!(matches!(
        build(projector("pixel_merge", 3)),
        ModelError::Config(ModelConfigError::NotDivisible { value: 8, divisor: 3, .. })
    ));
    // Without any parts at all.
    let error = custom().init::<A>(&device::<A>(), 5).map(drop).unwrap_err();
    assert!(error.to_string().contains("patches"), "{error}");
}

/// Options change the function; features of a custom tower can be replaced by given ones of its shape.
#[test]
fn options_reach_the_code() {
    let base = model::<B>(&custom());
    let vision = CustomVisionConfig { options: Default::default(), ..tower() }.into();
    let plain = model::<B>(&LlavaConfig { vision, ..custom() });
    let [loud, quiet] = [&base, &plain].map(|model| values(&features(model).hidden()));
    let scaled: Vec<f32> = quiet.iter().map(|x| 1.5 * (x - 0.1) + 0.1).collect();
    assert_close(&loud, &scaled, 1e-5);
    let given = VisionFeatures::new(random([3, 64, WIDTH], 4));
    assert!(given.get(HIDDEN).is_some());
    let batch = Batch::mixed();
    let hidden = |model: &Llava<B>| {
        let inputs = batch.inputs(Some(&given));
        values(&model.forward(&inputs, &View::Full, None, &inference()).unwrap().hidden)
    };
    assert_eq!(hidden(&base), hidden(&plain), "the tower is not asked");
}
