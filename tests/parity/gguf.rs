//! GGUF: a tiny file with every element type, and SmolLM2 where it has been fetched.

use dualspeed::model::import::{AnyModel, Gguf, LoadOptions};
use dualspeed::model::{Decoder, RopeScaling};
use dualspeed::pipeline::gguf_tokenizer;

use crate::support::{B, Expected, assert_close, asset, fixture, ids};

fn decoder(gguf: Gguf) -> Decoder<B> {
    let checkpoint = gguf.into_checkpoint().unwrap();
    match checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).unwrap().0 {
        AnyModel::Decoder(model) => *model,
        other => panic!("a {other:?}"),
    }
}

#[test]
fn every_element_type_and_both_orders_of_rows() {
    let expected = Expected::of("gguf");
    let gguf = Gguf::open(&fixture("llama.gguf")).unwrap();
    let vocabulary = gguf.vocabulary().unwrap();
    assert_eq!((vocabulary.tokens.len(), vocabulary.special.clone()), (96, vec![0, 1, 2]));
    assert_eq!(
        (vocabulary.bos, vocabulary.eos, vocabulary.pre.as_str()),
        (Some(1), Some(2), "smollm")
    );
    let model = decoder(gguf);
    assert_eq!((model.config.rope_theta, model.config.kv_heads()), (50_000.0, 2));
    let logits = model.logits(&ids(&expected.ints["input_ids"])).unwrap();
    assert_close("gguf", logits, expected.tensor::<2>("logits"));
}

/// Sentencepiece's pieces, scores and bytes; Llama 3's scaling as a tensor of factors, from which its numbers are found.
#[test]
fn sentencepiece_and_scaled_frequencies() {
    let expected = Expected::of("sentencepiece");
    let gguf = Gguf::open(&fixture("sentencepiece.gguf")).unwrap();
    let tokenizer = gguf_tokenizer(&gguf.vocabulary().unwrap()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.vocab_size()), (Some(1), 2, 384));
    let cases = expected.ints["encoded"].as_array().unwrap();
    assert!(cases.len() > 10);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let found = tokenizer.encode(text).unwrap();
        // A piece cut out beforehand: the library goes on without a space, llama.cpp and this begin a text anew.
        let reference = match text.strip_prefix("<tool>") {
            None => ids(&case["ids"]),
            Some(rest) => [vec![3], tokenizer.encode(rest).unwrap()].concat(),
        };
        assert_eq!(found, reference, "{text:?}");
        if !text.contains("<tool>") {
            assert_eq!(tokenizer.decode(&found).unwrap(), case["back"].as_str().unwrap());
        }
    }
    let model = decoder(gguf);
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 8.0,
        original_max_position_embeddings: 256,
    };
    assert_eq!(model.config.rope_scaling, Some(scaling));
    let logits = model.logits(&ids(&expected.ints["input_ids"])).unwrap();
    let last = logits.dims()[0] - 8;
    assert_close("scaled gguf", logits.narrow(0, last, 8), expected.tensor::<2>("logits"));

    let linear = Gguf::open(&fixture("linear.gguf")).unwrap().config().unwrap();
    assert_eq!(linear.rope_scaling, Some(RopeScaling::Linear { factor: 4.0 }));
}

/// Factors that follow no rule are refused by name, and so is a kind of scaling that is not known.
#[test]
fn other_scalings_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let mut bytes = std::fs::read(fixture("sentencepiece.gguf")).unwrap();
    // The factors lie side by side: 1.0 twice, then what is blended.
    let ones = [1.0f32, 1.0].map(f32::to_le_bytes).concat();
    let at = bytes.windows(ones.len()).position(|window| window == ones).unwrap();
    bytes[at..at + 4].copy_from_slice(&3.0f32.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = Gguf::open(&path).unwrap().config().unwrap_err().to_string();
    assert!(error.contains("rope_freqs.weight") && error.contains("a.gguf"), "{error}");

    let mut bytes = std::fs::read(fixture("linear.gguf")).unwrap();
    let at = bytes.windows(6).position(|window| window == b"linear").unwrap();
    bytes[at..at + 6].copy_from_slice(b"yarnny");
    std::fs::write(&path, &bytes).unwrap();
    let error = Gguf::open(&path).unwrap().config().unwrap_err().to_string();
    assert!(error.contains("llama.rope.scaling.type") && error.contains("yarnny"), "{error}");
}

#[test]
fn a_truncated_file_names_the_tensor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    let bytes = std::fs::read(fixture("llama.gguf")).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 2000]).unwrap();
    let checkpoint = Gguf::open(&path).unwrap().into_checkpoint().unwrap();
    let error = checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("a.gguf") && error.contains("tensor `"), "{error}");
    assert!(error.contains("truncated"), "{error}");
}

/// The probe text's perplexity under shared reference/lm.py, which runs the same file in numpy.
const REFERENCE: f64 = 16.8825;

#[test]
fn smollm2_has_the_perplexity_of_the_reference() {
    let Some(path) = asset("smollm2-135m") else { return };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = gguf_tokenizer(&gguf.vocabulary().unwrap()).unwrap();
    let text = "The Eiffel Tower is located in the city of Paris, which is the capital of France. \
                The red apple is on the table next to the window.";
    let ids = tokenizer.encode(text).unwrap();
    assert_eq!(ids.len(), 31);
    let logits = decoder(gguf).logits(&ids).unwrap();
    let vocab = logits.dims()[1];
    let logits: Vec<f32> = logits.into_data().iter::<f32>().collect();
    let surprise: f64 = logits
        .chunks(vocab)
        .zip(&ids[1..])
        .map(|(row, next)| {
            let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
            sum.ln() - f64::from(row[*next as usize])
        })
        .sum();
    let perplexity = (surprise / (ids.len() - 1) as f64).exp();
    println!("perplexity {perplexity:.3}, reference {REFERENCE}");
    assert!((perplexity / REFERENCE - 1.0).abs() < 0.01, "{perplexity}");
}
