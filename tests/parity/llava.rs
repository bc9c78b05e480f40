//! LLaVA: vision features, logits of whole sequences, greedy text.

use dualspeed::data::IMAGE_TOKEN_INDEX;
use dualspeed::model::VisionTower;
use dualspeed::model::import::{Checkpoint, LoadOptions};
use dualspeed::prelude::*;

use crate::support::{B, Expected, Prompt, assert_close, fixture, ids, load_llava};

/// Everything `expected` of a fixture holds, of a model that is already loaded.
pub fn check(name: &str, model: &Llava<B>, expected: &Expected) {
    let pixels = expected.tensor::<4>("pixel_values");
    let vision = &model.vision_tower;
    let hidden = vision.features(pixels.clone(), &Needs::none()).hidden();
    let reference = expected.tensor::<3>("vision_hidden");
    let skipped = reference.dims()[1] - hidden.dims()[1];
    let kept = hidden.dims()[1];
    assert_close(&format!("{name} vision"), hidden, reference.narrow(1, skipped, kept));

    let mut first = 0;
    for sample in 0..2 {
        let input_ids = ids(&expected.ints["input_ids"][sample]);
        let images = input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
        let own = pixels.clone().narrow(0, first, images);
        first += images;
        let features = model.encode(own, &Needs::none()).unwrap();
        let prompt = Prompt::new(&input_ids, Some(&features));
        let logits = prompt.logits(model);
        // The second row of the reference's batch was padded on the left.
        let reference = expected.tensor::<2>(&format!("logits.{sample}"));
        assert_close(&format!("{name} logits {sample}"), logits.clone(), reference);

        let greedy = ids(&expected.ints["greedy"][sample]);
        assert_eq!(prompt.greedy(model, greedy.len()), greedy, "{name}: greedy text {sample}");

        // The cache makes no difference: the whole sequence at once gives the same continuation.
        let all: Vec<i64> = input_ids.iter().chain(&greedy[..greedy.len() - 1]).copied().collect();
        let full = Prompt::new(&all, Some(&features)).logits(model);
        let start = logits.dims()[0] - 1;
        let picks = full.narrow(0, start, greedy.len()).argmax(1);
        let picks: Vec<i64> = picks.into_data().iter::<i64>().collect();
        assert_eq!(
            picks, greedy,
            "{name}: the full forward picks other tokens than the cached one"
        );
    }
}

#[test]
fn grouped_queries_tied_head_wide_heads_odd_side() {
    let model = load_llava("llava_gqa_tied", &LoadOptions::default());
    assert!(model.config.text.tie_word_embeddings && model.language_model.lm_head.is_none());
    assert_eq!(model.config.text.head_size() * model.config.text.num_attention_heads, 96);
    check("llava_gqa_tied", &model, &Expected::of("llava_gqa_tied"));
}

#[test]
fn shards_class_token_scaled_positions_side_that_is_no_multiple_of_the_patch() {
    let model = load_llava("llava_cls_sharded", &LoadOptions::default());
    assert_eq!(model.config.num_visual_tokens(), 17);
    check("llava_cls_sharded", &model, &Expected::of("llava_cls_sharded"));
}

#[test]
fn many_heads_untied() {
    let model = load_llava("llava_mha", &LoadOptions::default());
    check("llava_mha", &model, &Expected::of("llava_mha"));
}

#[test]
fn the_original_layout_in_both_kinds_of_pickle() {
    let dir = fixture("llava_original");
    let options = LoadOptions { vision_tower: Some(dir.join("vision")), ..LoadOptions::default() };
    check(
        "llava_original",
        &load_llava("llava_original", &options),
        &Expected::of("llava_original"),
    );
    // Without the tower's own checkpoint there is nothing to see with.
    let error = Checkpoint::open(&dir, &LoadOptions::default()).err().unwrap().to_string();
    assert!(error.contains("vision tower") && error.contains("--vision-tower"), "{error}");
}
