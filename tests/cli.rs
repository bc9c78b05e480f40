//! The program as a user runs it: exit codes, messages, and what is on disk afterwards.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A model and data set small enough for the dev profile.
const TINY: &str = r#"
steps = 3

[data.train]
samples = 16

[model]
isolator_length = 2

[model.text]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
vocab_size = 178

[batch]
size = 4
"#;

/// One run of the program with its output as text.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Succeeded; its standard output.
    fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Failed with exit code 1 and one error that contains all of `parts`.
    fn refused(self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "stdout: {} stderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains("error: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
    }
}

/// A directory with the program's command line in it.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tiny.toml"), TINY).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dualspeed"));
        command.current_dir(self.dir.path()).args(args).arg("--quiet").stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// `train --config tiny.toml --out OUT` with overrides.
    fn train(&self, out: &str, overrides: &[&str]) -> Ran {
        let mut args = vec!["train", "--config", "tiny.toml", "--out", out];
        args.extend(overrides.iter().flat_map(|text| ["--set", text]));
        self.run(&args)
    }

    /// A picture of two discs, as PNG.
    fn picture(&self, name: &str) {
        let inside = |x: u32, y: u32, cx: i64, cy: i64| {
            (i64::from(x) - cx).pow(2) + (i64::from(y) - cy).pow(2) < 400
        };
        let picture = RgbImage::from_fn(120, 90, |x, y| match () {
            () if inside(x, y, 30, 30) => Rgb([220, 40, 40]),
            () if inside(x, y, 85, 55) => Rgb([40, 60, 220]),
            () => Rgb([245, 245, 240]),
        });
        picture.save(self.path(name)).unwrap();
    }
}

/// The records of `metrics.jsonl` without what depends on the clock.
fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_time = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        assert!(record.as_object_mut().unwrap().remove("time").is_some(), "no time in {line}");
        record
    };
    text.lines().map(without_time).collect()
}

fn steps(run: &Path) -> Vec<u64> {
    metrics(run).iter().map(|record| record["step"].as_u64().unwrap()).collect()
}

#[test]
fn help_of_every_command_names_its_flags() {
    let bench = Bench::new();
    let commands: &[(&str, &[&str])] = &[
        ("quickstart", &["--seeds", "--out", "--set", "--overwrite", "--print-config"]),
        ("train", &["--config", "--set", "--resume", "--init-from", "--overwrite"]),
        ("eval", &["--run", "--limit", "--json", "--pruner", "--keep", "--markdown"]),
        ("generate", &["--run", "--image", "--prompt", "--temperature", "--top-p", "--keep"]),
        ("prune", &["--image", "--pruner", "--keep", "--out", "--features", "--bench", "--json"]),
        ("bench", &["--suite", "--size", "--case", "--steps", "--json", "--plot", "--plain"]),
        ("train-tower", &["--out", "--steps", "--lr"]),
    ];
    let overview = bench.run(&["--help"]).ok();
    for (command, flags) in commands {
        assert!(overview.contains(command), "{overview}");
        let help = bench.run(&[command, "--help"]).ok();
        for flag in flags.iter().chain(&["--backend"]) {
            assert!(help.contains(flag), "{command}: no {flag} in {help}");
        }
    }
    assert_eq!(bench.run(&["trian"]).code, Some(2));
}

#[test]
fn bad_configs_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    let cases: &[(&str, &[&str])] = &[
        ("pruning.ratoi=0.5", &["pruning.ratoi", "did you mean `pruning.ratio`"]),
        ("stepz=3", &["did you mean `steps`"]),
        ("pruning.ratio=1.0", &["pruning.ratio", "every visual token", "[0, 1)"]),
        ("batch.size=0", &["batch.size", "at least 1"]),
        ("data.train.samples=0", &["data.train.samples", "at least 1"]),
        ("pruning.pruner.name=divprun", &["divprun", "divprune"]),
        ("pruning.pruner.options.contextual=3", &["divprune", "`contextual`"]),
        ("steps", &["--set steps", "key=value"]),
    ];
    for (text, parts) in cases {
        bench.train("run", &[text]).refused(parts);
    }
    std::fs::write(bench.path("bad.toml"), "steps = 3\nmodel = = 1\n").unwrap();
    bench.run(&["train", "--config", "bad.toml", "--out", "run"]).refused(&["bad.toml", "line 2"]);
    bench.run(&["train", "--config", "none.toml", "--out", "run"]).refused(&["none.toml"]);
    assert!(!bench.path("run").exists());
}

#[test]
fn a_run_is_trained_evaluated_asked_and_protected() {
    let bench = Bench::new();
    bench.train("run", &[]).ok();
    let run = bench.path("run");
    assert_eq!(steps(&run), [0, 1, 2]);
    assert!(std::fs::read_to_string(run.join("config.toml")).unwrap().contains("steps = 3"));
    assert!(run.join("checkpoints/step-00000003/state.json").is_file());

    // The same seed again is the same run; another seed is not.
    bench.train("again", &[]).ok();
    assert_eq!(metrics(&run), metrics(&bench.path("again")));
    bench.train("other", &["seed=1"]).ok();
    assert_ne!(metrics(&run), metrics(&bench.path("other")));

    // Every kind of pruner trains: guided by the question, merging, inside the decoder, with options.
    let guided = ["pruning.pruner.name=cdpruner"];
    let merging = ["pruning.pruner.name=visionzip", "pruning.pruner.options.contextual=3"];
    let adaptive = ["pruning.pruner.name=prumerge+", "pruning.pruner.compat=official"];
    let inside = ["pruning.pruner.name=pyramiddrop", "model.text.num_hidden_layers=3"];
    for (out, overrides) in
        [("guided", &guided[..]), ("merging", &merging), ("adaptive", &adaptive), ("in", &inside)]
    {
        bench.train(out, overrides).ok();
        assert_eq!(steps(&bench.path(out)).len(), 3, "{overrides:?}");
    }

    // Not replaced unless told to, and not continued with another config.
    let before = std::fs::read(run.join("metrics.jsonl")).unwrap();
    bench.train("run", &["seed=1"]).refused(&["run", "--overwrite", "--resume"]);
    let resume = ["train", "--resume", "run", "--set", "optim.lr=0.5"];
    bench.run(&resume).refused(&["another config", "optim.lr"]);
    assert_eq!(std::fs::read(run.join("metrics.jsonl")).unwrap(), before);
    let overwrite =
        ["train", "--config", "tiny.toml", "--out", "other", "--overwrite", "--set", "steps=2"];
    bench.run(&overwrite).ok();
    assert_eq!(steps(&bench.path("other")), [0, 1]);
    bench.run(&["train", "--resume", "nowhere"]).refused(&["nowhere", "no run directory"]);

    let report: Value =
        serde_json::from_str(&bench.run(&["eval", "--run", "run", "--limit", "8", "--json"]).ok())
            .unwrap();
    let views: Vec<&str> =
        report["views"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect();
    assert_eq!(views, ["full", "pruned", "pruned_no_isolator"]);
    assert_eq!(report["samples"], 8);
    assert_eq!(report["views"][0]["visual_tokens"], 144.0);
    let table = bench.run(&["eval", "--run", "run", "--limit", "4"]).ok();
    assert!(table.contains("pruned_no_isolator") && table.contains("4 samples"), "{table}");
    bench.run(&["eval", "--run", "run", "--limit", "0"]).refused(&["--limit 0"]);

    bench.picture("discs.png");
    let ask = ["generate", "--run", "run", "--image", "discs.png", "--prompt", "how many ?"];
    let ask = |more: &[&str]| bench.run(&[&ask[..], &["--max-new-tokens", "4"], more].concat());
    // Greedy decoding of an untrained model: it may say anything, but always the same.
    assert_eq!(ask(&[]).ok(), ask(&[]).ok());
    ask(&["--keep", "14", "--isolator"]).ok();
    ask(&["--keep", "0"]).refused(&["0", "144"]);
    ask(&["--keep", "145"]).refused(&["145", "144"]);
    bench
        .run(&["generate", "--run", "run", "--image", "gone.png", "--prompt", "what ?"])
        .refused(&["gone.png"]);

    let prune = ["prune", "--image", "discs.png", "--keep", "14", "--out", "kept.png"];
    bench.run(&[&prune[..], &["--run", "run"]].concat()).ok();
    assert!(image::open(bench.path("kept.png")).is_ok());
}

#[test]
fn prune_writes_a_picture_or_nothing() {
    let bench = Bench::new();
    bench.picture("discs.png");
    let prune = |image: &str, keep: &str, more: &[&str]| {
        let args = ["prune", "--image", image, "--keep", keep, "--out", "out.png"];
        bench.run(&[&args[..], more].concat())
    };
    let whole = std::fs::read(bench.path("discs.png")).unwrap();
    std::fs::write(bench.path("half.png"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(bench.path("empty.png"), b"").unwrap();
    std::fs::write(bench.path("text.png"), b"this is no picture at all").unwrap();
    prune("gone.png", "14", &[]).refused(&["gone.png"]);
    prune("half.png", "14", &[]).refused(&["half.png"]);
    prune("empty.png", "14", &[]).refused(&["empty.png", "empty"]);
    prune("text.png", "14", &[]).refused(&["text.png", "PNG"]);
    prune("discs.png", "0", &[]).refused(&["divprune", "0", "144"]);
    prune("discs.png", "145", &[]).refused(&["145", "144"]);
    prune("discs.png", "14", &["--pruner", "divprun"]).refused(&["divprun", "divprune"]);
    prune("discs.png", "13", &["--pruner", "avgpool2d"]).refused(&["avgpool2d", "13"]);
    prune("discs.png", "14", &["--pruner", "pyramiddrop"]).refused(&["inside the decoder"]);
    prune("discs.png", "14", &["--pruner", "visionzip:contextal=1"]).refused(&["`contextual`"]);
    let left: Vec<_> = std::fs::read_dir(bench.dir.path()).unwrap().map(|e| e.unwrap()).collect();
    assert!(left.iter().all(|e| !e.file_name().to_string_lossy().starts_with("out.png")));

    for pruner in ["divprune", "fastervlm", "random", "uniform"] {
        let printed = prune("discs.png", "14", &["--pruner", pruner, "--overwrite"]).ok();
        assert!(printed.contains("14 of 144"), "{printed}");
        assert_eq!(image::open(bench.path("out.png")).unwrap().width(), 672);
    }
    // Side by side, text-guided and merging ones among them: a row of four and a row of two.
    let several = "divprune,cdpruner,visionzip:contextual=4,trim,dart";
    let question = ["--pruner", several, "--prompt", "is there a cat", "--overwrite"];
    let printed = prune("discs.png", "14", &question).ok();
    assert!(
        printed.contains("trim merges 14 of 144") && printed.contains("dart keeps 14"),
        "{printed}"
    );
    let sheet = image::open(bench.path("out.png")).unwrap();
    assert_eq!((sheet.width(), sheet.height()), (4 * 344 + 8, 2 * (336 + 24 + 8) + 8));
    let before = std::fs::read(bench.path("out.png")).unwrap();
    prune("discs.png", "20", &[]).refused(&["out.png", "--overwrite"]);
    assert_eq!(std::fs::read(bench.path("out.png")).unwrap(), before);
    let names = prune("discs.png", "1", &["--pruner", "help"]).ok();
    assert!(names.lines().any(|name| name == "divprune"), "{names}");
}

/// Features of one image and a half, by hand: what another implementation would be checked against.
#[test]
fn given_features_are_pruned_and_printed() {
    use safetensors::tensor::{Dtype, TensorView};
    let bench = Bench::new();
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    // 0 and 2 are one direction of a plane, 1 opposes them, 3 is across.
    let projected: Vec<f32> = [[1.0, 0.0], [-1.0, 0.0], [2.0, 0.0], [0.0, 1.0]].concat().repeat(2);
    let attention = [0.1, 0.4, 0.3, 0.2, 0.4, 0.3, 0.2, 0.1];
    let (projected, attention) = (bytes(&projected), bytes(&attention));
    let valid = [1u8, 1, 1, 1, 1, 0, 1, 1];
    let view = |dtype, shape: &[usize], data| TensorView::new(dtype, shape.to_vec(), data).unwrap();
    let write = |name: &str, masked: bool| {
        let mut tensors = vec![
            ("projected", view(Dtype::F32, &[2, 4, 2], &projected)),
            ("cls_attention", view(Dtype::F32, &[2, 4], &attention)),
        ];
        if masked {
            tensors.push(("valid", view(Dtype::U8, &[2, 4], &valid)));
        }
        let bytes = safetensors::serialize(tensors, None).unwrap();
        std::fs::write(bench.path(name), bytes).unwrap();
    };
    write("plain.safetensors", false);
    write("masked.safetensors", true);
    let prune = |file: &str, pruner: &str| {
        let args = ["prune", "--features", file, "--keep", "2", "--json", "--pruner", pruner];
        bench.run(&args)
    };
    let printed = prune("plain.safetensors", "fastervlm,divprune").ok();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["fastervlm"]["indices"], json!([[1, 2], [0, 1]]));
    // 1 and 3 are equally far from their nearest; 0 is then farthest from 1.
    assert_eq!(printed["divprune"]["indices"], json!([[0, 1], [0, 1]]));
    let printed = prune("masked.safetensors", "fastervlm").ok();
    let printed: Value = serde_json::from_str(&printed).unwrap();
    // Three of four tokens are valid: 2 * 3 / 4 = 1 of them stays.
    assert_eq!(printed["fastervlm"]["indices"], json!([[1, 2], [0]]));
    prune("plain.safetensors", "visionzip").refused(&["visionzip", "keys"]);
    prune("gone.safetensors", "divprune").refused(&["gone.safetensors"]);
    std::fs::write(bench.path("bad.safetensors"), b"no such thing").unwrap();
    prune("bad.safetensors", "divprune").refused(&["bad.safetensors"]);
}

/// One model under several pruners: a table, as text, JSON and Markdown.
#[test]
fn pruners_are_compared_on_one_model() {
    let bench = Bench::new();
    bench.train("run", &[]).ok();
    let eval = |more: &[&str]| {
        bench.run(&[&["eval", "--run", "run", "--limit", "4", "--pruner"], more].concat())
    };
    let table = eval(&["all", "--keep", "5%,16", "--markdown", "table.md"]).ok();
    for name in ["divprune", "cdpruner", "trim", "prumerge+", "random", "uniform", "avgpool2d"] {
        assert!(table.contains(name), "no {name} in {table}");
    }
    let markdown = std::fs::read_to_string(bench.path("table.md")).unwrap();
    assert!(markdown.starts_with("| pruner | 7 (5 %) | 16 (11 %) |"), "{markdown}");
    eval(&["random", "--markdown", "table.md"]).refused(&["table.md", "--overwrite"]);
    eval(&["random", "--keep", "144"]).refused(&["144"]);
    eval(&["randon"]).refused(&["random"]);
    let report: Value = serde_json::from_str(&eval(&["random,uniform", "--json"]).ok()).unwrap();
    assert_eq!(report["pruners"][0]["budgets"][0]["keep"], 14);
    assert_eq!(report["full"]["visual_tokens"], 144.0);
}

/// Ctrl-C during a long run leaves a checkpoint, and `--resume` ends as if nothing had happened.
#[cfg(unix)]
#[test]
fn interrupted_runs_resume_where_they_stopped() {
    let bench = Bench::new();
    let total = 40;
    bench.train("whole", &["steps=40"]).ok();

    let args = ["train", "--config", "tiny.toml", "--out", "run", "--set", "steps=40"];
    let mut command = bench.command(&args);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = bench.path("run/metrics.jsonl");
    let begin = Instant::now();
    while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(killed.success());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    assert!(ran.stderr.contains("--resume"), "{}", ran.stderr);
    let reached = steps(&bench.path("run")).len() as u64;
    assert!((2..total).contains(&reached), "{reached} steps");
    let checkpoint = format!("run/checkpoints/step-{reached:08}/state.json");
    assert!(bench.path(&checkpoint).is_file(), "no {checkpoint}");

    bench.run(&["train", "--resume", "run"]).ok();
    assert_eq!(steps(&bench.path("run")), (0..total).collect::<Vec<_>>());
    assert_eq!(metrics(&bench.path("run")), metrics(&bench.path("whole")));
}

#[test]
fn llava_json_is_trained_from_disk_and_its_mistakes_are_located() {
    let bench = Bench::new();
    bench.picture("discs.png");
    let tokenizer = dualspeed::data::scene_tokenizer().unwrap();
    tokenizer.inner().save(bench.path("tokenizer.json"), false).unwrap();
    let config = TINY.replace(
        "samples = 16",
        "[data.train.llava_json]\npath = \"data.json\"\nimage_root = \".\"\ntokenizer = \"tokenizer.json\"\n\
         template = \"qa\"",
    );
    std::fs::write(bench.path("json.toml"), config).unwrap();
    let train = |records: &str, out: &str| {
        std::fs::write(bench.path("data.json"), records).unwrap();
        bench.run(&["train", "--config", "json.toml", "--out", out])
    };
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let record = |id: usize, image: Option<&str>, turns: Vec<Value>| match image {
        Some(image) => json!({"id": id.to_string(), "image": image, "conversations": turns}),
        None => json!({"id": id.to_string(), "conversations": turns}),
    };
    let good = |id| {
        let turns = vec![turn("human", "<image>\nhow many objects ?"), turn("gpt", "two")];
        record(id, Some("discs.png"), turns)
    };
    let text = record(9, None, vec![turn("human", "how many ?"), turn("gpt", "two")]);
    let lines = |records: &[Value]| records.iter().map(|r| format!("{r}\n")).collect::<String>();

    train("[\n{\"id\": \"0\",\n \"conversations\": [}\n]", "bad").refused(&["data.json:3", "JSON"]);
    let open = record(1, Some("discs.png"), vec![turn("human", "<image>\nhow many ?")]);
    train(&lines(&[good(0), open]), "bad").refused(&["data.json:2", "\"1\"", "no answer"]);
    let two = vec![turn("human", "<image> <image>\nhow many ?"), turn("gpt", "two")];
    let two = record(2, Some("discs.png"), two);
    train(&lines(&[good(0), good(1), two]), "bad").refused(&[
        "data.json:3",
        "2 <image>",
        "1 image",
    ]);
    assert!(!bench.path("bad").exists());
    let turns = vec![turn("human", "<image>\nhow many ?"), turn("gpt", "two")];
    train(&lines(&[record(3, Some("gone.png"), turns)]), "lost").refused(&["gone.png", "\"3\""]);

    // Pictures and text alone, mixed; the run answers with the tokenizer it was trained with.
    train(&lines(&[good(0), text, good(1), good(2)]), "run").ok();
    assert_eq!(steps(&bench.path("run")).len(), 3);
    let ask = ["generate", "--run", "run", "--image", "discs.png", "--prompt", "how many ?"];
    bench.run(&ask).ok();
    bench.run(&["eval", "--run", "run"]).refused(&["held-out", "data.valid"]);
}

#[test]
fn quickstart_writes_the_promised_files() {
    let bench = Bench::new();
    let overrides = [
        "steps=2",
        "batch.size=8",
        "data.train.samples=16",
        "model.text.hidden_size=32",
        "model.text.num_hidden_layers=1",
        "model.text.intermediate_size=64",
    ];
    let mut args = vec!["quickstart", "--out", "out"];
    args.extend(overrides.iter().flat_map(|text| ["--set", text]));
    let printed = bench.run(&args).ok();
    assert!(printed.contains("DualSpeed") && printed.contains("report.html"), "{printed}");

    let text = std::fs::read_to_string(bench.path("out/summary.json")).unwrap();
    let summary: Value = serde_json::from_str(&text).unwrap();
    for model in ["baseline", "naive_prune", "dualspeed"] {
        for key in [
            "accuracy_full",
            "accuracy_pruned",
            "accuracy_pruned_no_isolator",
            "accuracy_full_heldout_vendor",
            "retention_full",
            "retention_pruned",
            "train_seconds",
            "speedup",
            "visual_tokens_full",
            "visual_tokens_pruned",
        ] {
            for key in [key.to_string(), format!("{key}_std")] {
                assert!(summary["models"][model][&key].is_f64(), "{model}: no {key}");
            }
        }
        assert_eq!(summary["models"][model]["visual_tokens_full"], 144.0);
        assert_eq!(summary["models"][model]["visual_tokens_pruned"], 14.0);
        assert_eq!(steps(&bench.path("out/seed-0").join(model)).len(), 2);
    }
    for key in ["chance", "text_only_accuracy", "featurise_seconds"] {
        assert!(summary[key].is_f64(), "no {key}");
    }
    assert_eq!(summary["seeds"], 1);
    let page = std::fs::read_to_string(bench.path("out/report.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("data:image/png;base64,"));
    assert!(image::open(bench.path("out/strip.png")).is_ok());

    bench.run(&args).refused(&["out", "--overwrite"]);
    let recipe = bench.run(&["quickstart", "--print-config"]).ok();
    assert!(recipe.contains("slow_mode_ratio = 0.1"), "{recipe}");
}

#[test]
fn bench_runs_real_steps_and_writes_rows() {
    let bench = Bench::new();
    let cases = ["stage 2 fast", "next slow, tower", "next unpad fast"];
    let cases = cases.map(|case| ["--case", case]).concat();
    let small = ["--size", "tiny", "--warmup", "1", "--steps", "2", "--set", "batch.size=2"];
    let args = [&["bench", "--json", "rows.json"][..], &cases, &small].concat();
    let table = bench.run(&args).ok();
    assert!(table.contains("stage 2 fast"), "{table}");
    let text = std::fs::read_to_string(bench.path("rows.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    let rows = report["rows"].as_array().unwrap();
    // A name means that step only, not the one with the tower in it as well.
    assert_eq!(rows.len(), 3);
    for row in rows {
        assert_eq!(row["suite"], "step");
        for key in ["ms", "samples_per_s", "tokens_per_s", "first_step_s"] {
            assert!(row[key].as_f64().unwrap() > 0.0, "{key} in {row}");
        }
    }
    bench.run(&args).refused(&["rows.json", "--overwrite"]);
    let unknown = ["bench", "--size", "tiny", "--case", "stage 3"];
    bench.run(&unknown).refused(&["stage 3", "stage 2 fast"]);
}

#[cfg(feature = "ndarray")]
#[test]
fn operations_and_pruners_are_timed() {
    let bench = Bench::new();
    let args = ["bench", "--backend", "ndarray", "--size", "tiny"];
    let run = |more: &[&str]| bench.run(&[&args[..], more].concat());
    let pruners = ["--pruner", "divprune,random"];
    let suites = ["--suite", "ops,prune", "--suite", "ops", "--plain", "--json", "out.json"];
    let table = run(&[&suites[..], &pruners].concat()).ok();

    let report = std::fs::read_to_string(bench.path("out.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    let date = report["date"].as_str().unwrap();
    assert!(date.len() == 10 && date.starts_with("20"), "{date}");
    assert_eq!((&report["size"], &report["dtype"]), (&json!("tiny"), &json!("float32")));
    assert!(report["device"].is_string());
    assert!(report["command"].as_str().unwrap().starts_with("dualspeed bench --backend ndarray"));
    let rows = report["rows"].as_array().unwrap();
    let mut names = Vec::new();
    for row in rows {
        let (ms, spread) = (row["ms"].as_f64().unwrap(), row["spread_ms"].as_f64().unwrap());
        assert!(ms > 0.0 && spread >= 0.0, "{row}");
        let name = row["name"].as_str().unwrap();
        assert!(table.contains(name), "{name} is not in the table");
        match row["suite"].as_str().unwrap() {
            "op" => assert!(row["first_ms"].as_f64().unwrap() > 0.0, "{row}"),
            "prune" => assert!(row["keep"].as_u64() < row["tokens"].as_u64(), "{row}"),
            other => panic!("suite {other}"),
        }
        names.push(name);
    }
    // Names are what PyTorch's rows are found by: none twice, and these as they are there.
    let mut once = names.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), names.len());
    for name in [
        "product 64x64x64 dx",
        "lora 30x64x96 r4 backward",
        "attention b2 h4 t40 d16 backward",
        "lm_head+ce+kl 32x64x512 forward+backward",
        "block b2 t48 lora Input forward+backward",
        "adamw+clip, 28 tensors, 7k",
        "clip vit d128/14-168 forward b2",
        "divprune 2x144x64 -> 14",
        "divprune 2x144x64 -> 14 plain",
        "prune divprune 2x144x64 -> 14",
        "prune tower 1x144x64 -> 14",
    ] {
        assert!(names.contains(&name), "no {name:?} in {names:#?}");
    }

    run(&["--json", "out.json"]).refused(&["out.json", "--overwrite"]);
    run(&["--suite", "ops", "--case", "nothing"]).refused(&["ops", "nothing", "rms_norm"]);
}

#[cfg(feature = "ndarray")]
#[test]
fn growth_is_measured_and_drawn() {
    let bench = Bench::new();
    let args = ["bench", "--backend", "ndarray", "--size", "tiny", "--warmup", "1", "--steps", "1"];
    let run = |more: &[&str]| bench.run(&[&args[..], more].concat());
    let curves = ["--suite", "growth", "--case", "size 1", "--case", "size 2"];
    run(&[&curves[..], &["--json", "growth.json", "--out", "plots"]].concat()).ok();
    let plot = bench.path("plots/growth-size.svg");
    let drawn = std::fs::read_to_string(&plot).unwrap();
    assert!(drawn.contains("millions") && drawn.contains("milliseconds"), "{drawn}");
    assert!(!bench.path("plots/growth-batch.svg").exists());
    let again = ["bench", "--plot", "growth.json", "--out"];
    bench.run(&[&again[..], &["again"]].concat()).ok();
    assert_eq!(std::fs::read_to_string(bench.path("again/growth-size.svg")).unwrap(), drawn);
    bench.run(&[&again[..], &["again"]].concat()).refused(&["growth-size.svg", "--overwrite"]);
    let ops = ["--suite", "ops", "--case", "rope", "--json", "ops.json"];
    run(&ops).ok();
    bench.run(&["bench", "--plot", "ops.json", "--out", "no"]).refused(&["ops.json", "growth"]);
    bench.run(&["bench", "--plot", "tiny.toml", "--out", "none"]).refused(&["tiny.toml", "--json"]);
}
