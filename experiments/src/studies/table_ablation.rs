//! The paper's main ablation: what each part of DualSpeed contributes.

use crate::study::{Arm, ReportKind, Study};

/// NaivePrune, + fast-slow, + isolator, + self-distillation (= DualSpeed).
pub const STUDY: Study = Study {
    name: "table_ablation",
    source: "arXiv 2602.03815, ablation of the components",
    question: "Which part of DualSpeed restores full-token inference after pruned training?",
    base: &[],
    reference: "baseline",
    arms: &[
        Arm {
            name: "baseline",
            overrides: &["mode.schedule=\"always_slow\"", "distill.lambda=0.0"],
        },
        Arm {
            name: "naive_prune",
            overrides: &["mode.schedule=\"always_fast\"", "model.isolator_length=0"],
        },
        Arm { name: "fast_slow", overrides: &["model.isolator_length=0", "distill.lambda=0.0"] },
        Arm { name: "fast_slow_isolator", overrides: &["distill.lambda=0.0"] },
        Arm { name: "dualspeed", overrides: &[] },
    ],
    report: ReportKind::Table,
};
