//! Published checkpoints are trained, LLaVA-NeXT with its tiles included, and exported.

use std::path::Path;

use serde_json::{Value, json};

use crate::commands::ok;
use crate::support::fixture;

/// A data set of pictures of several aspect ratios.
fn data(dir: &Path) {
    let records: Vec<Value> = [(40, 61), (90, 25), (50, 52), (20, 64)]
        .into_iter()
        .enumerate()
        .map(|(index, (height, width))| {
            let name = format!("{index}.png");
            let shade =
                |x: u32, y: u32| image::Rgb([(x * 3) as u8, (y * 5) as u8, index as u8 * 60]);
            image::RgbImage::from_fn(width, height, shade).save(dir.join(&name)).unwrap();
            let turns = json!([
                { "from": "human", "value": "<image>\nwhat is" },
                { "from": "gpt", "value": format!("w{} w{}", 10 + index, 20 + index) },
            ]);
            json!({ "id": index.to_string(), "image": name, "conversations": turns })
        })
        .collect();
    std::fs::write(dir.join("data.json"), serde_json::to_string(&records).unwrap()).unwrap();
}

fn train(dir: &Path, checkpoint: &str, extra: &str) -> Vec<Value> {
    data(dir);
    let config = format!(
        "steps = 8\nstage = \"finetune\"\n[model]\nisolator_length = 2\n{extra}\n[model.lora]\nr = 4\nalpha = 8\n\
         [mode]\nschedule = \"periodic\"\nevery = 2\n[batch]\nsize = 2\n[optim]\nlr = 0.01\n\
         [data.train.llava_json]\npath = {:?}\nimage_root = {:?}\ntokenizer = {:?}\ntemplate = \"vicuna_v1\"\n",
        dir.join("data.json"),
        dir,
        fixture("llava_mha").join("tokenizer.json"),
    );
    let path = dir.join("config.toml");
    std::fs::write(&path, config).unwrap();
    let (path, out) = (path.display().to_string(), dir.join("run").display().to_string());
    let from = fixture(checkpoint).display().to_string();
    ok(&["train", "--quiet", "--config", &path, "--init-from", &from, "--out", &out]);
    let text = std::fs::read_to_string(dir.join("run/metrics.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn llava_next_trains_fast_and_slow() {
    let dir = tempfile::tempdir().unwrap();
    let records = train(dir.path(), "llava_next", "[model.anyres]\nnewline = \"survivors\"\n");
    let text = serde_json::to_string(&records).unwrap();
    assert!(
        records.len() >= 8 && !text.contains("null,\"loss\"") && !text.contains("NaN"),
        "{text}"
    );
    assert!(text.contains("fast") && text.contains("slow"), "{text}");

    let (run, out) = (dir.path().join("run"), dir.path().join("hf"));
    let (run, out) = (run.display().to_string(), out.display().to_string());
    let image = dir.path().join("0.png").display().to_string();
    let ask = |source: &[&str]| -> Value {
        let rest = ["--image", &image, "--prompt", "what is", "--max-new-tokens", "6", "--json"];
        let text = ok(&[&["generate", "--quiet"], source, &rest].concat());
        serde_json::from_str(&text).unwrap()
    };
    let trained = ask(&["--run", &run]);
    ok(&["export", "--quiet", "--run", &run, "--format", "hf", "--out", &out]);
    let exported = ask(&["--model", &out]);
    assert_eq!(exported["ids"], trained["ids"]);
    assert_eq!(exported["prompt_ids"], trained["prompt_ids"]);
    let fresh = ask(&[
        "--model",
        &fixture("llava_next").display().to_string(),
        "--part",
        &format!("{out}/mode_isolator.safetensors"),
        "--template",
        "vicuna_v1",
    ]);
    assert_ne!(fresh["log_probs"], trained["log_probs"], "training changed nothing");
}
