//! Training: configs, runs, interruptions, data from disk.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Bench, Ran, TINY, metrics, steps};

#[test]
fn bad_configs_are_refused_before_anything_is_written() {
    let bench = Bench::new();
    let cases: &[(&str, &[&str])] = &[
        ("pruning.ratoi=0.5", &["pruning.ratoi", "did you mean `pruning.ratio`"]),
        ("stepz=3", &["did you mean `steps`"]),
        ("isolator.enabled=false", &["isolator.enabled", "model.isolator_length = 0"]),
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
    bench.run(&["train", "--config", "run/config.toml", "--out", "written"]).ok();
    assert_eq!(metrics(&run), metrics(&bench.path("written")));
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
    bench.run(&resume).refused(&["optim.lr is 0.5, was 0.001", "moments"]);
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

/// A run of another version is called that, whatever its config says.
#[test]
fn runs_of_another_version_are_refused_by_every_command() {
    let bench = Bench::new();
    bench.train("run", &[]).ok();
    let state = bench.path("run/checkpoints/step-00000003/state.json");
    let mut old: Value = serde_json::from_slice(&std::fs::read(&state).unwrap()).unwrap();
    old["format"] = json!(1);
    std::fs::write(&state, old.to_string()).unwrap();
    // It had none.
    std::fs::remove_file(state.with_file_name("checksums.json")).unwrap();
    let config = std::fs::read_to_string(bench.path("run/config.toml")).unwrap();
    std::fs::write(bench.path("run/config.toml"), config + "[isolator]\nenabled = true\n").unwrap();
    let refused =
        |args: &[&str]| bench.run(args).refused(&["step-00000003", "format 1", "reads 3"]);
    refused(&["train", "--resume", "run"]);
    refused(&["train", "--config", "tiny.toml", "--init-from", "run", "--out", "next"]);
    refused(&["eval", "--run", "run"]);
    refused(&["generate", "--run", "run", "--prompt", "how many ?"]);
    refused(&["export", "--run", "run", "--format", "hf", "--out", "hf"]);
    assert!(!bench.path("next").exists() && !bench.path("hf").exists());
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
