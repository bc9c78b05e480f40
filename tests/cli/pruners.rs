//! Pruners on a picture, on given features, and side by side on one model.

use serde_json::{Value, json};

use crate::support::Bench;

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
    prune(".", "14", &[]).refused(&["a directory"]);
    prune("discs.png", "14", &["--max-pixels", "10"]).refused(&["discs.png", "--max-pixels"]);
    prune("discs.png", "14", &["--transparency", "pink"]).refused(&["pink", "drop", "white"]);
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
    let help = bench.run(&["prune", "--pruner", "help"]).ok();
    let line = |name: &str| {
        let found = help.lines().find(|line| line.split_whitespace().next() == Some(name));
        found.unwrap_or_else(|| panic!("no {name} in {help}")).to_owned()
    };
    assert!(line("visionzip").contains("contextual") && line("visionzip").contains("keys"));
    assert!(line("prumerge+").contains("adaptive, neighbours"), "{help}");
    assert!(line("dart").contains("no compat=official: it reads keys"), "{help}");
    bench.run(&["prune", "--pruner", "divprune"]).refused(&["--image", "--pruner help"]);
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
