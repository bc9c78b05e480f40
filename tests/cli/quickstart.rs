//! The quickstart's files.

use serde_json::Value;

use crate::support::{Bench, steps};

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
