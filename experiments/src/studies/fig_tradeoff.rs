//! Accuracy against cost for a few pruning ratios p and slow-mode ratios r.

use crate::study::{Arm, ReportKind, Study};

/// Around the published operating point p = 0.9, r = 0.1.
pub const STUDY: Study = Study {
    name: "fig_tradeoff",
    source: "arXiv 2602.03815, sensitivity to p and r",
    question: "How do accuracy and training time move with the pruning ratio and the slow-mode ratio?",
    base: &[],
    reference: "baseline",
    arms: &[
        Arm {
            name: "baseline",
            overrides: &["mode.schedule=\"always_slow\"", "distill.lambda=0.0"],
        },
        Arm { name: "p0.50_r0.1", overrides: &["pruning.ratio=0.5"] },
        Arm { name: "p0.75_r0.1", overrides: &["pruning.ratio=0.75"] },
        Arm { name: "p0.90_r0.1", overrides: &[] },
        Arm { name: "p0.95_r0.1", overrides: &["pruning.ratio=0.95"] },
        Arm { name: "p0.90_r0.02", overrides: &["mode.slow_mode_ratio=0.02"] },
        Arm { name: "p0.90_r0.3", overrides: &["mode.slow_mode_ratio=0.3"] },
    ],
    report: ReportKind::Tradeoff,
};
