//! GGUF: a tiny file with every element type, and SmolLM2 where it has been fetched.

use dualspeed::assets::{Asset, cache_dir};
use dualspeed::data::BpeVocabulary;
use dualspeed::model::Llama;
use dualspeed::model::import::{AnyModel, Gguf, LoadOptions};

use crate::support::{B, Expected, assert_close, fixture, ids};

fn decoder(gguf: Gguf) -> Llama<B> {
    let checkpoint = gguf.into_checkpoint().unwrap();
    match checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).unwrap().0 {
        AnyModel::Llama(model) => *model,
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
    let asset = Asset::named("smollm2-135m").unwrap();
    let path = asset.path(&cache_dir().unwrap());
    if !path.is_file() {
        println!("skipped: {} is not there (dualspeed assets fetch)", path.display());
        return;
    }
    let gguf = Gguf::open(&path).unwrap();
    let vocabulary = gguf.vocabulary().unwrap();
    let tokenizer = BpeVocabulary {
        tokens: vocabulary.tokens,
        merges: vocabulary.merges,
        pre: vocabulary.pre,
        special: vocabulary.special,
        bos: vocabulary.bos,
        eos: vocabulary.eos,
    };
    let text = "The Eiffel Tower is located in the city of Paris, which is the capital of France. \
                The red apple is on the table next to the window.";
    let ids = tokenizer.tokenizer().unwrap().encode(text).unwrap();
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
