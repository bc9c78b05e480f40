//! Decoders alone.

use std::ops::ControlFlow;

use dualspeed::model::GenerateOptions;
use dualspeed::model::import::{AnyModel, LoadOptions};

use crate::support::{Expected, assert_close, ids, load};

fn check(name: &str) {
    let expected = Expected::of(name);
    let AnyModel::Decoder(model) = load(name, &LoadOptions::default()) else {
        panic!("{name} is no decoder");
    };
    let input_ids = ids(&expected.ints["input_ids"]);
    assert_close(name, model.logits(&input_ids).unwrap(), expected.tensor::<2>("logits"));
    let greedy = ids(&expected.ints["greedy"]);
    let options = GenerateOptions { max_new_tokens: greedy.len(), ..GenerateOptions::default() };
    let mut streamed = Vec::new();
    let generated = model
        .generate(&input_ids, &options, &mut |id| {
            streamed.push(id);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert_eq!((&generated.ids, &streamed), (&greedy, &greedy));
    assert!(generated.log_probs.iter().all(|log_prob| *log_prob < 0.0));
    // Stopped from outside after three.
    let mut count = 0;
    let stopped = model.generate(&input_ids, &options, &mut |_| {
        count += 1;
        if count == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(stopped.unwrap().ids, greedy[..3]);
}

#[test]
fn frequencies_scaled_as_in_llama_3_one_key_head() {
    check("llama_llama3");
}

#[test]
fn tied_head_narrow_heads() {
    check("llama_tied");
}
