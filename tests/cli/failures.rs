//! Signals, output that nobody takes, exports that are cut off.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Bench, Ran, steps};

/// Starts a run that would take long, and waits until it has done two steps.
fn started(bench: &Bench, mut command: Command, out: &str) -> Child {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = bench.path(out).join("metrics.jsonl");
    let begin = Instant::now();
    while fs::read_to_string(&log).map_or(0, |text| text.lines().count()) < 2 {
        assert!(begin.elapsed() < Duration::from_secs(60), "the run does not start");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

fn send(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

#[test]
fn every_signal_that_asks_a_run_to_end_leaves_a_checkpoint() {
    let bench = Bench::new();
    for (signal, code) in [("INT", 130), ("TERM", 143), ("HUP", 129)] {
        // Tests that run under nohup hand that on.
        if signal == "HUP" && hangups_are_ignored() {
            continue;
        }
        let args = ["train", "--config", "tiny.toml", "--out", signal, "--set", "steps=100000"];
        let child = started(&bench, bench.command(&args), signal);
        send(&child, signal);
        let ran = Ran::of(child.wait_with_output().unwrap());
        assert_eq!(ran.code, Some(code), "{signal}: {}", ran.stderr);
        assert!(ran.stderr.contains(&format!("train --resume {signal}")), "{}", ran.stderr);
        let reached = steps(&bench.path(signal)).len();
        let checkpoint = format!("{signal}/checkpoints/step-{reached:08}/state.json");
        assert!(bench.path(&checkpoint).is_file(), "no {checkpoint}");
    }
}

/// Whether this process, and so those that it starts, ignores SIGHUP.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    ignored.is_some_and(|bits| bits & 1 == 1)
}

/// `nohup` is there so that a terminal may be closed.
#[test]
fn a_hangup_that_is_ignored_stays_ignored() {
    let bench = Bench::new();
    let args = ["train", "--config", "tiny.toml", "--out", "run", "--set", "steps=40"];
    let program = bench.command(&args);
    let mut command = Command::new("sh");
    command.current_dir(bench.dir.path()).args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    command.arg(program.get_program()).args(program.get_args()).stdin(Stdio::null());
    let child = started(&bench, command, "run");
    send(&child, "HUP");
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(steps(&bench.path("run")).len(), 40);
}

/// Runs a command whose standard output, or both outputs, nobody reads.
fn unread(bench: &Bench, args: &[&str], both: bool) -> (Option<i32>, String) {
    let mut command = bench.command(args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    if both {
        drop(child.stderr.take());
    }
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn output_that_nobody_takes_is_no_failure() {
    let bench = Bench::new();
    bench.train("run", &[]).ok();
    bench.picture("discs.png");
    let lines = "{\"image\": \"discs.png\", \"prompt\": \"how many ?\"}\n".repeat(3);
    fs::write(bench.path("ask.jsonl"), lines).unwrap();
    let commands: [&[&str]; 11] = [
        &["inspect", "run"],
        &["inspect", "run", "--json"],
        &["quickstart", "--print-config"],
        &["assets", "list"],
        &["eval", "--run", "run", "--limit", "2"],
        &["eval", "--run", "run", "--limit", "2", "--json"],
        &["generate", "--run", "run", "--prompt", "how many ?", "--max-new-tokens", "2"],
        &["generate", "--run", "run", "--batch", "ask.jsonl", "--max-new-tokens", "2"],
        &["train", "--resume", "run"],
        &["export", "--run", "run", "--format", "hf", "--out", "hf", "--overwrite"],
        &["--help"],
    ];
    for args in commands {
        for both in [false, true] {
            let (code, stderr) = unread(&bench, args, both);
            assert_eq!(code, Some(0), "{args:?}, both {both}: {stderr}");
            assert!(!stderr.contains("panicked"), "{args:?}: {stderr}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_behind_the_output_costs_only_what_was_to_be_in_it() {
    let bench = Bench::new();
    let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str], both: bool| {
        let mut command = bench.command(args);
        command.stdout(full()).stderr(if both { Stdio::from(full()) } else { Stdio::piped() });
        let output = command.spawn().unwrap().wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for both in [false, true] {
        let out = if both { "both" } else { "run" };
        let train = ["train", "--config", "tiny.toml", "--out", out];
        assert_eq!(run(&train, both).0, Some(0));
        assert_eq!(run(&["train", "--resume", out], both).0, Some(0));
        let export = ["export", "--run", out, "--format", "hf", "--overwrite", "--out", "hf"];
        assert_eq!(run(&export, both).0, Some(0));
        // What is printed is all there is: half of it must not look like all.
        let (code, stderr) = run(&["inspect", out, "--json"], both);
        assert_eq!(code, Some(1), "{stderr}");
        assert!(both || stderr.contains("cannot write to standard output"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// The files of a directory, by path.
fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            let inside = contents(&entry.path());
            all.extend(inside.into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)));
        } else {
            all.insert(name, fs::read(entry.path()).unwrap());
        }
    }
    all
}

#[test]
fn an_export_is_the_old_model_or_the_new_one() {
    let bench = Bench::new();
    bench.train("one", &[]).ok();
    bench.train("two", &["seed=1"]).ok();
    let export = |run: &str, out: &str, more: &[&str]| {
        let args = ["export", "--run", run, "--format", "hf", "--out", out];
        bench.command(&[&args[..], more].concat())
    };
    let done = |mut command: Command| Ran::of(command.output().unwrap());
    let shards = ["--shard-size", "0.0001"];
    done(export("one", "old", &shards)).ok();
    done(export("two", "new", &[])).ok();
    let (old, new) = (contents(&bench.path("old")), contents(&bench.path("new")));
    assert!(old.keys().filter(|name| name.contains("-of-")).count() > 3);

    // One file over many: no stale index, no stale shard; what others put there stays.
    done(export("one", "out", &shards)).ok();
    assert_eq!(contents(&bench.path("out")), old);
    fs::write(bench.path("out/README.md"), "mine").unwrap();
    done(export("two", "out", &[])).refused(&["out", "--overwrite"]);
    done(export("two", "out", &["--overwrite"])).ok();
    let mut found = contents(&bench.path("out"));
    assert_eq!(found.remove("README.md"), Some(b"mine".to_vec()));
    assert_eq!(found, new);

    // Killed at any time.
    let begin = Instant::now();
    done(export("one", "out", &["--overwrite", shards[0], shards[1]])).ok();
    let whole = begin.elapsed();
    fs::remove_file(bench.path("out/README.md")).unwrap();
    let mut seen = [0, 0];
    for round in 0..12 {
        let (run, more) = if round % 2 == 0 { ("two", &[][..]) } else { ("one", &shards[..]) };
        let mut command = export(run, "out", &[&["--overwrite"], more].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(whole.mul_f64(0.4 + 0.07 * f64::from(round)));
        let _ = child.kill();
        child.wait().unwrap();
        let found = contents(&bench.path("out"));
        assert!(found == old || found == new, "round {round}: {:?}", found.keys());
        seen[usize::from(found == new)] += 1;
    }
    assert!(seen[0] > 0 || seen[1] > 0);

    // A model that somebody else made is left alone.
    fs::create_dir(bench.path("theirs")).unwrap();
    fs::write(bench.path("theirs/model.safetensors"), "theirs").unwrap();
    done(export("two", "theirs", &["--overwrite"])).refused(&["theirs", "was not written by"]);
    assert_eq!(contents(&bench.path("theirs")).len(), 1);
}
