//! `data check`, and what training does with data that is not as it should be.

use std::collections::{BTreeMap, BTreeSet};

use dualspeed::data::TextTokenizer;
use dualspeed::data::check::{DataReport, Group, Severity};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};
use serde_json::{Value, json};

use crate::support::{Bench, TINY, metrics, steps};

/// The last word has no row in the embedding.
const WORDS: [&str; 12] =
    ["what", "is", "this", "cat", "dog", "blue", "red", "two", "and", "word", "image", "zebra"];

/// A benchmark directory with a tokenizer, pictures `0.jpg`, `1.png`, ... of 160 x 120 pixels, and a configuration of a model
/// with 144 visual tokens that reads `data.json`.
fn bench(pictures: usize, size: [u32; 2]) -> Bench {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("img")).unwrap();
    let tokenizer = TextTokenizer::from_words(WORDS).unwrap();
    tokenizer.inner().save(bench.path("tokenizer.json"), false).unwrap();
    let rows = tokenizer.vocab_size() - 1;
    let section = "[data.train.llava_json]\npath = \"data.json\"\nimage_root = \"img\"\n\
                   tokenizer = \"tokenizer.json\"\ntemplate = \"qa\"";
    let config = TINY
        .replace("samples = 16", section)
        .replace("isolator_length = 2", "isolator_length = 2\nmax_length = 200")
        .replace("vocab_size = 178", &format!("vocab_size = {rows}"));
    std::fs::write(bench.path("data.toml"), config).unwrap();
    for number in 0..pictures {
        let picture = picture(number, size);
        match number % 2 {
            0 => {
                let mut bytes = Vec::new();
                JpegEncoder::new_with_quality(&mut bytes, 85).encode_image(&picture).unwrap();
                std::fs::write(bench.path(&format!("img/{number}.jpg")), bytes).unwrap();
            }
            _ => picture.save(bench.path(&format!("img/{number}.png"))).unwrap(),
        }
    }
    bench
}

fn picture(seed: usize, [width, height]: [u32; 2]) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let wave = |k: usize| {
            ((x as usize * (k + seed % 7) + y as usize * (3 + seed % 5)) / 4 % 256) as u8
        };
        Rgb([wave(1), wave(2), (seed * 37 % 256) as u8])
    })
}

fn name(pictures: usize, number: usize) -> String {
    let number = number % pictures;
    format!("{number}.{}", if number.is_multiple_of(2) { "jpg" } else { "png" })
}

fn turn(from: &str, value: &str) -> Value {
    json!({"from": from, "value": value})
}

fn pair(ask: &str, answer: &str) -> Value {
    json!([turn("human", ask), turn("gpt", answer)])
}

fn record(id: usize, image: &str) -> Value {
    // Numbers in words, so that no record says what another says.
    let words = |mut n: usize| {
        let mut text = String::new();
        while n > 0 {
            text += WORDS[3 + n % 8];
            text += " ";
            n /= 8;
        }
        text
    };
    let ask = format!("<image>\nwhat is {}", words(id));
    json!({"id": format!("r{id}"), "image": image, "conversations": pair(&ask, "cat and dog")})
}

/// A kind of fault, and the line of a record that has it; `None` is the record without its line break.
type Fault = (&'static str, fn(Value) -> Vec<u8>);

fn with(mut record: Value, key: &str, value: Value) -> Vec<u8> {
    record[key] = value;
    record.to_string().into_bytes()
}

fn said(record: Value, turns: Value) -> Vec<u8> {
    with(record, "conversations", turns)
}

/// What the record asks.
fn asked(record: &Value) -> String {
    record["conversations"][0]["value"].as_str().unwrap().to_owned()
}

/// Faults of every kind; pictures of that name are made by [`bad_pictures`].
const FAULTS: [Fault; 24] = [
    ("malformed JSON", |r| r.to_string().replacen(':', " ", 1).into_bytes()),
    ("malformed JSON", |r| [r.to_string().as_bytes(), b"\xff"].concat()),
    ("wrong shape", |r| said(r, Value::Null)),
    ("wrong shape", |r| said(r, json!([{"from": "human", "value": 7}]))),
    ("unknown role", |r| said(r, json!([turn("robot", "what"), turn("gpt", "cat")]))),
    ("turn out of order", |r| {
        said(r, json!([turn("human", "<image>"), turn("gpt", "cat"), turn("gpt", "dog")]))
    }),
    ("no answer", |r| said(r, json!([turn("human", "<image> what")]))),
    ("empty answer", |r| said(r, pair("<image> what", " \n"))),
    ("<image> outside of a human turn", |r| said(r, pair("<image> what", "<image>"))),
    ("<image> and images differ in number", |r| said(r, pair("<image> and <image>", "cat"))),
    ("key with data that has no effect", |r| with(r, "video", json!("a.mp4"))),
    ("key with data that has no effect", |r| with(r, "Image", json!("0.jpg"))),
    ("two keys for one thing", |r| with(r, "images", json!(["0.jpg"]))),
    ("image is an address", |r| with(r, "image", json!("https://example.org/a.png"))),
    ("image is not Base64", |r| with(r, "image", json!("data:image/png;base64,@@@"))),
    ("image is missing", |r| with(r, "image", json!("gone.png"))),
    ("image is empty", |r| with(r, "image", json!("empty.png"))),
    ("image of unknown format", |r| with(r, "image", json!("text.png"))),
    ("image is truncated", |r| with(r, "image", json!("truncated.jpg"))),
    ("image is too large", |r| with(r, "image", json!("large.png"))),
    ("image of zero size", |r| with(r, "image", json!("zero.png"))),
    ("image cannot be read", |r| with(r, "image", json!("."))),
    ("answers cut off by max_length", |r| {
        let ask = format!("{} {}", asked(&r), "word ".repeat(80));
        said(r, pair(&ask, "cat"))
    }),
    ("token id outside of the embedding", |r| {
        let ask = asked(&r);
        said(r, pair(&ask, "zebra"))
    }),
];

fn bad_pictures(bench: &Bench) {
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(bench.path(&format!("img/{name}")), bytes).unwrap()
    };
    write("empty.png", b"");
    write("text.png", b"not a picture at all");
    let jpeg = std::fs::read(bench.path("img/0.jpg")).unwrap();
    write("truncated.jpg", &jpeg[..jpeg.len() / 2]);
    let png = std::fs::read(bench.path("img/1.png")).unwrap();
    let sized = |side: u32| {
        let mut png = png.clone();
        png[16..20].copy_from_slice(&side.to_be_bytes());
        png[20..24].copy_from_slice(&side.to_be_bytes());
        png
    };
    write("large.png", &sized(100_000));
    write("zero.png", &sized(0));
}

fn reports(bench: &Bench, more: &[&str]) -> (Option<i32>, Vec<DataReport>) {
    let ran = bench.run(&[&["data", "check", "--config", "data.toml", "--json"], more].concat());
    let reports = serde_json::from_str(&ran.stdout);
    (ran.code, reports.unwrap_or_else(|error| panic!("{error}: {} {}", ran.stdout, ran.stderr)))
}

fn records_of(groups: &[Group], severity: Severity) -> BTreeMap<&str, BTreeSet<usize>> {
    let of = groups.iter().filter(|group| group.severity == severity);
    of.map(|group| {
        let records: BTreeSet<_> =
            group.first.iter().filter_map(|finding| finding.record).collect();
        assert_eq!(group.count, group.first.len(), "{}", group.kind);
        (&*group.kind, records)
    })
    .collect()
}

/// Faults of 24 sorts in 20 kinds and more, sown into good records: all are found where they are, and no other. Environment variables
/// make it larger: `DUALSPEED_CHECK_RECORDS=10000 DUALSPEED_CHECK_PICTURES=2000 cargo test --release --test cli all_faults -- --nocapture`.
#[test]
fn all_faults_are_found_and_none_is_invented() {
    let number = |name: &str, usual: usize| {
        std::env::var(name).map_or(usual, |text| text.parse().expect("a number"))
    };
    let (count, pictures) =
        (number("DUALSPEED_CHECK_RECORDS", 600), number("DUALSPEED_CHECK_PICTURES", 20));
    let size = if pictures > 100 { [640, 480] } else { [160, 120] };
    let bench = bench(pictures, size);
    bad_pictures(&bench);
    let mut expected: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let mut warned: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let mut faults = FAULTS.iter().cycle();
    for index in 0..count {
        let record = record(index, &name(pictures, index));
        lines.push(match index % 10 {
            3 => {
                let (kind, make) = faults.next().unwrap();
                expected.entry(kind).or_default().insert(index);
                make(record)
            }
            6 if index % 100 == 6 && index > 100 => {
                warned.entry("record is there twice").or_default().insert(index);
                lines[index - 1].clone()
            }
            6 if index % 100 == 16 => {
                warned.entry("id is there twice").or_default().insert(index);
                with(record, "id", json!(format!("r{}", index - 1)))
            }
            6 if index % 100 == 26 => {
                warned.entry("answers shortened by max_length").or_default().insert(index);
                let ask = record["conversations"][0]["value"].as_str().unwrap().to_owned();
                said(record, pair(&ask, &"word ".repeat(80)))
            }
            6 if index % 100 == 36 => {
                let ask =
                    record["conversations"][0]["value"].as_str().unwrap().replace("<image>\n", "");
                with(json!({"id": format!("r{index}")}), "conversations", pair(&ask, "cat"))
            }
            _ => record.to_string().into_bytes(),
        });
    }
    let kinds: BTreeSet<_> = expected.keys().collect();
    assert!(kinds.len() >= 20, "{} kinds", kinds.len());
    std::fs::write(bench.path("data.json"), lines.join(&b'\n')).unwrap();

    let (code, found) = reports(&bench, &["--list", "1000000"]);
    let [report] = &found[..] else { panic!("{} reports", found.len()) };
    assert_eq!(code, Some(1));
    assert_eq!(records_of(&report.groups, Severity::Fault), expected);
    assert_eq!(records_of(&report.groups, Severity::Warning), warned);
    let bad: usize = expected.values().map(BTreeSet::len).sum();
    assert_eq!((report.records, report.unusable), (count, bad));
    assert!(report.text_only > 0 && report.images > 0 && report.image_files > pictures / 2);
    println!(
        "{count} records in {:.2} s: {:.0} a minute",
        report.seconds,
        60.0 * count as f64 / report.seconds
    );

    // What is left of them is clean, once the warnings are nobody's concern.
    let bad: BTreeSet<usize> = expected.values().flatten().copied().collect();
    let good: Vec<_> =
        (0..count).filter(|index| !bad.contains(index)).map(|at| lines[at].clone()).collect();
    std::fs::write(bench.path("data.json"), good.join(&b'\n')).unwrap();
    let (code, found) = reports(&bench, &[]);
    assert_eq!((code, found[0].count(Severity::Fault)), (Some(0), 0), "{:?}", found[0].groups);
    assert_eq!(reports(&bench, &["--strict"]).0, Some(1));
}

#[test]
fn a_check_writes_a_page_of_its_own_and_wrong_usage_is_2() {
    let bench = bench(4, [160, 120]);
    let records: Vec<_> = (0..40).map(|id| record(id, &name(4, id))).collect();
    std::fs::write(bench.path("data.json"), json!(records).to_string()).unwrap();
    let check = ["data", "check", "--config", "data.toml", "--out", "report"];
    let text = bench.run(&check).ok();
    assert!(text.contains("40 records, 40 can be used") && text.contains("full view: "), "{text}");
    assert!(text.contains("pruned view: ") && text.contains("max_length 200 cuts 0"), "{text}");
    let html = std::fs::read_to_string(bench.path("report/data-check.html")).unwrap();
    assert!(html.contains("<svg") && html.contains("Length in full view"), "{html}");
    for outside in ["src=\"http", "href=\"http", "<script", "<link"] {
        assert!(!html.contains(outside), "{outside}");
    }
    let json = std::fs::read_to_string(bench.path("report/data-check.json")).unwrap();
    let reports: Vec<DataReport> = serde_json::from_str(&json).unwrap();
    let full = &reports[0].views[0];
    assert_eq!((full.view.as_str(), full.lengths.count), ("full", 40));
    // Three words and more, an image of 144 tokens, two that begin and end it, an answer of three.
    assert!(full.lengths.min > 144 + 5 && full.lengths.max < 170, "{full:?}");
    bench.run(&check).refused(&["data-check.json", "--overwrite"]);
    bench.run(&[&check[..], &["--overwrite"]].concat()).ok();

    // A file alone: no model, lengths in words.
    let alone = ["data", "check", "--data", "data.json", "--image-root", "img"];
    let text = bench.run(&alone).ok();
    assert!(text.contains("words") && text.contains("40 can be used"), "{text}");
    let limited = [&alone[..], &["--tokenizer", "tokenizer.json", "--vocab-size", "5"]].concat();
    bench.run(&limited).refused(&["fault(s) found"]);
    for usage in
        [&["data", "check"][..], &["data", "check", "--data", "a", "--config", "b"], &["data"]]
    {
        assert_eq!(bench.run(usage).code, Some(2), "{usage:?}");
    }
    bench.run(&["data", "check", "--data", "gone.json"]).refused(&["gone.json"]);
}

#[test]
fn training_finds_what_does_not_fit_before_the_first_step() {
    let bench = bench(2, [160, 120]);
    let train = |records: &[Value], more: &[&str]| {
        std::fs::write(bench.path("data.json"), json!(records).to_string()).unwrap();
        bench.run(&[&["train", "--config", "data.toml", "--out", "run"], more].concat())
    };
    let mut records: Vec<_> = (0..12).map(|id| record(id, &name(2, id))).collect();
    records[11] = record(11, "0.jpg");
    records[11]["conversations"] = pair(&format!("<image>\n{}", "word ".repeat(80)), "cat");
    records[10]["conversations"] = pair("<image>\nwhat", "zebra");
    // Fast steps have room for the long one, slow ones have not: it is refused all the same, in every shape of a batch.
    for shape in ["batch.size=4", "batch.size=1"] {
        let refused = train(&records, &["--set", shape]);
        refused.refused(&[
            "data.train: 2 of 12 records cannot be used",
            "record 10 (id \"r10\"): token id",
            "record 11 (id \"r11\"): in full view",
            "max_length 200 cuts off all",
        ]);
        assert!(!bench.path("run").exists());
    }
    // What is shortened is said.
    let mut shortened = records[..10].to_vec();
    shortened[3]["conversations"] = pair("<image>\nwhat", &"word ".repeat(80));
    let ran = train(&shortened, &[]);
    assert!(
        ran.stderr.contains("model.max_length = 200 cuts 1 sample(s) in full view"),
        "{}",
        ran.stderr
    );
    assert!(ran.stderr.contains("1 of them lose part of their answers"), "{}", ran.stderr);
    assert!(!ran.stderr.contains("pruned view"), "{}", ran.stderr);
    ran.ok();

    // Skipped, they are left out of every step they come up in.
    let skip = ["--set", "data.on_error=skip", "--set", "steps=6", "--overwrite"];
    let mut seen = Vec::new();
    for shape in
        [["batch.size=4", "batch.accumulation=1"], ["batch.size=1", "batch.accumulation=4"]]
    {
        let shape = shape.iter().flat_map(|set| ["--set", *set]).collect::<Vec<_>>();
        let ran = train(&records, &[&skip[..], &shape].concat());
        assert!(
            ran.stderr.contains("sample \"r11\" is left out: data.json:1: record 11"),
            "{}",
            ran.stderr
        );
        assert!(ran.stderr.contains("4 samples were left out"), "{}", ran.stderr);
        ran.ok();
        let skipped: Vec<Value> = metrics(&bench.path("run"))
            .iter()
            .map(|record| json!([record["samples"], record.get("skipped_samples")]))
            .collect();
        assert_eq!(steps(&bench.path("run")).len(), 6);
        seen.push(skipped);
    }
    assert_eq!(seen[0], seen[1]);

    // The check on its own, and as the first thing a run does.
    let verified = train(&records, &["--verify-data", "--overwrite"]);
    assert!(verified.stderr.contains("answers cut off by max_length"), "{}", verified.stderr);
    verified.refused(&["data.train: 2 of 12 records cannot be used"]);
}

#[test]
fn records_that_cannot_be_used_are_all_named_and_can_be_skipped() {
    let bench = bench(2, [160, 120]);
    bad_pictures(&bench);
    let mut records: Vec<_> = (0..8).map(|id| record(id, &name(2, id))).collect();
    records[1]["image"] = json!("gone.jpg");
    records[2]["conversations"][1]["value"] = json!("");
    records[3]["image"] = json!("truncated.jpg");
    records[4]["source"] = json!("somewhere");
    std::fs::write(bench.path("data.json"), json!(records).to_string()).unwrap();
    let train = ["train", "--config", "data.toml", "--out", "run", "--set", "steps=4"];
    let stopped = bench.run(&train);
    stopped.refused(&[
        "2 of 8 records cannot be used",
        "gone.jpg",
        "record 2 (id \"r2\"): turn 1 is an empty answer",
        "data.on_error",
    ]);
    let ran = bench.run(&[&train[..], &["--set", "data.on_error=skip"]].concat());
    assert!(ran.stderr.contains("keys that are not read: source (1)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("sample \"r3\" is left out"), "{}", ran.stderr);
    ran.ok();
    let skipped: BTreeSet<String> = metrics(&bench.path("run"))
        .iter()
        .filter_map(|record| record.get("skipped_samples")?.as_array().cloned())
        .flatten()
        .map(|id| id.as_str().unwrap().to_owned())
        .collect();
    assert_eq!(skipped, ["r1", "r2", "r3"].map(String::from).into());
}

#[test]
fn a_batch_of_questions_goes_on_past_a_line_that_cannot_be_answered() {
    let bench = Bench::new();
    bench.train("run", &[]).ok();
    bench.picture("discs.png");
    let lines = [
        r#"{"id": 7, "image": "discs.png", "prompt": "how many ?"}"#,
        r#"{"id": "gone", "image": "gone.png", "prompt": "how many ?"}"#,
        r#"{"question_id": 1, "image": "discs.png", "text": "how many ?", "category": "count"}"#,
        r#"{"id": 8, "prompt": "<image> how many ?"}"#,
        r#"not JSON"#,
        "",
        r#"{"images": ["discs.png", "discs.png"], "prompt": "<image> and <image> ?"}"#,
    ];
    std::fs::write(bench.path("ask.jsonl"), lines.join("\n")).unwrap();
    let ask = ["generate", "--run", "run", "--max-new-tokens", "2", "--batch", "ask.jsonl"];
    let ran = bench.run(&ask);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    for part in [
        "ask.jsonl:2: left out: cannot read image",
        "gone.png",
        "ask.jsonl:4: left out: the prompt has 1 <image>",
        "ask.jsonl:5: left out",
        "3 of 6 lines were left out",
    ] {
        assert!(ran.stderr.contains(part), "no {part:?} in {}", ran.stderr);
    }
    let answers: Vec<Value> =
        ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(answers.len(), 3);
    assert_eq!((&answers[0]["id"], &answers[1]["question_id"]), (&json!(7), &json!(1)));
    assert!(answers[2].get("id").is_none());
    assert_eq!(answers[0]["ids"], answers[1]["ids"], "the same question");
    std::fs::write(bench.path("ask.jsonl"), [lines[0], lines[2]].join("\n")).unwrap();
    bench.run(&ask).ok();
}
