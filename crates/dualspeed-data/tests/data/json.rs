//! The LLaVA format: what is read, and what each mistake is called.

use std::path::Path;
use std::sync::Arc;

use dualspeed_data::{
    DataError, ExampleSource, FitMode, IMAGE_TOKEN_INDEX, ImageError, ImageProcessor, LlavaJson,
    LlavaJsonConfig, Modality, OnError, RecordProblem, Template, scene_tokenizer,
};

const HUMAN: &str = r#"{"from": "human", "value": "<image>\nwhat is there ?"}"#;
const GPT: &str = r#"{"from": "gpt", "value": "cat"}"#;

fn open(directory: &Path, name: &str, text: impl AsRef<[u8]>) -> Result<LlavaJson, DataError> {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    let config = LlavaJsonConfig {
        image_root: directory.to_path_buf(),
        template: Template::Qa,
        system: None,
        max_length: Some(20),
        processor: ImageProcessor::clip(8, FitMode::Resize),
        tiles: None,
        on_error: OnError::Stop,
    };
    LlavaJson::open(path, config, Arc::new(scene_tokenizer().unwrap()))
}

fn open_text(text: impl AsRef<[u8]>) -> Result<LlavaJson, DataError> {
    open(tempfile::tempdir().unwrap().path(), "data.json", text)
}

/// The line and problem of the record error that opening `text` gives.
fn problem(text: &str) -> (usize, String, RecordProblem) {
    match open_text(text).err().expect("must be refused") {
        DataError::Record { line, id, problem, .. } => (line, id, *problem),
        other => panic!("not a record error: {other}"),
    }
}

fn record(id: &str, image: &str, conversation: &str) -> String {
    format!(r#"{{"id": "{id}", {image} "conversations": [{conversation}]}}"#)
}

#[test]
fn array_and_lines_give_the_same_examples() {
    let directory = tempfile::tempdir().unwrap();
    let red = image::RgbImage::from_pixel(4, 2, image::Rgb([255, 0, 0]));
    red.save(directory.path().join("red.png")).unwrap();
    red.save(directory.path().join("same.bmp")).unwrap();
    let two = r#"{"from": "human", "value": "is <image> there <image>\n"}"#;
    let records = [
        record("one", r#""image": "red.png","#, &format!("{HUMAN}, {GPT}")),
        record("two", r#""image": ["red.png", "same.bmp"],"#, &format!("{two}, {GPT}")),
        record("text", "", &format!(r#"{{"from": "human", "value": "how many"}}, {GPT}"#)),
    ];
    let array =
        open(directory.path(), "a.json", format!("[\n{}\n]\n", records.join(",\n"))).unwrap();
    let lines = open(directory.path(), "b.jsonl", records.join("\n")).unwrap();
    assert_eq!((array.len(), lines.len()), (3, 3));
    for index in 0..3 {
        assert_eq!(array.get(index).unwrap(), lines.get(index).unwrap());
    }
    let two = array.get(1).unwrap();
    assert_eq!(two.id, "two");
    assert_eq!(two.images.len(), 2);
    assert_eq!(two.images[0].key, two.images[1].key, "equal pixels, equal key");
    assert_eq!(two.input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_INDEX).count(), 2);
    let modalities: Vec<_> = (0..3).map(|index| array.modality(index)).collect();
    assert_eq!(modalities, [Modality::Image, Modality::Image, Modality::Text]);
    assert!(matches!(array.get(3), Err(DataError::OutOfRange { index: 3, len: 3 })));
    assert_eq!(array.fingerprint(), lines.fingerprint(), "the same content, written otherwise");
}

#[test]
fn malformed_json_names_the_line() {
    let good = record("a", "", &format!(r#"{{"from": "human", "value": "x"}}, {GPT}"#));
    let array = format!("[\n{good},\n{{\"id\": 1,,}}\n]");
    assert!(matches!(open_text(&array), Err(DataError::Json { line: 3, .. })));
    let cut = format!("[\n{good},\n{}", &good[..20]);
    let error = open_text(&cut).err().unwrap();
    assert!(matches!(error, DataError::Json { line: 3, .. }), "{error}");
    assert!(error.to_string().contains("incomplete"), "{error}");
    let lines = format!("{good}\n\n{good}\n{{\"id\": \n");
    let error = open_text(&lines).err().unwrap();
    assert!(matches!(error, DataError::Json { line: 4, .. }), "{error}");
    assert!(error.to_string().contains("data.json:4:"), "{error}");

    let latin1 = [b"[\n".as_slice(), b"{\"id\": \"caf\xe9\"}]"].concat();
    assert!(matches!(open_text(latin1), Err(DataError::Json { line: 2, column: 12, .. })));
}

#[test]
fn records_that_cannot_be_used_say_why() {
    let ask = r#"{"from": "human", "value": "what"}"#;
    let wrap = |conversation: &str| format!("[\n\n{}]", record("r7", "", conversation));

    let (line, id, unanswered) = problem(&wrap(ask));
    assert_eq!((line, id.as_str()), (3, "r7"));
    assert!(matches!(unanswered, RecordProblem::NoAnswer));
    assert!(matches!(problem(&wrap("")).2, RecordProblem::NoAnswer));

    let unknown = wrap(&format!(r#"{ask}, {{"from": "robot", "value": "cat"}}"#));
    assert!(
        matches!(problem(&unknown).2, RecordProblem::UnknownRole { turn: 1, role } if role == "robot")
    );
    assert!(matches!(
        problem(&wrap(&format!("{ask}, {ask}"))).2,
        RecordProblem::OutOfTurn { turn: 1, expected: "gpt", .. }
    ));
    let silent = wrap(&format!(r#"{ask}, {{"from": "gpt", "value": " "}}"#));
    assert!(matches!(problem(&silent).2, RecordProblem::EmptyAnswer { turn: 1 }));
    let shown = wrap(&format!(r#"{ask}, {{"from": "gpt", "value": "<image>"}}"#));
    assert!(matches!(problem(&shown).2, RecordProblem::PlaceholderInAnswer { turn: 1, .. }));

    let twice = r#"{"from": "human", "value": "<image> and <image>"}"#;
    let mismatch = record("m", r#""image": "a.png","#, &format!("{twice}, {GPT}"));
    assert!(matches!(
        problem(&mismatch).2,
        RecordProblem::PlaceholderMismatch { placeholders: 2, files: 1 }
    ));
    let unused = record("m", r#""image": "a.png","#, &format!("{ask}, {GPT}"));
    assert!(matches!(
        problem(&unused).2,
        RecordProblem::PlaceholderMismatch { placeholders: 0, files: 1 }
    ));

    let (line, id, shape) = problem("[\n{\"id\": \"s\", \"conversation\": []}]");
    assert_eq!((line, id.as_str()), (2, "s"));
    assert!(shape.to_string().contains("missing field `conversations`"), "{shape}");
}

#[test]
fn images_fail_with_record_and_file() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("cut.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let with = |id: &str, image: &str| {
        record(id, &format!(r#""image": "{image}","#), &format!("{HUMAN}, {GPT}"))
    };
    // A missing file is found when the data set is opened, in whichever record it is.
    let text = [with("cut", "cut.png"), with("gone", "no/such.jpg")].join("\n");
    let error = open(directory.path(), "d.jsonl", &text).err().unwrap();
    let DataError::Record { problem, .. } = &error else { panic!("not a record error: {error}") };
    assert!(matches!(**problem, RecordProblem::Image(ImageError::Read { .. })));
    let message = error.to_string();
    assert!(
        message.contains("d.jsonl:2")
            && message.contains("gone")
            && message.contains("no/such.jpg"),
        "{message}"
    );
    // A broken one when it is decoded.
    let source = open(directory.path(), "d.jsonl", with("cut", "cut.png")).unwrap();
    let error = source.get(0).err().unwrap();
    let DataError::Record { id, problem, .. } = &error else { panic!("{error}") };
    assert!(id == "cut" && matches!(**problem, RecordProblem::Image(_)), "{error}");
}
