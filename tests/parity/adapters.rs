//! PEFT adapters and files of single parts.

use dualspeed::model::export::export_adapter;
use dualspeed::model::import::safetensors::SafetensorsWeights;
use dualspeed::model::import::source::WeightSource;
use dualspeed::model::import::{Adapter, Checkpoint, LoadOptions, load_parts};
use dualspeed::prelude::*;

use crate::support::{B, Expected, Prompt, assert_close, fixture, ids, load_llava};

fn first_prompt(model: &Llava<B>, base: &Expected) -> Tensor<B, 2> {
    let pixels = base.tensor::<4>("pixel_values").narrow(0, 0, 2);
    let features = model.encode(pixels, &Needs::none()).unwrap();
    Prompt::new(&ids(&base.ints["input_ids"][0]), Some(&features)).logits(model)
}

/// The first layer of LLaVA's projector.
fn linear_1(model: &Llava<B>) -> Tensor<B, 2> {
    model.mm_projector.mlp().unwrap().linear_1.weight.val()
}

#[test]
fn an_adapter_of_peft_gives_pefts_logits_merged_or_not() {
    let base = Expected::of("llava_mha");
    let expected = Expected::of("llava_peft").tensor::<2>("logits");
    let adapter = Adapter::open(&fixture("llava_peft")).unwrap();
    let config = adapter.config.as_ref().unwrap();
    assert_eq!((config.r, config.alpha, config.targets.len()), (4, 12.0, 3));
    assert_eq!(adapter.base_model.as_deref(), Some("../llava_mha"));
    let model = load_llava("llava_mha", &LoadOptions::default());
    let plain = first_prompt(&model, &base);
    let adapted = adapter.apply(model, &Default::default()).unwrap();
    let logits = first_prompt(&adapted, &base);
    let changed = (logits.clone() - plain).abs().max().into_scalar();
    assert!(changed > 0.1, "the adapter changes nothing: {changed}");
    assert_close("adapter", logits, expected.clone());
    assert_close("merged", first_prompt(&adapted.merge_lora(), &base), expected);
}

#[test]
fn projector_and_isolator_files() {
    let expected = Expected::of("llava_original");
    let dir = fixture("llava_original");
    let options = LoadOptions { vision_tower: Some(dir.join("vision")), ..LoadOptions::default() };
    let model = load_llava("llava_original", &options);
    let before = linear_1(&model);
    let model = load_parts(model, &dir.join("mm_projector.bin"), &Default::default()).unwrap();
    assert_close("projector", linear_1(&model), before * 2.0);
    let model = load_parts(model, &dir.join("mode_isolator.bin"), &Default::default()).unwrap();
    assert_eq!(model.config.isolator_length, 4);
    let isolator = model.mode_isolator.as_ref().unwrap().val();
    assert_close("isolator", isolator, expected.tensor::<2>("isolator"));
}

/// What stage 2 of LLaVA's own code leaves: adapters on all linear layers in a pickle, the projector in
/// `non_lora_trainables.bin`, DualSpeed's soft prompt in `mode_isolator.bin`; over the weights of `llava_mha`.
#[test]
fn a_directory_of_llavas_own_code_gives_its_logits() {
    let base = Expected::of("llava_mha");
    let expected = Expected::of("llava_lora").tensor::<2>("logits");
    let adapter = Adapter::open(&fixture("llava_lora")).unwrap();
    let config = adapter.config.as_ref().unwrap();
    assert_eq!((config.r, config.alpha, config.targets.len()), (3, 6.0, 7));
    let model = load_llava("llava_mha", &LoadOptions::default());
    let before = linear_1(&model);
    let model = adapter.apply(model, &Default::default()).unwrap();
    assert_eq!(model.config.isolator_length, 3);
    let moved = (linear_1(&model) - before).abs().max().into_scalar();
    assert!(moved > 0.05, "the projector is the base model's: {moved}");

    let pixels = base.tensor::<4>("pixel_values").narrow(0, 0, 2);
    let features = model.encode(pixels, &Needs::none()).unwrap();
    let prompt = Prompt::new(&ids(&base.ints["input_ids"][0]), Some(&features));
    // All tokens, with the soft prompt before each image's.
    let view = View::Pruned { keep: features.num_tokens(), isolator: true };
    let pruner = Registry::<B>::default().build(&"none".parse().unwrap()).unwrap();
    let logits = prompt.logits_of(&model, &view, Some(&*pruner)).unwrap();
    let plain = prompt.logits(&model);
    assert_eq!(plain.dims()[0] + 2 * 3, expected.dims()[0], "two soft prompts of 3");
    assert_close("adapter, projector and soft prompt", logits, expected);
}

/// Adapters that reach the vision tower and the projector, that have magnitudes, ranks, scales or layers of their own, or full copies
/// beside them (`scripts/fixtures/peft_variants.py`).
#[test]
fn every_kind_of_adapter_gives_pefts_logits() {
    let base = Expected::of("llava_mha");
    let reference =
        SafetensorsWeights::open(&fixture("peft_variants/expected.safetensors")).unwrap();
    let plain = first_prompt(&load_llava("llava_mha", &LoadOptions::default()), &base);
    for (name, rank, folded) in [
        ("all_linear", Some(4), 20),
        ("names", Some(4), 6),
        ("rslora", Some(4), 0),
        ("dora", None, 6),
        ("dora_names", None, 8),
        ("saved", Some(4), 0),
        ("patterns", Some(4), 0),
        ("some_layers", Some(4), 1),
        ("biases", Some(4), 6),
    ] {
        let dir = fixture("peft_variants").join(name);
        let adapter = Some(dir.clone());
        let options = LoadOptions { adapter, ..LoadOptions::default() };
        let checkpoint = Checkpoint::open(&fixture("llava_mha"), &options).unwrap();
        assert_eq!(checkpoint.adapter().unwrap().folded(), folded, "{name}");
        let (model, _) = checkpoint.load_llava::<B>(&options, &Default::default()).unwrap();
        assert_eq!(model.config.lora.as_ref().map(|lora| lora.r), rank, "{name}");
        let expected = reference.read(name).unwrap().into_data();
        let expected = Tensor::<B, 2>::from_data(expected, &Default::default());
        let logits = first_prompt(&model, &base);
        let moved = (plain.clone() - expected.clone()).abs().max().into_scalar();
        assert!(moved > 0.1, "{name} changes nothing: {moved}");
        assert_close(name, logits, expected.clone());
        assert_close(name, first_prompt(&model.merge_lora(), &base), expected);
        // In memory there are no weights to fold into: that is said.
        let model = load_llava("llava_mha", &LoadOptions::default());
        let applied = Adapter::open(&dir).unwrap().apply(model, &Default::default());
        assert_eq!(applied.is_err(), folded > 0, "{name}");
    }
}

/// The scale of `alpha / sqrt(r)` goes there and back.
#[test]
fn an_export_keeps_the_scale() {
    let adapter = Some(fixture("peft_variants/rslora"));
    let options = LoadOptions { adapter, ..LoadOptions::default() };
    let model = load_llava("llava_mha", &options);
    let dir = tempfile::tempdir().unwrap();
    export_adapter(&model, dir.path(), "base").unwrap();
    let again = LoadOptions { adapter: Some(dir.path().to_owned()), ..LoadOptions::default() };
    let again = load_llava("llava_mha", &again);
    assert_eq!(again.config.lora, model.config.lora);
    assert_eq!(model.config.lora.as_ref().unwrap().scale(), 4.0);
    let base = Expected::of("llava_mha");
    let difference = first_prompt(&again, &base) - first_prompt(&model, &base);
    assert_eq!(difference.abs().max().into_scalar(), 0.0);
}
