//! Sizes of runs.

use clap::ValueEnum;

/// How large the runs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// About a minute per arm on two CPU cores: enough to see the order, not the last percent.
    Smoke,
    /// The quickstart's size.
    Quickstart,
}

impl Scale {
    /// Overrides on the quickstart's recipe.
    pub fn overrides(self) -> &'static [&'static str] {
        match self {
            Scale::Smoke => &[
                "steps=1600",
                "data.train.samples=6000",
                "model.text.hidden_size=64",
                "model.text.num_hidden_layers=2",
                "model.text.num_attention_heads=2",
                "model.text.intermediate_size=176",
                "optim.lr=2e-3",
            ],
            Scale::Quickstart => &[],
        }
    }

    /// Number of test scenes.
    pub fn test_scenes(self) -> usize {
        match self {
            Scale::Smoke => 256,
            Scale::Quickstart => dualspeed::quickstart::TEST_SCENES,
        }
    }

    /// The name on the command line and of the directory.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Smoke => "smoke",
            Scale::Quickstart => "quickstart",
        }
    }
}
