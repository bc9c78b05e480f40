//! The program as a user runs it: exit codes, messages, and what is on disk afterwards.

mod bench;
mod data;
#[cfg(unix)]
mod failures;
mod hub;
mod integrity;
mod pruners;
mod published;
mod quickstart;
mod support;
mod train;

use support::Bench;

#[test]
fn help_of_every_command_names_its_flags() {
    let bench = Bench::new();
    let commands: &[(&str, &[&str])] = &[
        ("quickstart", &["--seeds", "--out", "--set", "--overwrite", "--print-config"]),
        (
            "train",
            &[
                "--config",
                "--set",
                "--resume",
                "--init-from",
                "--vision-tower",
                "--adapter",
                "--part",
            ],
        ),
        (
            "eval",
            &[
                "--run",
                "--model",
                "--config",
                "--vision-tower",
                "--limit",
                "--json",
                "--pruner",
                "--keep",
            ],
        ),
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
