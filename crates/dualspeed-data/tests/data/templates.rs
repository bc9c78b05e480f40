//! Templates of other models: ids and label masks, written out by hand.

use dualspeed_data::{
    Conversation, IGNORE_INDEX as X, IMAGE_TOKEN_INDEX as IMG, Template, TextTokenizer, Turn,
    encode_prompt, encode_training,
};

// Ids of `words()`: <pad> 0, <unk> 1, <s> 2, </s> 3, then:
const UNK: i64 = 1;
const BOS: i64 = 2;
const EOS: i64 = 3;
const START: i64 = 4;
const END: i64 = 5;
const OPEN: i64 = 6;
const INST: i64 = 7;
const CLOSE: i64 = 8;
const SHUT: i64 = 9;
const LEFT: i64 = 10;
const SYS: i64 = 11;
const RIGHT: i64 = 12;
const LEFT_END: i64 = 13;
const SYSTEM: i64 = 14;
const USER: i64 = 15;
const ASSISTANT: i64 = 16;
const BE: i64 = 17;
const KIND: i64 = 18;
const WHAT: i64 = 19;
const CAT: i64 = 20;
const DOG: i64 = 21;

fn words() -> TextTokenizer {
    TextTokenizer::from_words([
        "<|im_start|>",
        "<|im_end|>",
        "[",
        "inst",
        "]",
        "[/",
        "<<",
        "sys",
        ">>",
        "<</",
        "system",
        "user",
        "assistant",
        "be",
        "kind",
        "what",
        "cat",
        "dog",
    ])
    .unwrap()
}

/// Encodes and compares id by id; each pair is an id and whether it is supervised.
fn check(conversation: &Conversation, template: Template, expected: &[(i64, bool)]) {
    let encoded = encode_training(conversation, &template, &words(), None).unwrap();
    let ids: Vec<i64> = expected.iter().map(|(id, _)| *id).collect();
    let labels: Vec<i64> =
        expected.iter().map(|(id, learned)| if *learned { *id } else { X }).collect();
    assert_eq!(encoded.input_ids, ids, "{template:?}");
    assert_eq!(encoded.labels, labels, "{template:?}");
    for range in &encoded.answers {
        assert!(encoded.labels[range.clone()].iter().all(|label| *label != X), "{template:?}");
    }
}

fn off(ids: &[i64]) -> Vec<(i64, bool)> {
    ids.iter().map(|id| (*id, false)).collect()
}

fn on(ids: &[i64]) -> Vec<(i64, bool)> {
    ids.iter().map(|id| (*id, true)).collect()
}

fn two_turns() -> Conversation {
    let mut conversation = Conversation::new([("what <image>", "cat"), ("dog", " dog cat ")]);
    conversation.system = Some("be kind".into());
    conversation
}

#[test]
fn llama_2_begins_every_turn_anew() {
    let expected = [
        off(&[BOS, OPEN, INST, CLOSE, LEFT, SYS, RIGHT, BE, KIND, LEFT_END, SYS, RIGHT]),
        off(&[IMG, WHAT, SHUT, INST, CLOSE]),
        on(&[CAT, EOS]),
        off(&[BOS, OPEN, INST, CLOSE, DOG, SHUT, INST, CLOSE]),
        on(&[DOG, CAT, EOS]),
    ];
    check(&two_turns(), Template::LlavaLlama2, &expected.concat());
}

#[test]
fn mistral_begins_once_and_has_no_system_prompt_of_its_own() {
    let mut conversation = two_turns();
    conversation.system = None;
    let expected = [
        off(&[BOS, OPEN, INST, CLOSE, IMG, WHAT, SHUT, INST, CLOSE]),
        on(&[CAT, EOS]),
        off(&[OPEN, INST, CLOSE, DOG, SHUT, INST, CLOSE]),
        on(&[DOG, CAT, EOS]),
    ];
    check(&conversation, Template::MistralInstruct, &expected.concat());
    conversation.system = Some(String::new());
    check(&conversation, Template::MistralInstruct, &expected.concat());
}

#[test]
fn chatml_supervises_answers_and_their_end_marks() {
    let expected = [
        off(&[START, SYSTEM, BE, KIND, END, START, USER, IMG, WHAT, END, START, ASSISTANT]),
        on(&[CAT, END]),
        off(&[START, USER, DOG, END, START, ASSISTANT]),
        on(&[DOG, CAT, END]),
    ];
    check(&two_turns(), Template::Chatml, &expected.concat());
}

#[test]
fn empty_system_prompts_leave_no_trace() {
    let mut conversation = Conversation::new([("what", "cat")]);
    conversation.system = Some(String::new());
    let chat = [off(&[START, USER, WHAT, END, START, ASSISTANT]), on(&[CAT, END])];
    check(&conversation, Template::Chatml, &chat.concat());
    let llama = [off(&[BOS, OPEN, INST, CLOSE, WHAT, SHUT, INST, CLOSE]), on(&[CAT, EOS])];
    check(&conversation, Template::LlavaLlama2, &llama.concat());
}

#[test]
fn marks_within_text_are_text() {
    let mut conversation =
        Conversation::new([("what <|im_end|> [/INST]", "cat <|im_start|> dog [INST] </s>")]);
    conversation.system = Some(String::new());
    // "<|im_end|>" in text becomes the words "<|", "im_end", "|>", all unknown here.
    let (u, mark) = (UNK, [UNK; 3]);
    let chat = [
        off(&[START, USER, WHAT]),
        off(&mark),
        off(&[SHUT, INST, CLOSE, END, START, ASSISTANT]),
        on(&[CAT, u, u, u, DOG, OPEN, INST, CLOSE, u, u, u, END]),
    ];
    check(&conversation, Template::Chatml, &chat.concat());
    let llama = [
        off(&[BOS, OPEN, INST, CLOSE, WHAT]),
        off(&mark),
        off(&[SHUT, INST, CLOSE, SHUT, INST, CLOSE]),
        on(&[CAT, u, u, u, DOG, OPEN, INST, CLOSE, u, u, u, EOS]),
    ];
    check(&conversation, Template::LlavaLlama2, &llama.concat());
}

#[test]
fn prompts_end_where_the_model_speaks() {
    let conversation = Conversation {
        system: Some(String::new()),
        turns: vec![Turn::answered("what", "cat"), Turn::open("<image>\ndog")],
    };
    let prompt = |template| encode_prompt(&conversation, template, &words()).unwrap();
    assert_eq!(
        prompt(Template::Chatml),
        [
            START, USER, WHAT, END, START, ASSISTANT, CAT, END, START, USER, IMG, DOG, END, START,
            ASSISTANT
        ]
    );
    assert_eq!(
        prompt(Template::MistralInstruct),
        [
            BOS, OPEN, INST, CLOSE, WHAT, SHUT, INST, CLOSE, CAT, EOS, OPEN, INST, CLOSE, IMG, DOG,
            SHUT, INST, CLOSE
        ]
    );
}

#[test]
fn a_template_of_another_model_is_an_error_that_says_so() {
    let plain = TextTokenizer::from_words(["what", "cat"]).unwrap();
    let conversation = Conversation::new([("what", "cat")]);
    let error = encode_training(&conversation, Template::Chatml, &plain, None).unwrap_err();
    assert!(error.to_string().contains("<|im_start|>"), "{error}");
}
