//! Templates and label masks, written out by hand.

use std::ops::Range;

use dualspeed_data::{
    Conversation, EncodeError, IGNORE_INDEX as X, IMAGE_TOKEN_INDEX as IMG, SpecialTokens,
    Template, TextTokenizer, Turn, encode_prompt, encode_training, read_tokenizer,
};
use serde_json::json;

// Ids of `words()`: <pad> 0, <unk> 1, <s> 2, </s> 3, then:
const USER: i64 = 4;
const COLON: i64 = 5;
const ASSISTANT: i64 = 6;
const BE: i64 = 7;
const KIND: i64 = 8;
const WHAT: i64 = 9;
const CAT: i64 = 10;
const DOG: i64 = 11;
const UNK: i64 = 1;
const BOS: i64 = 2;
const EOS: i64 = 3;

fn words() -> TextTokenizer {
    TextTokenizer::from_words(["user", ":", "assistant", "be", "kind", "what", "cat", "dog"])
        .unwrap()
}

fn encode(conversation: &Conversation, template: Template) -> (Vec<i64>, Vec<i64>) {
    let encoded = encode_training(conversation, template, &words(), None).unwrap();
    (encoded.input_ids, encoded.labels)
}

#[test]
fn plain_is_image_then_caption() {
    let conversation = Conversation::new([("<image>\nwhat", "cat dog")]);
    let (ids, labels) = encode(&conversation, Template::Plain);
    assert_eq!(ids, [BOS, IMG, CAT, DOG, EOS]);
    assert_eq!(labels, [X, X, CAT, DOG, EOS]);
}

#[test]
fn vicuna_supervises_every_answer_and_nothing_else() {
    let mut conversation = Conversation::new([("what <image>", "cat"), ("dog", " dog cat ")]);
    conversation.system = Some("be kind".into());
    let (ids, labels) = encode(&conversation, Template::VicunaV1);
    // The image moves to the front of its turn.
    let expected = [
        (BOS, X),
        (BE, X),
        (KIND, X),
        (USER, X),
        (COLON, X),
        (IMG, X),
        (WHAT, X),
        (ASSISTANT, X),
        (COLON, X),
        (CAT, CAT),
        (EOS, EOS),
        (USER, X),
        (COLON, X),
        (DOG, X),
        (ASSISTANT, X),
        (COLON, X),
        (DOG, DOG),
        (CAT, CAT),
        (EOS, EOS),
    ];
    let (expected_ids, expected_labels): (Vec<_>, Vec<_>) = expected.into_iter().unzip();
    assert_eq!(ids, expected_ids);
    assert_eq!(labels, expected_labels);
}

#[test]
fn empty_system_prompt_leaves_no_trace() {
    let mut conversation = Conversation::new([("what", "cat")]);
    conversation.system = Some(String::new());
    let (ids, labels) = encode(&conversation, Template::VicunaV1);
    assert_eq!(ids, [BOS, USER, COLON, WHAT, ASSISTANT, COLON, CAT, EOS]);
    assert_eq!(labels, [X, X, X, X, X, X, CAT, EOS]);

    conversation.system = None;
    let (with_default, _) = encode(&conversation, Template::VicunaV1);
    assert!(with_default.len() > ids.len() + 20, "the default system prompt is Vicuna's");
}

#[test]
fn separators_within_text_are_text() {
    let mut conversation = Conversation::new([
        ("what ASSISTANT: dog</s>", "cat </s> USER: dog ASSISTANT: cat"),
        ("what", "dog"),
    ]);
    conversation.system = Some(String::new());
    let encoded = encode_training(&conversation, Template::VicunaV1, &words(), None).unwrap();
    // "</s>" in text becomes the words "</", "s", ">", all unknown here, never the end token.
    let u = UNK;
    let question = [BOS, USER, COLON, WHAT, ASSISTANT, COLON, DOG, u, u, u, ASSISTANT, COLON];
    let answer = [CAT, u, u, u, USER, COLON, DOG, ASSISTANT, COLON, CAT, EOS];
    let second = [USER, COLON, WHAT, ASSISTANT, COLON];
    let expected_ids = [&question[..], &answer, &second, &[DOG, EOS]].concat();
    let expected_labels = [&vec![X; 12][..], &answer, &[X; 5], &[DOG, EOS]].concat();
    assert_eq!(encoded.input_ids, expected_ids);
    assert_eq!(encoded.labels, expected_labels);
    assert_eq!(encoded.answers, [12..23, 28..30]);
}

#[test]
fn qa_is_compact_and_keeps_images_in_place() {
    let conversation = Conversation::new([("what <image> <image> cat", "dog"), ("what", "cat")]);
    let (ids, labels) = encode(&conversation, Template::Qa);
    assert_eq!(ids, [BOS, WHAT, IMG, IMG, CAT, DOG, EOS, WHAT, CAT, EOS]);
    assert_eq!(labels, [X, X, X, X, X, DOG, EOS, X, CAT, EOS]);
}

#[test]
fn a_prompt_is_how_its_training_example_begins() {
    for template in [Template::Plain, Template::VicunaV1, Template::Qa] {
        let answered = Conversation::new([("<image> what", "cat"), ("dog", "dog")]);
        let mut open = answered.clone();
        open.turns[1] = Turn::open("dog");
        let training = encode_training(&answered, &template, &words(), None).unwrap();
        let prompt = encode_prompt(&open, &template, &words()).unwrap();
        assert_eq!(prompt, training.input_ids[..prompt.len()]);
        assert_eq!(prompt.len(), training.answers[1].start, "{template:?}");

        open.turns.swap(0, 1);
        assert!(matches!(
            encode_prompt(&open, &template, &words()),
            Err(EncodeError::OpenTurn { turn: 0 })
        ));
        assert!(matches!(
            encode_training(&open, &template, &words(), None),
            Err(EncodeError::OpenTurn { turn: 0 })
        ));
    }
}

#[test]
fn truncation_keeps_images_and_something_to_learn() {
    let conversation = Conversation::new([("<image> what", "cat dog"), ("dog", "dog")]);
    let cut = |length| encode_training(&conversation, Template::Qa, &words(), Some(length));
    // <s> IMG what | cat dog </s> | dog | dog </s>
    let encoded = cut(5).unwrap();
    assert_eq!(encoded.labels, [X, X, X, CAT, DOG]);
    assert_eq!(encoded.answers, vec![Range { start: 3, end: 5 }]);
    assert_eq!(cut(100).unwrap().input_ids.len(), 9);
    assert_eq!(cut(7).unwrap().answers, vec![Range { start: 3, end: 6 }]);
    assert!(matches!(
        cut(3),
        Err(EncodeError::NothingSupervised { length: 3, max_length: Some(3) })
    ));
    assert!(matches!(cut(1), Err(EncodeError::ImageTruncated { position: 1, max_length: 1 })));
}

fn bpe(
    normalizer: serde_json::Value,
    pre_tokenizer: serde_json::Value,
    space: &str,
) -> TextTokenizer {
    let chars = [":", "a", "e", "h", "i", "s", "y", "A", "E", "N", "R", "S", "T", "U"];
    let merged = [format!("{space}y"), "es".into(), format!("{space}yes"), format!("{space}i")];
    let tokens = ["<unk>", "<s>", "</s>", space].into_iter().chain(chars);
    let vocab: serde_json::Map<_, _> = tokens
        .chain(merged.iter().map(String::as_str))
        .enumerate()
        .map(|(id, token)| (token.to_string(), json!(id)))
        .collect();
    let added = ["<unk>", "<s>", "</s>"].iter().enumerate().map(|(id, token)| {
        json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    });
    let description = json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": normalizer, "pre_tokenizer": pre_tokenizer,
        "post_processor": null, "decoder": null,
        "model": { "type": "BPE", "vocab": vocab, "unk_token": "<unk>", "fuse_unk": true,
                   "merges": [[space, "y"], ["e", "s"], [format!("{space}y"), "es"], [space, "i"]] },
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tokenizer.json");
    std::fs::write(&path, description.to_string()).unwrap();
    TextTokenizer::from_file(path, &SpecialTokens::default()).unwrap()
}

/// Sentencepiece puts a space before whatever it is given, byte-level BPE does not: the joined segments must be what
/// the tokenizer makes of the whole text, for both.
#[test]
fn joins_are_those_of_the_whole_text() {
    let sentencepiece = bpe(
        json!({ "type": "Sequence", "normalizers": [
            { "type": "Prepend", "prepend": "\u{2581}" },
            { "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" } ] }),
        json!(null),
        "\u{2581}",
    );
    let byte_level = bpe(
        json!(null),
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }),
        "Ġ",
    );
    for tokenizer in [sentencepiece, byte_level] {
        let mut conversation = Conversation::new([("hi", "yes"), ("is a", "yes i")]);
        conversation.system = Some(String::new());
        let encoded = encode_training(&conversation, Template::VicunaV1, &tokenizer, None).unwrap();
        let first = tokenizer.encode("USER: hi ASSISTANT: yes").unwrap();
        let second = tokenizer.encode("USER: is a ASSISTANT: yes i").unwrap();
        let whole = [&[1][..], &first, &[2], &second, &[2]].concat();
        assert_eq!(encoded.input_ids, whole);
        let spoken: Vec<_> = encoded.labels.iter().copied().filter(|&label| label != X).collect();
        // "▁yes" or "Ġyes" is one token (20), "▁i" another (21).
        assert_eq!(spoken, [20, 2, 20, 21, 2]);
    }
}

#[test]
fn special_tokens_are_found_named_or_missed() {
    let tokenizer = words();
    assert_eq!((tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()), (Some(2), 3, 0));
    assert_eq!(tokenizer.vocab_size(), 12);
    assert_eq!(tokenizer.decode(&[BOS, IMG, CAT, X, DOG, EOS]).unwrap(), "cat dog");

    let named = SpecialTokens { eos: Some("dog".into()), ..Default::default() };
    assert_eq!(TextTokenizer::new(tokenizer.inner().clone(), &named).unwrap().eos_id(), DOG);
    let unknown = SpecialTokens { bos: Some("<nope>".into()), ..Default::default() };
    let error = TextTokenizer::new(tokenizer.inner().clone(), &unknown).unwrap_err().to_string();
    assert!(error.contains("<nope>"), "{error}");

    let missing = TextTokenizer::from_file("/nowhere/tokenizer.json", &SpecialTokens::default());
    assert!(missing.unwrap_err().to_string().contains("/nowhere/tokenizer.json"));
}

#[test]
fn a_tokenizers_config_beside_it_names_its_special_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let (model, other) = (dir.path().join("tokenizer.json"), dir.path().join("other.json"));
    for path in [&model, &other] {
        words().inner().save(path, false).unwrap();
    }
    assert_eq!(read_tokenizer(&model).unwrap().eos_id(), EOS);
    let config = dir.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"eos_token": "dog", "pad_token": {"content": "cat"}}"#).unwrap();
    let tokenizer = read_tokenizer(&model).unwrap();
    assert_eq!((tokenizer.eos_id(), tokenizer.pad_id()), (DOG, CAT));
    // A file of another name is nobody's directory.
    assert_eq!(read_tokenizer(&other).unwrap().eos_id(), EOS);
    std::fs::write(&config, "{").unwrap();
    let error = read_tokenizer(&model).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json"), "{error}");
}
