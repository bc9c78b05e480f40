//! What a run directory promises: whole checkpoints, one writer, and a model that is made of what it started from.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Bench, Ran, TINY, metrics, steps};

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// Flips a bit in the middle of a file.
fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

/// Leaves a run as if it had been killed after `step`.
fn cut_back(run: &Path, step: u64) {
    for entry in std::fs::read_dir(run.join("checkpoints")).unwrap() {
        let path = entry.unwrap().path();
        if path > checkpoint(run, step) {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
}

const EVERY: [&str; 3] = ["steps=6", "checkpoint.every=2", "checkpoint.keep=3"];

#[test]
fn damage_is_named_and_costs_a_checkpoint_at_most() {
    let bench = Bench::new();
    bench.train("whole", &EVERY).ok();
    bench.train("run", &EVERY).ok();
    let run = bench.path("run");
    cut_back(&run, 4);
    flip(&checkpoint(&run, 4).join("trainable.safetensors"));
    let resumed = bench.run(&["train", "--resume", "run"]);
    for words in ["step-00000004", "is damaged", "SHA-256", "one before"] {
        assert!(resumed.stderr.contains(words), "no {words:?} in {}", resumed.stderr);
    }
    resumed.ok();
    assert_eq!(metrics(&run), metrics(&bench.path("whole")));
    assert!(run.join("checkpoints/damaged-step-00000004").is_dir());

    // An earlier one can be asked for.
    let earlier =
        bench.run(&["eval", "--run", "run/checkpoints/step-00000002", "--limit", "2"]).ok();
    assert_ne!(earlier, bench.run(&["eval", "--run", "run", "--limit", "2"]).ok());

    // Every command that loads the model says so, and every one says what to do when none is left.
    flip(&checkpoint(&run, 6).join("state.json"));
    let ask = ["generate", "--run", "run", "--prompt", "how many ?", "--max-new-tokens", "2"];
    let asked = bench.run(&ask);
    assert!(asked.stderr.contains("step-00000006 is damaged: state.json"), "{}", asked.stderr);
    asked.ok();
    for step in [2, 4] {
        std::fs::write(checkpoint(&run, step).join("state.json"), "").unwrap();
    }
    let advice = ["no checkpoint", "step-00000002: state.json is empty", "--overwrite"];
    bench.run(&["train", "--resume", "run"]).refused(&advice);
    bench.run(&ask).refused(&advice);
    std::fs::remove_dir_all(run.join("checkpoints")).unwrap();
    bench
        .run(&["train", "--resume", "run"])
        .refused(&["no complete checkpoint", "--config run/config.toml --out run --overwrite"]);
}

#[test]
fn what_a_run_started_from_is_checked_by_content() {
    let bench = Bench::new();
    let stage_1 = |seed: &str| {
        let args =
            ["train", "--config", "tiny.toml", "--out", "first", "--overwrite", "--set", seed];
        bench.run(&args).ok();
    };
    stage_1("seed=0");
    let lora = "model.lora={r=2,alpha=4.0,dropout=0.0}";
    let mut args =
        vec!["train", "--config", "tiny.toml", "--out", "second", "--init-from", "first"];
    for text in EVERY.iter().chain(&["stage=finetune", lora]) {
        args.extend(["--set", text]);
    }
    bench.run(&args).ok();
    let second = bench.path("second");
    let whole = metrics(&second);
    let origins = std::fs::read_to_string(second.join("origins.json")).unwrap();
    assert!(origins.contains("first") && origins.contains("\"step\": 3"), "{origins}");

    // Moved, it is the same.
    cut_back(&second, 2);
    std::fs::rename(bench.path("first"), bench.path("moved")).unwrap();
    bench.run(&["train", "--resume", "second", "--init-from", "moved"]).ok();
    assert_eq!(metrics(&second), whole);
    bench.run(&["eval", "--run", "second", "--limit", "2"]).ok();

    // Trained again with another seed, it is not.
    std::fs::remove_dir_all(bench.path("moved")).unwrap();
    stage_1("seed=1");
    std::fs::rename(bench.path("first"), bench.path("moved")).unwrap();
    let parts = ["init_from", "moved", "changed: weights", "origins.json"];
    bench.run(&["train", "--resume", "second"]).refused(&parts);
    bench.run(&["eval", "--run", "second", "--limit", "2"]).refused(&parts);
    bench.run(&["generate", "--run", "second", "--prompt", "how many ?"]).refused(&parts);
    bench.run(&["export", "--run", "second", "--format", "hf", "--out", "hf"]).refused(&parts);
    assert!(!bench.path("hf").exists());
    assert_eq!(metrics(&second), whole);
    // The way out that the message names.
    std::fs::remove_file(second.join("origins.json")).unwrap();
    bench.run(&["eval", "--run", "second", "--limit", "2"]).ok();
}

/// A run on twelve records from disk, and those records.
fn records_on_disk(bench: &Bench) -> Vec<Value> {
    let tokenizer = dualspeed::data::scene_tokenizer().unwrap();
    tokenizer.inner().save(bench.path("words.json"), false).unwrap();
    let section = "[data.train.llava_json]\npath = \"data.json\"\nimage_root = \".\"\n\
                   tokenizer = \"words.json\"\ntemplate = \"qa\"";
    std::fs::write(bench.path("json.toml"), TINY.replace("samples = 16", section)).unwrap();
    let answers = ["one", "two", "three"];
    let record = |index: usize| {
        let turns = json!([{"from": "human", "value": "how many objects ?"},
            {"from": "gpt", "value": answers[index % 3]}]);
        json!({"id": format!("rec-{index:02}"), "conversations": turns})
    };
    let records: Vec<Value> = (0..12).map(record).collect();
    std::fs::write(bench.path("data.json"), json!(records).to_string()).unwrap();
    let mut args = vec!["train", "--config", "json.toml", "--out", "run"];
    args.extend(EVERY.iter().flat_map(|text| ["--set", text]));
    bench.run(&args).ok();
    records
}

#[test]
fn a_tokenizer_that_was_replaced_is_noticed() {
    let bench = Bench::new();
    records_on_disk(&bench);
    let whole = metrics(&bench.path("run"));
    cut_back(&bench.path("run"), 2);
    let text = std::fs::read_to_string(bench.path("words.json")).unwrap();
    // Two entries of the vocabulary change places.
    let mut words: Value = serde_json::from_str(&text).unwrap();
    let vocabulary = words["model"]["vocab"].as_object_mut().unwrap();
    let (one, two) = (vocabulary["one"].clone(), vocabulary["two"].clone());
    vocabulary.insert("one".into(), two);
    vocabulary.insert("two".into(), one);
    std::fs::write(bench.path("words.json"), words.to_string()).unwrap();
    let parts = ["data.train.tokenizer", "words.json", "changed: tokenizer"];
    bench.run(&["train", "--resume", "run"]).refused(&parts);
    bench.run(&["generate", "--run", "run", "--prompt", "how many ?"]).refused(&parts);
    // Elsewhere, as it was.
    std::fs::write(bench.path("kept.json"), text).unwrap();
    let place = "data.train.llava_json.tokenizer=kept.json";
    bench.run(&["train", "--resume", "run", "--set", place]).ok();
    assert_eq!(metrics(&bench.path("run")), whole);
}

#[test]
fn a_record_may_be_removed_where_that_is_said() {
    let bench = Bench::new();
    let mut records = records_on_disk(&bench);
    let run = bench.path("run");
    let whole = metrics(&run);
    // The same records in a file of another name and layout.
    cut_back(&run, 2);
    let pretty = serde_json::to_string_pretty(&records).unwrap();
    std::fs::write(bench.path("other.json"), pretty).unwrap();
    let place = "data.train.llava_json.path=other.json";
    let moved = bench.run(&["train", "--resume", "run", "--set", place]);
    assert!(moved.stderr.contains("other.json"), "{}", moved.stderr);
    moved.ok();
    assert_eq!(metrics(&run), whole);

    cut_back(&run, 2);
    records.remove(5);
    std::fs::write(bench.path("other.json"), json!(records).to_string()).unwrap();
    let said = "data.revised=[\"rec-05\"]";
    bench.run(&["train", "--resume", "run"]).refused(&["1 record (rec-05) removed", said]);
    bench.run(&["train", "--resume", "run", "--set", said]).ok();
    assert_eq!(steps(&run), [0, 1, 2, 3, 4, 5]);
    // It was said once.
    bench.run(&["train", "--resume", "run"]).ok();
}

fn start(bench: &Bench, args: &[&str]) -> Child {
    let mut command = bench.command(args);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_for_steps(run: &Path, count: usize) {
    let begin = Instant::now();
    let log = run.join("metrics.jsonl");
    while std::fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < count {
        assert!(begin.elapsed() < Duration::from_secs(120), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Another process is refused while a run is written; a process that was killed does not stand in the way.
#[cfg(unix)]
#[test]
fn a_run_has_one_writer_and_a_dead_one_is_none() {
    let bench = Bench::new();
    let long = ["steps=60", "checkpoint.every=5"];
    bench.train("whole", &long).ok();
    let mut args = vec!["train", "--config", "tiny.toml", "--out", "run"];
    args.extend(long.iter().flat_map(|text| ["--set", text]));
    let mut child = start(&bench, &args);
    let run = bench.path("run");
    wait_for_steps(&run, 6);
    // Stopped, so that it cannot end before it is asked about.
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    };
    signal("-STOP");
    let owner = format!("process {}", child.id());
    bench.run(&["train", "--resume", "run"]).refused(&["is being written by", &owner]);
    let over = [&args[..], &["--overwrite"]].concat();
    bench.run(&over).refused(&["is being written by", &owner]);
    // Readers need no lock.
    bench.run(&["eval", "--run", "run", "--limit", "2"]).ok();
    signal("-KILL");
    child.wait().unwrap();
    assert!(run.join("run.lock").is_file());
    let resumed = bench.run(&["train", "--resume", "run"]);
    for words in ["run.lock", &owner, "no longer runs"] {
        assert!(resumed.stderr.contains(words), "no {words:?} in {}", resumed.stderr);
    }
    resumed.ok();
    assert!(!run.join("run.lock").exists());
    assert_eq!(metrics(&run), metrics(&bench.path("whole")));
}

/// Killed wherever chance has it, and resumed: every step is there once, as in a run that nothing happened to.
#[cfg(unix)]
#[test]
fn a_run_that_is_killed_again_and_again_is_the_whole_run() {
    let bench = Bench::new();
    let long = ["steps=40", "checkpoint.every=3", "checkpoint.keep=1"];
    bench.train("whole", &long).ok();
    let mut args = vec!["train", "--config", "tiny.toml", "--out", "run"];
    args.extend(long.iter().flat_map(|text| ["--set", text]));
    let run = bench.path("run");
    for count in [4, 11, 19, 30] {
        let mut child = start(&bench, &args);
        wait_for_steps(&run, count);
        child.kill().unwrap();
        child.wait().unwrap();
        args = vec!["train", "--resume", "run"];
    }
    let ended = Ran::of(bench.command(&args).output().unwrap());
    ended.ok();
    assert_eq!(metrics(&run), metrics(&bench.path("whole")));
    let left: Vec<_> = std::fs::read_dir(run.join("checkpoints")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}
