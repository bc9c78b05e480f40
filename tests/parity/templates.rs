//! The chat template, the system prompt and the image fit of a checkpoint: asked, trained, written down, exported and read
//! back. That the template writes what transformers writes is tested with the data
//! (crates/dualspeed-data/tests/data/chat_templates.rs).

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::commands::{dualspeed, ok};
use crate::support::fixture;

const UNKNOWN: i64 = 0;
const IMAGE: i64 = -200;
const FIRST: i64 = 92;

/// The tiny LLaVA with words `w3` .. `w89` of the ids 3 .. 89, and these tokens from id 92 on.
fn checkpoint(dir: &Path, tokens: &[&str], named: Value, template: Option<&str>) -> PathBuf {
    let model = dir.join("model");
    std::fs::create_dir_all(&model).unwrap();
    for entry in std::fs::read_dir(fixture("llava_mha")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let path = model.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for (id, token) in (FIRST..).zip(tokens) {
        // What the fixture keeps at these ids are words like others.
        let vocab = tokenizer["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, taken| *taken != json!(id));
        vocab.insert((*token).to_string(), json!(id));
        tokenizer["added_tokens"].as_array_mut().unwrap().push(json!({
            "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": true
        }));
    }
    std::fs::write(path, tokenizer.to_string()).unwrap();
    std::fs::write(model.join("tokenizer_config.json"), named.to_string()).unwrap();
    if let Some(template) = template {
        std::fs::write(model.join("chat_template.jinja"), template).unwrap();
    }
    model
}

const CHATML: &str = "{% for message in messages %}{{ '<|im_start|> ' + message['role'] + '\n' }}\
    {% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}\
    {% endif %}{% endfor %}{{ '<|im_end|>' + '\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|> assistant\n' }}{% endif %}";
const LLAMA3: &str = "{{ bos_token }}{% for message in messages %}\
    {{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
    {% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}\
    {% endif %}{% endfor %}{{ '<|eot_id|>' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}";

fn picture(dir: &Path) -> String {
    let path = dir.join("a.png");
    let image =
        image::RgbImage::from_fn(40, 24, |x, y| image::Rgb([(x * 6) as u8, (y * 8) as u8, 90]));
    image.save(&path).unwrap();
    path.display().to_string()
}

/// What is generated for `w10 w11` about a picture.
fn ask(dir: &Path, source: &[&str]) -> Value {
    let image = picture(dir);
    let rest = ["--image", &image, "--prompt", "w10 w11", "--max-new-tokens", "3", "--json"];
    serde_json::from_str(&ok(&[&["generate", "--quiet"], source, &rest].concat())).unwrap()
}

fn prompt(dir: &Path, source: &[&str]) -> Vec<i64> {
    serde_json::from_value(ask(dir, source)["prompt_ids"].clone()).unwrap()
}

/// field/09: a chat in ChatML has no other model's system prompt, and one that is given.
#[test]
fn chatml_has_the_system_prompt_that_is_given_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let named = json!({ "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>" });
    let tokens = ["<|im_start|>", "<|im_end|>"];
    let model = checkpoint(dir.path(), &tokens, named, Some(CHATML)).display().to_string();
    let [start, end] = [FIRST, FIRST + 1];
    let asked = [start, UNKNOWN, IMAGE, 10, 11, end, start, UNKNOWN];
    assert_eq!(prompt(dir.path(), &["--model", &model]), asked);
    let system = [&[start, UNKNOWN, 20, end][..], &asked].concat();
    assert_eq!(prompt(dir.path(), &["--model", &model, "--system", "w20"]), system);
    // By the name of the library's template the same is written.
    assert_eq!(prompt(dir.path(), &["--model", &model, "--template", "chatml"]), asked);
}

/// field/10: Llama 3's template is followed, not taken for Vicuna's.
#[test]
fn llama_3_is_written_as_its_template_says() {
    let dir = tempfile::tempdir().unwrap();
    let named = json!({ "bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>" });
    let tokens = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"];
    let model = checkpoint(dir.path(), &tokens, named, Some(LLAMA3)).display().to_string();
    let [begin, header, end, eot] = [FIRST, FIRST + 1, FIRST + 2, FIRST + 3];
    let asked = [begin, header, UNKNOWN, end, IMAGE, 10, 11, eot, header, UNKNOWN, end];
    assert_eq!(prompt(dir.path(), &["--model", &model]), asked);
    assert_eq!(prompt(dir.path(), &["--model", &model, "--template", "llama3"]), asked);
    let image = picture(dir.path());
    let refused = |source: &[&str], part: &str| {
        let ask = ["generate", "--quiet", "--model", &model, "--image", &image, "--prompt", "w10"];
        let (success, _, stderr) = dualspeed(&[&ask[..], source].concat());
        assert!(!success && stderr.contains(part), "{stderr}");
    };
    refused(&["--template", "chatml"], "<|im_start|>");
    refused(&["--template", "lama3"], "llama3");
    let file = dir.path().join("other.jinja");
    std::fs::write(&file, "{{ raise_exception('not me') }}").unwrap();
    let file = file.display().to_string();
    refused(&["--template", &file], "not me");
    std::fs::write(&file, CHATML.replace("<|im_start|>", "w30").replace("<|im_end|>", "w31"))
        .unwrap();
    let by_file = [30, UNKNOWN, IMAGE, 10];
    assert_eq!(prompt(dir.path(), &["--model", &model, "--template", &file])[..4], by_file);
    // A template that is broken is not passed over.
    std::fs::write(Path::new(&model).join("chat_template.jinja"), "{% for %}").unwrap();
    refused(&[], "chat_template.jinja");
    assert_eq!(prompt(dir.path(), &["--model", &model, "--template", "llama3"]), asked);
}

/// Four records about the picture; a configuration that leaves template, tokenizer and fit out, and `extra` of it.
fn config(dir: &Path, extra: &str) -> String {
    picture(dir);
    let record = |index: usize| {
        json!({ "id": index.to_string(), "image": "a.png", "conversations": [
            { "from": "human", "value": "<image>\nw10 w11" }, { "from": "gpt", "value": format!("w{}", 40 + index) },
            { "from": "human", "value": "w12" }, { "from": "gpt", "value": "w13" } ] })
    };
    let records: Vec<Value> = (0..4).map(record).collect();
    std::fs::write(dir.join("data.json"), serde_json::to_string(&records).unwrap()).unwrap();
    let text = format!(
        "steps = 3\nstage = \"finetune\"\n[model]\nisolator_length = 2\n[model.lora]\nr = 2\nalpha = 4\n\
         [mode]\nschedule = \"periodic\"\nevery = 2\n[batch]\nsize = 2\n[optim]\nlr = 0.01\n\
         [data.train.llava_json]\npath = {:?}\nimage_root = {:?}\n{extra}\n",
        dir.join("data.json"),
        dir,
    );
    let path = dir.join("config.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}

fn losses(run: &Path) -> Vec<f64> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let records = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter_map(|record| record["loss"].as_f64()).collect()
}

/// field/26: what the configuration leaves out is the checkpoint's, is told, and stands in the run's own configuration.
#[test]
fn a_run_takes_template_tokenizer_and_fit_from_its_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let named = json!({ "bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>" });
    let tokens = ["<|im_start|>", "<|im_end|>"];
    let model = checkpoint(dir.path(), &tokens, named, Some(CHATML));
    let from = model.display().to_string();
    let path = config(dir.path(), "");
    let run = dir.path().join("run");
    let out = run.display().to_string();
    let train = |config: &str, out: &str, from: &[&str]| {
        let (success, _, stderr) =
            dualspeed(&[&["train", "--config", config, "--out", out], from].concat());
        assert!(success, "{stderr}");
        stderr
    };
    let told = train(&path, &out, &["--init-from", &from]);
    for part in ["chat_template.jinja", "tokenizer.json", "fit: centre_crop", "system prompt: none"]
    {
        assert!(told.contains(part), "no {part:?} in: {told}");
    }
    let written = std::fs::read_to_string(run.join("config.toml")).unwrap();
    for part in ["jinja = ", "<|im_start|>", "fit = \"centre_crop\"", "tokenizer.json"] {
        assert!(written.contains(part), "no {part:?} in: {written}");
    }
    let asked = prompt(dir.path(), &["--model", &from]);
    assert_eq!(prompt(dir.path(), &["--run", &out]), asked);

    // From its own configuration it is the same run, whatever became of the checkpoint's template.
    std::fs::write(model.join("chat_template.jinja"), "{{ nothing }}").unwrap();
    let own = run.join("config.toml").display().to_string();
    let again = dir.path().join("again");
    let told = train(&own, &again.display().to_string(), &[]);
    assert!(!told.contains("template"), "{told}");
    assert_eq!(losses(&again), losses(&run));
    assert!(losses(&run).len() >= 3);
    std::fs::write(model.join("chat_template.jinja"), CHATML).unwrap();

    // What the configuration says is not overruled.
    let said = config(dir.path(), "template = \"vicuna_v1\"\nfit = \"pad\"\nsystem = \"w50\"\n");
    let other = dir.path().join("other");
    let told = train(&said, &other.display().to_string(), &["--init-from", &from]);
    assert!(!told.contains("template") && !told.contains("fit:"), "{told}");
    let asked = prompt(dir.path(), &["--run", &other.display().to_string()]);
    assert_eq!(asked[..2], [1, 50]);
}

/// A template that ends no answer: LLaVA-1.5's in transformers' layout.
#[test]
fn a_template_without_ends_is_told_and_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let named = json!({ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" });
    let template = "{% for m in messages %}{{ m.role.upper() + ': ' }}{% for p in m.content %}\
        {{ '<image>\n' if p.type == 'image' else p.text + ' ' }}{% endfor %}{% endfor %}\
        {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
    let model = checkpoint(dir.path(), &[], named, Some(template)).display().to_string();
    let path = config(dir.path(), "");
    let out = dir.path().join("run").display().to_string();
    let train = ["train", "--config", &path, "--init-from", &model, "--out", &out];
    let (success, _, stderr) = dualspeed(&train);
    assert!(success && stderr.contains("\"</s>\"") && stderr.contains("vicuna_v1"), "{stderr}");
}

/// field/32: what is exported writes the prompts that were trained and fits pictures as the run did.
#[test]
fn an_export_has_the_trained_template_and_the_processor_that_fits_as_trained() {
    let dir = tempfile::tempdir().unwrap();
    let named = json!({ "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>" });
    let model = checkpoint(dir.path(), &[], named, None).display().to_string();
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    for (name, extra, class, start) in [
        (
            "padded",
            "template = \"vicuna_v1\"\nfit = \"pad\"\nsystem = \"w50 'w51' \\\"w52\\\"\"",
            "LlavaImageProcessor",
            50,
        ),
        ("cropped", "template = \"qa\"\nfit = \"centre_crop\"", "CLIPImageProcessor", IMAGE),
    ] {
        let path = config(dir.path(), extra);
        let run = dir.path().join(name).display().to_string();
        ok(&["train", "--quiet", "--config", &path, "--init-from", &model, "--out", &run]);
        let hf = dir.path().join(format!("{name}-hf"));
        let out = hf.display().to_string();
        ok(&["export", "--quiet", "--run", &run, "--format", "hf", "--out", &out]);
        let (trained, exported) =
            (ask(dir.path(), &["--run", &run]), ask(dir.path(), &["--model", &out]));
        assert_eq!(exported["prompt_ids"], trained["prompt_ids"]);
        assert_eq!(exported["ids"], trained["ids"]);
        assert_eq!(trained["prompt_ids"].as_array().unwrap()[..2], [json!(1), json!(start)]);
        assert!(read(hf.join("chat_template.jinja")).contains("{%- generation -%}"));
        let json = |file: &str| serde_json::from_str::<Value>(&read(hf.join(file))).unwrap();
        assert_eq!(json("preprocessor_config.json")["image_processor_type"], class);
        let processor = json("processor_config.json");
        assert_eq!(
            (&processor["processor_class"], &processor["image_token"]),
            (&json!("LlavaProcessor"), &json!("<image>"))
        );
        assert_eq!(json("config.json")["image_token_index"], 90);
        assert!(json("tokenizer_config.json").get("dualspeed_template").is_none());
    }
}
