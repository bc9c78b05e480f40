//! PEFT adapters and files of single parts.

use dualspeed::model::import::{Adapter, LoadOptions, load_extra};
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
    assert_eq!((adapter.config.r, adapter.config.alpha), (4, 12.0));
    assert_eq!(adapter.config.targets.len(), 3);
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
    let model = load_extra(model, &dir.join("mm_projector.bin"), &Default::default()).unwrap();
    assert_close("projector", linear_1(&model), before * 2.0);
    let model = load_extra(model, &dir.join("mode_isolator.bin"), &Default::default()).unwrap();
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
    assert_eq!((adapter.config.r, adapter.config.alpha), (3, 6.0));
    assert_eq!(adapter.config.targets.len(), 7);
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
