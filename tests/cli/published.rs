//! Directories that DualSpeed's published trainer wrote, through every command: inspected, asked, trained on, evaluated, exported. What
//! they hold, and the numbers, is in tests/published-code/README.md.

use std::path::{Path, PathBuf};

use dualspeed::model::import::pickle::PickleWeights;
use dualspeed::model::import::safetensors::SafetensorsWeights;
use dualspeed::model::import::source::WeightSource;
use serde_json::{Value, json};

use crate::support::{Bench, metrics};

fn published(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/published-code").join(name)
}

fn layout(name: &str) -> String {
    published("layouts").join(name).display().to_string()
}

fn expected(case: &str) -> Value {
    let text = std::fs::read(published(case).join("expected.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

/// The arguments that name a directory of the published trainer's, and what it belongs on.
fn arguments(kind: &str, flag: &str) -> Vec<String> {
    let tower = ["--vision-tower".to_owned(), layout("tower")];
    let on_base = |part: &str, name: &str| {
        let base = [flag.to_owned(), layout("base"), part.to_owned(), layout(name)];
        base.into_iter().chain(tower.clone()).collect()
    };
    match kind {
        "full" => [flag.to_owned(), layout("a-full")].into_iter().chain(tower).collect(),
        "lora" => on_base("--adapter", "c-lora"),
        "stage1" => on_base("--part", "b-stage1"),
        other => panic!("{other}"),
    }
}

/// The pictures of a file of pixel values, as 8-bit PNGs of the same names as the records have.
fn pictures(bench: &Bench, file: &str) {
    let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.261_302_6, 0.275_777_1]);
    let pixels = SafetensorsWeights::open(&published("data").join(file)).unwrap();
    let tensor = pixels.read("pixel_values").unwrap();
    let values = tensor.to_f32();
    for (picture, name) in values.chunks(3 * 84 * 84).zip(["a.png", "b.png", "c.png"]) {
        let image = image::RgbImage::from_fn(84, 84, |x, y| {
            let at = (y * 84 + x) as usize;
            let channel = |c: usize| (picture[c * 84 * 84 + at] * std[c] + mean[c]) * 255.0;
            image::Rgb([0, 1, 2].map(|c| channel(c).round() as u8))
        });
        image.save(bench.path(name)).unwrap();
    }
}

/// A configuration on the published records, one step that changes nothing to speak of.
fn configuration(bench: &Bench, stage: &str, records: &str) {
    let json = format!(
        "llava_json]\npath = {:?}\nimage_root = {:?}\ntokenizer = {:?}\ntemplate = \"vicuna_v1\"\n",
        published("data").join(records),
        bench.dir.path(),
        published("layouts/base/tokenizer.json"),
    );
    let text = format!(
        "steps = 1\nstage = \"{stage}\"\n[batch]\nsize = 3\n[optim]\nlr = 1e-12\nprojector_lr = 1e-12\n[data.train.{json}\
         [data.valid.{json}"
    );
    std::fs::write(bench.path("run.toml"), text).unwrap();
}

fn close(what: &str, found: &Value, expected: &Value) {
    let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
    assert!((found - expected).abs() <= 3e-6, "{what}: {found} for {expected}");
}

#[test]
fn inspected_with_the_arguments_that_messages_name() {
    let bench = Bench::new();
    for (kind, part, count) in [
        ("full", "mode_isolator", "256"),
        ("lora", "lora", "28,416"),
        ("stage1", "mm_projector", "6,272"),
    ] {
        let arguments = arguments(kind, "");
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).filter(|text| !text.is_empty()).collect();
        let printed = bench.run(&[&["inspect"], &arguments[..]].concat()).ok();
        for text in
            ["CLIP ViT, 3 layers, width 32, 4 heads, 84 px, 36 tokens", "4 tokens", part, count]
        {
            assert!(printed.contains(text), "{kind}: no {text:?} in {printed}");
        }
    }
    // Nothing is assumed of a tower that is only named.
    bench.run(&["inspect", &layout("a-full")]).refused(&[
        "sizes",
        "base/clip-tiny-84",
        "--vision-tower",
    ]);
    bench.run(&["inspect", &layout("c-lora")]).refused(&[
        "base/vicuna-leg",
        "--model",
        "--adapter",
    ]);
    bench.run(&["inspect", &layout("b-stage1")]).refused(&["base/vicuna-leg", "--model", "--part"]);
    bench
        .run(&["inspect", &layout("base"), "--adapter", &layout("c-lora")])
        .refused(&["base/clip-tiny-84", "--vision-tower"]);
    bench
        .run(&["inspect", &layout("base"), "--vision-tower", &layout("tower")])
        .refused(&["projector", "--part"]);
    let other =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures/llama_tied");
    let part = published("layouts/b-stage1/mm_projector.bin").display().to_string();
    bench
        .run(&[
            "inspect",
            &other.display().to_string(),
            "--part",
            &part,
            "--vision-tower",
            &layout("tower"),
        ])
        .refused(&["b-stage1", "hidden_size", "not the one"]);
    bench.run(&["inspect", &part]).refused(&["mm_projector.bin", "--part"]);
}

fn copy(from: &str, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// Names in the trainer's files are followed from the working directory, as the trainer meant them.
#[test]
fn opened_by_the_names_that_they_have() {
    let bench = Bench::new();
    copy(&layout("base"), &bench.path("base/vicuna-leg"));
    copy(&layout("tower"), &bench.path("base/clip-tiny-84"));
    for name in ["a-full", "b-stage1", "c-lora"] {
        let printed = bench.run(&["inspect", &layout(name)]).ok();
        assert!(
            printed.contains("84 px, 36 tokens") && printed.contains("4 tokens"),
            "{name}: {printed}"
        );
    }
    pictures(&bench, "mix_pixels.safetensors");
    let ask = ["--image", "b.png", "--prompt", "What ?", "--max-new-tokens", "4", "--json"];
    let by_name = bench.run(&[&["generate", "--model", &layout("c-lora")], &ask[..]].concat()).ok();
    let given = arguments("lora", "--model");
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    assert_eq!(by_name, bench.run(&[&["generate"], &given[..], &ask].concat()).ok());
}

#[test]
fn trained_and_evaluated_with_the_published_losses() {
    for (kind, stage, records, pixels, cases) in [
        ("full", "finetune", "mix.json", "mix_pixels.safetensors", &["full"][..]),
        ("lora", "finetune", "mix.json", "mix_pixels.safetensors", &["lora"]),
        ("stage1", "pretrain", "cap.json", "cap_pixels.safetensors", &["stage1v1"]),
    ] {
        let bench = Bench::new();
        pictures(&bench, pixels);
        configuration(&bench, stage, records);
        let expected = expected(cases[0]);
        let given = arguments(kind, "--init-from");
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        for (mode, schedule) in [("fast", "always_fast"), ("slow", "always_slow")] {
            if (kind, mode) == ("stage1", "slow") {
                // The published code has no slow steps in stage 1.
                continue;
            }
            let schedule = format!("mode.schedule={schedule}");
            let train = ["train", "--config", "run.toml", "--out", mode, "--set", &schedule];
            bench.run(&[&train[..], &given].concat()).ok();
            let (record, numbers) = (&metrics(&bench.path(mode))[0], &expected[mode]);
            let what = format!("{kind} {mode}");
            close(&what, &record["loss"], &numbers["loss"]);
            if mode == "slow" {
                close(&what, &record["ce"], &numbers["student_ce_loss"]);
                // Ours is the mean over tokens with a teacher, which text alone has none of; theirs is over all.
                let number = |key: &str| record[key].as_f64().unwrap();
                let kl = number("kl") * number("kl_tokens") / number("supervised_tokens");
                close(&what, &kl.into(), &numbers["distill_loss"]);
            }
            let norm =
                record["grad_norm"].as_f64().unwrap() - numbers["grad_norm"].as_f64().unwrap();
            assert!(norm.abs() < 1e-4, "{what}: gradients are {norm} apart");
            // The run knows what it started from.
            bench.run(&["inspect", mode]).ok();
            let eval = ["eval", "--run", mode, "--json"];
            serde_json::from_str::<Value>(&bench.run(&eval).ok()).unwrap();
        }
        let given = arguments(kind, "--model");
        let given: Vec<&str> = given.iter().map(String::as_str).collect();
        let eval = ["eval", "--config", "run.toml", "--json"];
        let report: Value =
            serde_json::from_str(&bench.run(&[&eval[..], &given].concat()).ok()).unwrap();
        let ce = |view: usize| &report["views"][view]["ce"];
        close(&format!("{kind} pruned"), ce(1), &expected["fast"]["loss"]);
        if kind != "stage1" {
            close(&format!("{kind} all tokens"), ce(0), &expected["slow"]["student_ce_loss"]);
        }
    }
}

/// The published stage 1 itself: a language model, a tower, and a projector that is not there yet.
#[test]
fn stage_one_starts_from_a_language_model_and_a_tower() {
    let bench = Bench::new();
    pictures(&bench, "cap_pixels.safetensors");
    configuration(&bench, "pretrain", "cap.json");
    let (base, tower) = (layout("base"), layout("tower"));
    let train = |out: &str, more: &[&str]| {
        let train = [
            "train",
            "--config",
            "run.toml",
            "--init-from",
            &base,
            "--vision-tower",
            &tower,
            "--out",
            out,
        ];
        bench.run(&[&train[..], more].concat())
    };
    train("one", &[]).ok();
    train("again", &[]).ok();
    assert_eq!(metrics(&bench.path("one")), metrics(&bench.path("again")));
    train("seed", &["--set", "seed=1"]).ok();
    assert_ne!(metrics(&bench.path("one")), metrics(&bench.path("seed")));
    // Stage 2 with adapters after it, and the tower is still found.
    configuration(&bench, "finetune", "cap.json");
    let text = std::fs::read_to_string(bench.path("run.toml")).unwrap();
    std::fs::write(bench.path("run.toml"), text + "[model.lora]\nr = 2\nalpha = 4.0\n").unwrap();
    bench.run(&["train", "--config", "run.toml", "--init-from", "one", "--out", "two"]).ok();
    bench.run(&["train", "--resume", "two", "--set", "seed=2"]).refused(&["seed"]);
    bench.run(&["generate", "--run", "two", "--image", "a.png", "--prompt", "What ?"]).ok();
    // A run brings its own parts, and another isolator is no silent change.
    bench
        .run(&[
            "train",
            "--config",
            "run.toml",
            "--init-from",
            "one",
            "--vision-tower",
            &tower,
            "--out",
            "x",
        ])
        .refused(&["--vision-tower", "run"]);
    let part = layout("b-stage1");
    train("x", &["--part", &part, "--set", "model.isolator_length=2"]).refused(&[
        "isolator",
        "has 4 rows",
        "isolator_length is 2",
    ]);
    let lora = layout("c-lora");
    train("x", &["--adapter", &lora]).refused(&["r = 8", "[model.lora]", "r = 2"]);
    assert!(!bench.path("x").exists());
}

#[test]
fn exported_as_the_published_trainer_writes_it() {
    let bench = Bench::new();
    pictures(&bench, "mix_pixels.safetensors");
    let ask = |given: &[&str]| -> Value {
        let rest = [
            "--image",
            "b.png",
            "--prompt",
            "What ?",
            "--max-new-tokens",
            "6",
            "--json",
            "--template",
            "vicuna_v1",
        ];
        let text = bench.run(&[&["generate"], given, &rest].concat()).ok();
        serde_json::from_str(&text).unwrap()
    };
    let stage1 = arguments("stage1", "--model");
    let stage1: Vec<&str> = stage1.iter().map(String::as_str).collect();
    bench.run(&[&["export", "--format", "llava", "--out", "llava"], &stage1[..]].concat()).ok();
    let out = bench.path("llava");
    for name in ["mm_projector.bin", "mode_isolator.bin"] {
        let of = |dir: PathBuf| {
            let file = PickleWeights::open(&dir.join(name)).unwrap();
            let read = |key: &String| (key.clone(), file.read(key).unwrap());
            file.tensors().keys().map(read).collect::<Vec<_>>()
        };
        assert_eq!(of(out.clone()), of(published("layouts/b-stage1")), "{name}");
    }
    let config: Value =
        serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    let tower = PathBuf::from(config["mm_vision_tower"].as_str().unwrap());
    assert!(tower.is_absolute() && tower.join("preprocessor_config.json").is_file(), "{config}");
    assert_eq!(config["image_aspect_ratio"], "square");
    assert_eq!(config["model_type"], "llava_llama");
    let weights = SafetensorsWeights::open(&out.join("model.safetensors")).unwrap();
    assert!(weights.tensors().contains_key("mode_isolator.weight"));
    // What the slow tokenizer class of the day reads, byte for byte.
    let same = |name: &str| {
        assert_eq!(
            std::fs::read(out.join(name)).unwrap(),
            std::fs::read(published("layouts/base").join(name)).unwrap(),
            "{name}"
        );
    };
    ["tokenizer.model", "special_tokens_map.json"].into_iter().for_each(same);
    let text: Value =
        serde_json::from_slice(&std::fs::read(out.join("tokenizer.json")).unwrap()).unwrap();
    assert!(text["model"]["merges"][0].is_string(), "tokenizers 0.15 reads no pairs");

    // And back, from another place, where the tower's absolute path is no more.
    let moved = bench.path("moved");
    std::fs::rename(&out, &moved).unwrap();
    let (moved, expected) = (moved.display().to_string(), ask(&stage1));
    assert_eq!(ask(&["--model", &moved]), expected);
    // A name of the user's choice is kept.
    let named = [
        "export",
        "--format",
        "llava",
        "--out",
        "named",
        "--tower-name",
        "openai/clip-vit-large-patch14-336",
    ];
    bench.run(&[&named[..], &stage1].concat()).ok();
    let config: Value =
        serde_json::from_slice(&std::fs::read(bench.path("named/config.json")).unwrap()).unwrap();
    assert_eq!(config["mm_vision_tower"], json!("openai/clip-vit-large-patch14-336"));
    assert_eq!(ask(&["--model", "named"]), expected);
}
