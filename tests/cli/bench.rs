//! Benchmarks: rows, tables and plots.

use serde_json::Value;
#[cfg(feature = "ndarray")]
use serde_json::json;

use crate::support::Bench;

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
