//! The program in a directory of its own, and what it left there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;

/// A model and data set small enough for the dev profile.
pub const TINY: &str = r#"
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
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// Succeeded; its standard output.
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{}", self.stderr);
        self.stdout
    }

    /// Failed with exit code 1 and one error that contains all of `parts`.
    pub fn refused(self, parts: &[&str]) {
        assert_eq!(self.code, Some(1), "stdout: {} stderr: {}", self.stdout, self.stderr);
        assert!(self.stderr.contains("error: "), "{}", self.stderr);
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in: {}", self.stderr);
        }
    }
}

/// A directory with the program's command line in it.
pub struct Bench {
    pub dir: TempDir,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tiny.toml"), TINY).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dualspeed"));
        command.current_dir(self.dir.path()).args(args).arg("--quiet").stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Ran {
        Ran::of(self.command(args).output().unwrap())
    }

    /// `train --config tiny.toml --out OUT` with overrides.
    pub fn train(&self, out: &str, overrides: &[&str]) -> Ran {
        let mut args = vec!["train", "--config", "tiny.toml", "--out", out];
        args.extend(overrides.iter().flat_map(|text| ["--set", text]));
        self.run(&args)
    }

    /// A picture of two discs, as PNG.
    pub fn picture(&self, name: &str) {
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
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let without_time = |line: &str| {
        let mut record: Value = serde_json::from_str(line).unwrap();
        assert!(record.as_object_mut().unwrap().remove("time").is_some(), "no time in {line}");
        record
    };
    text.lines().map(without_time).collect()
}

pub fn steps(run: &Path) -> Vec<u64> {
    metrics(run).iter().map(|record| record["step"].as_u64().unwrap()).collect()
}
