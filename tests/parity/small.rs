//! A vision tower and a language model that never met: assembled, trained in two stages, asked, exported. The weights are
//! random and tiny; `examples/small` is the same with pretrained ones.

use std::collections::BTreeMap;
use std::path::Path;

use dualspeed::core::rng::SplitMix;
use dualspeed::data::{FitMode, ImageProcessor, load_image};
use dualspeed::model::import::safetensors::SafetensorsWeights;
use dualspeed::model::import::{Checkpoint, LoadOptions, read_efficientnet};
use dualspeed::model::{EfficientNetConfig, VisionConfig, VisionTower};
use dualspeed::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;

use crate::commands::{dualspeed, ok};
use crate::support::{B, fixture};

/// Pixels a side: 2 x 2 tokens.
const SIDE: usize = 32;

/// A state dictionary of EfficientNet-Lite0 as it is published, with random numbers.
fn write_efficientnet(path: &Path) {
    let mut rng = SplitMix::new(&[7]);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = BTreeMap::new();
    let mut put = |name: String, shape: Vec<usize>, scale: f64, mean: f64| {
        let count = shape.iter().product();
        let value = |_| (mean + scale * (2.0 * rng.uniform() - 1.0)) as f32;
        let bytes = (0..count).map(value).flat_map(f32::to_le_bytes).collect();
        tensors.insert(name, (shape, bytes));
    };
    let mut layer = |conv: &str, norm: &str, shape: [usize; 4]| {
        let fan_in: usize = shape[1..].iter().product();
        put(format!("{conv}.weight"), shape.to_vec(), (6.0 / fan_in as f64).sqrt(), 0.0);
        for (name, mean) in
            [("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)]
        {
            put(format!("{norm}.{name}"), vec![shape[0]], 0.1, mean);
        }
    };
    layer("_conv_stem", "_bn0", [32, 3, 3, 3]);
    let groups = [(1, 16, 3, 1), (6, 24, 3, 2), (6, 40, 5, 2), (6, 80, 3, 3), (6, 112, 5, 3)];
    let (mut block, mut channels) = (0, 32);
    for (expansion, out, kernel, count) in groups {
        for _ in 0..count {
            let (at, inner) = (format!("_blocks.{block}"), channels * expansion);
            if expansion > 1 {
                let expand = [inner, channels, 1, 1];
                layer(&format!("{at}._expand_conv"), &format!("{at}._bn0"), expand);
            }
            let depthwise = [inner, 1, kernel, kernel];
            layer(&format!("{at}._depthwise_conv"), &format!("{at}._bn1"), depthwise);
            layer(&format!("{at}._project_conv"), &format!("{at}._bn2"), [out, inner, 1, 1]);
            (block, channels) = (block + 1, out);
        }
    }
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, (shape, bytes))| {
            (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        })
        .collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A language model with the words of scenes, from a decoder without any.
fn write_language_model(dir: &Path) {
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("llama_tied").join(name), dir.join(name)).unwrap();
    }
    let mut words: Vec<String> = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
        .into_iter()
        .chain("is there a how many what at of colour on red blue green yes no , yellow".split(' '))
        .map(str::to_owned)
        .collect();
    words.extend((words.len()..96).map(|id| format!("w{id}")));
    let vocab: BTreeMap<_, _> = words.iter().zip(0u32..).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": (0..5).map(|id| serde_json::json!({
            "id": id, "content": words[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })).collect::<Vec<_>>(),
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    });
    std::fs::write(dir.join("tokenizer.json"), json.to_string()).unwrap();
    let template = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}\
        {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let special = serde_json::json!({
        "bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template,
    });
    std::fs::write(dir.join("tokenizer_config.json"), special.to_string()).unwrap();
}

/// The mean loss of the first and of the last quarter of a run's steps, and all of the log.
fn losses(run: &Path) -> (f64, f64, String) {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let losses: Vec<f64> = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap())
        .filter_map(|record| record["loss"].as_f64())
        .collect();
    let quarter = losses.len() / 4;
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    (mean(&losses[..quarter]), mean(&losses[losses.len() - quarter..]), text)
}

#[test]
fn a_tower_and_a_language_model_become_one_model() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let text = |name: &str| at(name).display().to_string();
    std::fs::create_dir(at("language")).unwrap();
    write_language_model(&at("language"));
    write_efficientnet(&at("vision.safetensors"));
    let side = SIDE.to_string();
    ok(&[
        "assemble",
        "--quiet",
        "--vision",
        &text("vision.safetensors"),
        "--language",
        &text("language"),
        "--image-size",
        &side,
        "--out",
        &text("model"),
    ]);

    // What was put in is what is in it: the same features as of the published weights.
    let options = LoadOptions::default();
    let checkpoint = Checkpoint::open(&at("model"), &options).unwrap();
    let (model, _) = checkpoint.load_llava::<B>(&options, &Default::default()).unwrap();
    assert!(matches!(model.config.vision, VisionConfig::EfficientNet(_)));
    let source = SafetensorsWeights::open(&at("vision.safetensors")).unwrap();
    let tower = read_efficientnet::<B>(&source, SIDE, &Default::default()).unwrap();
    let pixels = Tensor::<B, 1, Int>::arange(0..(3 * SIDE * SIDE) as i64, &Default::default());
    let pixels = (pixels.float().reshape([1, 3, SIDE, SIDE]) / 1000.0).sin();
    let difference = tower.features(pixels.clone(), &Needs::none()).hidden()
        - model.vision_tower.features(pixels, &Needs::none()).hidden();
    assert_eq!(difference.abs().max().into_scalar(), 0.0);
    let report: Value = serde_json::from_str(&ok(&["inspect", &text("model"), "--json"])).unwrap();
    let parameters = report["parameters"]["vision_tower"].as_u64().unwrap();
    assert_eq!(parameters, EfficientNetConfig::NUM_PARAMETERS);
    assert!(report["architecture"].as_str().unwrap().contains("EfficientNet-Lite0"), "{report}");

    // Half as large, and written on a backend without 16-bit floats.
    ok(&[
        "assemble",
        "--quiet",
        "--vision",
        &text("vision.safetensors"),
        "--language",
        &text("language"),
        "--image-size",
        &side,
        "--dtype",
        "bf16",
        "--out",
        &text("half"),
    ]);
    let bytes = |name: &str| std::fs::metadata(at(name).join("model.safetensors")).unwrap().len();
    let config = std::fs::read_to_string(at("half").join("config.json")).unwrap();
    assert!(config.contains("\"torch_dtype\": \"bfloat16\""), "{config}");
    assert!(bytes("half") * 10 < bytes("model") * 6, "{} of {}", bytes("half"), bytes("model"));

    // Two stages, as in examples/small.
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/small");
    let train = |stage: &str, from: &str, more: &[&str]| {
        let config = examples.join(format!("{stage}.toml")).display().to_string();
        let (from, out) = (text(from), text(stage));
        let fixed = ["train", "--quiet", "--config", &config, "--init-from", &from, "--out", &out];
        let small = [
            "--set",
            "batch.size=4",
            "--set",
            "pruning.ratio=0.5",
            "--set",
            "data.train.scenes.grid=2",
            "--set",
            "data.train.scenes.max_objects=3",
        ];
        ok(&[&fixed[..], &small, more].concat());
        losses(&at(stage))
    };
    let (first, last, _) = train("stage1", "model", &["--set", "optim.lr=0.05"]);
    println!("stage 1: {first:.3} to {last:.3}");
    assert!(last < 0.95 * first, "{first} to {last}");
    let (first, last, log) =
        train("stage2", "stage1", &["--set", "optim.lr=0.02", "--set", "mode.slow_mode_ratio=0.5"]);
    println!("stage 2: {first:.3} to {last:.3}");
    assert!(last < 0.95 * first, "{first} to {last}");
    assert!(log.contains("\"fast\"") && log.contains("\"slow\""), "{log}");

    // Of all pruners, those that this tower can serve: it has no attention and no space shared with text.
    let stage2 = text("stage2");
    let eval = ["eval", "--quiet", "--run", &stage2, "--limit", "4", "--keep", "2", "--pruner"];
    let table = ok(&[&eval[..], &["all"]].concat());
    assert!(table.contains("divprune") && table.contains("dart"), "{table}");
    assert!(!table.contains("fastervlm") && !table.contains("cdpruner"), "{table}");
    let (success, _, stderr) = dualspeed(&[&eval[..], &["fastervlm"]].concat());
    assert!(!success && stderr.contains("fastervlm needs cls_attention"), "{stderr}");

    // A resumed run finds tower, projector and adapters again; an export says what the run says.
    let image = text("a.png");
    image::RgbImage::from_fn(40, 30, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 90]))
        .save(&image)
        .unwrap();
    let ask = |source: &[&str]| -> Value {
        let rest =
            ["--image", &image, "--prompt", "what colour", "--max-new-tokens", "6", "--json"];
        serde_json::from_str(&ok(&[&["generate", "--quiet"], source, &rest].concat())).unwrap()
    };
    let trained = ask(&["--run", &text("stage2")]);
    assert_eq!(
        trained["log_probs"].as_array().unwrap().len(),
        trained["ids"].as_array().unwrap().len()
    );
    assert_eq!(trained["ids"], ask(&["--run", &text("stage2")])["ids"]);
    assert_ne!(trained["log_probs"], ask(&["--model", &text("model")])["log_probs"]);
    ok(&["export", "--quiet", "--run", &text("stage2"), "--format", "hf", "--out", &text("hf")]);
    let exported = ask(&["--model", &text("hf")]);
    assert_eq!(
        (&exported["ids"], &exported["prompt_ids"]),
        (&trained["ids"], &trained["prompt_ids"])
    );
    let pruned =
        ask(&["--model", &text("hf"), "--keep", "2", "--pruner", "divprune", "--isolator"]);
    assert!(!pruned["ids"].as_array().unwrap().is_empty());
}

#[test]
fn pixels_are_the_towers_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.png");
    image::RgbImage::from_pixel(8, 8, image::Rgb([127, 255, 0])).save(&path).unwrap();
    let vision: VisionConfig =
        serde_json::from_str(r#"{ "kind": "efficientnet_lite0", "image_size": 16 }"#).unwrap();
    let processor = ImageProcessor::new(
        vision.geometry().image_size,
        FitMode::Pad,
        vision.geometry().normalisation,
    );
    let host = processor.process(&load_image(&path, &processor.loading).unwrap().pixels);
    let expected = [0.0, 1.0, -127.0 / 128.0];
    for (plane, expected) in host.pixels.chunks(16 * 16).zip(expected) {
        assert!(plane.iter().all(|value| (value - expected).abs() < 1e-6), "{}", plane[0]);
    }
}

#[test]
fn halves_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let vision_tower = dir.path().join("vision.safetensors");
    write_efficientnet(&vision_tower);
    let out = dir.path().join("out").display().to_string();
    let vision_tower = vision_tower.display().to_string();
    let language_model = dir.path().join("language");
    std::fs::create_dir(&language_model).unwrap();
    write_language_model(&language_model);
    let language_model = language_model.display().to_string();
    let [llama, llava] =
        ["llama_tied", "llava_mha"].map(|name| fixture(name).display().to_string());
    for (vision, language, more, parts) in [
        ("no-such-thing", &language_model, &[][..], ["no-such-thing", "smollm2-135m"]),
        (&vision_tower[..], &llava, &[], ["llava_mha", "sees already"]),
        (&llama[..], &language_model, &[], ["llama_tied", "no CLIP"]),
        (&vision_tower[..], &language_model, &["--image-size", "40"], ["image_size", "16"]),
    ] {
        let arguments = ["assemble", "--vision", vision, "--language", language, "--out", &out];
        let (success, _, stderr) = dualspeed(&[&arguments[..], more].concat());
        assert!(!success && parts.iter().all(|part| stderr.contains(part)), "{vision}: {stderr}");
        assert!(!dir.path().join("out").exists(), "{vision}");
    }
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[model.vision]\nkind = \"efficientnet_lite0\"\n").unwrap();
    let config = config.display().to_string();
    let (success, _, stderr) = dualspeed(&["train", "--config", &config, "--out", &out]);
    assert!(!success && stderr.contains("assemble"), "{stderr}");
    let unknown = "[model.vision]\nkind = \"resnet\"\n";
    std::fs::write(&config, unknown).unwrap();
    let (success, _, stderr) = dualspeed(&["train", "--config", &config, "--out", &out]);
    assert!(!success && stderr.contains("resnet") && stderr.contains("clip_vit"), "{stderr}");
    std::fs::write(&config, "[model.vision]\nkind = \"clip_vitt\"\npatch_size = 14\n").unwrap();
    let (success, _, stderr) = dualspeed(&["train", "--config", &config, "--out", &out]);
    assert!(!success && stderr.contains("clip_vitt") && stderr.contains("patch_size"), "{stderr}");
}
