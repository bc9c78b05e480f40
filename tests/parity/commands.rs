//! The program on published formats: generate, batch, inspect, export and back.

use std::path::Path;
use std::process::Command;

use dualspeed::data::IMAGE_TOKEN_INDEX;
use dualspeed::model::import::{Architecture, Checkpoint, LoadOptions};
use dualspeed::model::vision::features::PATCH_TEXT;
use dualspeed::model::{VisionConfig, VisionTower};
use dualspeed::prelude::*;
use serde_json::Value;

use crate::support::{B, Prompt, fixture};

pub fn dualspeed(arguments: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_dualspeed")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

pub fn ok(arguments: &[&str]) -> String {
    let (success, stdout, stderr) = dualspeed(arguments);
    assert!(success, "{arguments:?}: {stderr}");
    stdout
}

fn picture(dir: &Path) -> String {
    let path = dir.join("a.png");
    let image =
        image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 90]));
    image.save(&path).unwrap();
    path.display().to_string()
}

#[test]
fn one_question_many_questions_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let (model, image) = (fixture("llava_mha").display().to_string(), picture(dir.path()));
    let ask =
        ["generate", "--quiet", "--model", &model, "--image", &image, "--prompt", "what is this?"];
    let limit = ["--max-new-tokens", "6"];
    let text = ok(&[&ask[..], &limit].concat());
    let json: Value = serde_json::from_str(&ok(&[&ask[..], &limit, &["--json"]].concat())).unwrap();
    assert_eq!(json["text"].as_str().unwrap(), text.trim());
    assert_eq!(json["ids"].as_array().unwrap().len(), 6);
    assert_eq!(json["log_probs"].as_array().unwrap().len(), 6);
    assert!(json["prompt_ids"].as_array().unwrap().contains(&IMAGE_TOKEN_INDEX.into()));

    let batch = dir.path().join("questions.jsonl");
    let lines = "{\"id\": \"x\", \"image\": \"a.png\", \"prompt\": \"what is this?\"}\n\n{\"prompt\": \"what\"}\n";
    std::fs::write(&batch, lines).unwrap();
    let batch = batch.display().to_string();
    let all = ["generate", "--quiet", "--model", &model, "--batch", &batch];
    let printed = ok(&[&all[..], &limit].concat());
    let answers: Vec<Value> =
        printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((answers.len(), &answers[0]["id"]), (2, &Value::from("x")));
    assert_eq!((&answers[0]["text"], &answers[0]["ids"]), (&json["text"], &json["ids"]));
    assert!(answers[1].get("id").is_none());

    // Pruned, with a pruner by name.
    let keep = ["--keep", "4", "--pruner", "divprune"];
    let pruned: Value =
        serde_json::from_str(&ok(&[&ask[..], &limit, &keep, &["--json"]].concat())).unwrap();
    assert_ne!(pruned["log_probs"], json["log_probs"]);

    // By the question, in the space of the CLIP that the tower is from.
    let clip = fixture("clip").display().to_string();
    let guided = ["--keep", "4", "--pruner", "cdpruner", "--clip", &clip];
    let guided: Value =
        serde_json::from_str(&ok(&[&ask[..], &limit, &guided, &["--json"]].concat())).unwrap();
    assert_eq!(guided["ids"].as_array().unwrap().len(), 6);
    assert_ne!(guided["log_probs"], json["log_probs"]);
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let model = fixture("llava_mha").display().to_string();
    let refused = |arguments: &[&str], parts: &[&str]| {
        let (success, _, stderr) = dualspeed(arguments);
        assert!(!success && !stderr.contains("panicked"), "{stderr}");
        parts.iter().for_each(|part| assert!(stderr.contains(part), "no {part:?} in: {stderr}"));
    };
    let image = picture(dir.path());
    let ask = ["generate", "--model", &model, "--prompt"];
    refused(
        &[&ask[..], &["<image> <image> what", "--image", &image]].concat(),
        &["2 <image>", "1 image"],
    );
    refused(&[&ask[..], &["what", "--template", "chatml"]].concat(), &["<|im_start|>"]);
    refused(&[&ask[..], &["what", "--dtype", "f8"]].concat(), &["f8"]);
    refused(&["generate", "--model", "gone", "--prompt", "what"], &["gone is not there"]);
    let batch = dir.path().join("b.jsonl");
    std::fs::write(&batch, "{\"prompt\": \"what\"}\n{\"promt\": 1}\n").unwrap();
    let batch = batch.display().to_string();
    refused(
        &["generate", "--model", &model, "--batch", &batch],
        &["b.jsonl:2", "missing field `prompt`"],
    );
    refused(&["inspect", &dir.path().display().to_string()], &["config.json"]);
}

#[test]
fn inspect_counts_what_is_there() {
    let model = fixture("llava_gqa_tied").display().to_string();
    let json: Value = serde_json::from_str(&ok(&["inspect", &model, "--json"])).unwrap();
    let parameters: u64 =
        json["parameters"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(json["dtypes"]["F32"], parameters);
    let printed = ok(&["inspect", &model]);
    for part in ["tied head", "6 heads (2 for keys, 16 wide)", "35 px, 25 tokens", "language_model"]
    {
        assert!(printed.contains(part), "no {part:?} in: {printed}");
    }
    let adapter = ok(&["inspect", &fixture("llava_peft").display().to_string()]);
    assert!(adapter.contains("lora") && adapter.contains("adapters"), "{adapter}");
}

/// Logits of a question about a picture made of ramps.
fn logits(dir: &Path) -> Vec<f32> {
    let options = LoadOptions::default();
    let checkpoint = Checkpoint::open(dir, &options).unwrap();
    let (model, _) = checkpoint.load_llava::<B>(&options, &Default::default()).unwrap();
    let side = model.config.vision.geometry().image_size;
    let ramp: Vec<f32> = (0..3 * side * side).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
    let pixels = Tensor::<B, 1>::from_floats(ramp.as_slice(), &Default::default());
    let pixels = pixels.reshape([1, 3, side, side]);
    let features = model.encode(pixels, &Needs::none()).unwrap();
    let ids = [1, 7, IMAGE_TOKEN_INDEX, 11, 12, 5];
    Prompt::new(&ids, Some(&features)).logits(&model).into_data().iter::<f32>().collect()
}

#[test]
fn what_is_exported_comes_back_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["llava_mha", "llava_gqa_tied"] {
        let model = fixture(name);
        let expected = logits(&model);
        for format in ["hf", "llava"] {
            let out = dir.path().join(format!("{name}-{format}"));
            let options = LoadOptions::default();
            let checkpoint = Checkpoint::open(&model, &options).unwrap();
            let (loaded, _) = checkpoint.load_llava::<B>(&options, &Default::default()).unwrap();
            use dualspeed::model::export::names::Layout;
            use dualspeed::model::export::{ExportOptions, Tokens, export_merged};
            let layout = if format == "hf" { Layout::Transformers } else { Layout::Original };
            let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
            let options = ExportOptions { shard: 60_000, ..ExportOptions::new(tokens) };
            export_merged(&loaded, &out, layout, &options).unwrap();
            assert!(out.join("model.safetensors.index.json").is_file(), "one shard only");
            assert_eq!(logits(&out), expected, "{name} as {format}");
        }
    }
}

/// Transformers' LLaVA and LLaVA's own code have no place for it; it comes back all the same.
#[test]
fn an_export_keeps_the_projection_into_the_space_of_text() {
    use dualspeed::model::export::names::Layout;
    use dualspeed::model::export::{ExportOptions, Tokens, export_merged};
    let mut config = match Checkpoint::open(&fixture("llava_mha"), &LoadOptions::default()) {
        Ok(checkpoint) => match checkpoint.config.architecture {
            Architecture::Llava(config) => *config,
            other => panic!("{other:?}"),
        },
        Err(error) => panic!("{error}"),
    };
    let VisionConfig::Vit(vision) = &mut config.vision else { panic!("{:?}", config.vision) };
    vision.projection_dim = Some(6);
    let model = config.init::<B>(&Default::default(), 3).unwrap();
    let pixels = Tensor::<B, 1, Int>::arange(0..3 * 28 * 28, &Default::default());
    let pixels = (pixels.float().reshape([1, 3, 28, 28]) / 100.0).sin();
    let needs = Needs::of([PATCH_TEXT]);
    let expected = model.vision_tower.features(pixels.clone(), &needs).get(PATCH_TEXT).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (name, layout) in [("hf", Layout::Transformers), ("llava", Layout::Original)] {
        let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
        let options = ExportOptions { shard: 1 << 30, ..ExportOptions::new(tokens) };
        let out = dir.path().join(name);
        export_merged(&model, &out, layout, &options).unwrap();
        assert!(out.join("visual_projection.safetensors").is_file());
        let options = LoadOptions::default();
        let checkpoint = Checkpoint::open(&out, &options).unwrap();
        let (again, _) = checkpoint.load_llava::<B>(&options, &Default::default()).unwrap();
        assert_eq!(again.config.vision.vit().unwrap().projection_dim, Some(6));
        let found = again.vision_tower.features(pixels.clone(), &needs).get(PATCH_TEXT).unwrap();
        assert_eq!((found - expected.clone()).abs().max().into_scalar(), 0.0, "{name}");
    }
}

#[test]
fn the_program_exports_and_reads_its_exports() {
    let dir = tempfile::tempdir().unwrap();
    let (model, image) = (fixture("llava_mha").display().to_string(), picture(dir.path()));
    let adapter = fixture("llava_peft").display().to_string();
    let ask = |arguments: &[&str]| {
        let rest = ["--image", &image, "--prompt", "what is", "--max-new-tokens", "8", "--json"];
        let text = ok(&[&["generate", "--quiet", "--model"], arguments, &rest].concat());
        serde_json::from_str::<Value>(&text).unwrap()
    };
    let adapted = ask(&[&model, "--adapter", &adapter]);
    let plain = ask(&[&model]);
    let none = dir.path().join("none");
    let text = none.display().to_string();
    let export = ["export", "--model", &model, "--format", "peft", "--out", &text];
    let (success, _, stderr) = dualspeed(&export);
    assert!(!success && stderr.contains("no adapters") && !none.exists(), "{stderr}");
    assert_ne!(adapted["log_probs"], plain["log_probs"]);
    for format in ["hf", "llava", "peft"] {
        let out = dir.path().join(format).display().to_string();
        let export =
            ["export", "--quiet", "--model", &model, "--adapter", &adapter, "--format", format];
        ok(&[&export[..], &["--out", &out]].concat());
        let (success, _, stderr) = dualspeed(&[&export[..], &["--out", &out]].concat());
        assert!(!success && stderr.contains("not empty"), "{stderr}");
        let again = ask(&[&out]);
        assert_eq!(again["ids"], adapted["ids"], "{format}");
        let values = |json: &Value| -> Vec<f64> {
            json["log_probs"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect()
        };
        let pairs = values(&again).into_iter().zip(values(&adapted));
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-5), "{format}");
    }
}
