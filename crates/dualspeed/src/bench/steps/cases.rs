//! The steps that are measured.

use dualspeed_train::{Mode, Stage};

/// A kind of training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepCase {
    /// The name in tables and in `--case`.
    pub name: &'static str,
    /// The stage, which says what is trained.
    pub stage: Stage,
    /// Fast steps see pruned visual tokens, slow ones all.
    pub mode: Mode,
    /// Whether slow steps have self-distillation.
    pub distill: bool,
    /// Samples per step.
    pub batch: usize,
    /// Tiles per sample.
    pub tiles: usize,
    /// Text tokens per sample.
    pub text: usize,
    /// Whether the tower runs in the step; else its features come from the host's cache.
    pub tower: bool,
    /// Whether the tiles make one image with newlines (LLaVA-NeXT's `spatial_unpad`) instead of an image each (`flat`).
    pub unpad: bool,
}

/// A fast or a full step with cached features; the shape is `[samples, tiles per sample, text tokens per sample]`.
pub(in crate::bench) const fn step_case(
    name: &'static str,
    stage: Stage,
    mode: Mode,
    [batch, tiles, text]: [usize; 3],
) -> StepCase {
    StepCase { name, stage, mode, distill: false, batch, tiles, text, tower: false, unpad: false }
}

/// A fast or a full step with the tower in the step.
const fn with_tower(name: &'static str, stage: Stage, mode: Mode, shape: [usize; 3]) -> StepCase {
    StepCase { tower: true, ..step_case(name, stage, mode, shape) }
}

/// A slow step: full tokens, the fast view as the teacher, the tower for both.
const fn slow(name: &'static str, shape: [usize; 3]) -> StepCase {
    StepCase { distill: true, ..with_tower(name, Stage::Finetune, Mode::Slow, shape) }
}

/// The step of `case` with tiles that make one image.
const fn unpad(case: StepCase) -> StepCase {
    StepCase { unpad: true, ..case }
}

/// `[samples, tiles per sample, text tokens per sample]` of LLaVA-1.5's two stages and of LLaVA-NeXT.
const STAGE_1: [usize; 3] = [32, 1, 32];
pub(in crate::bench) const STAGE_2: [usize; 3] = [16, 1, 192];
const NEXT: [usize; 3] = [4, 5, 192];

/// The steps that are compared with PyTorch, then those whose ratios are DualSpeed's speed-up.
pub const CASES: [StepCase; 19] = [
    step_case("stage 1 full", Stage::Pretrain, Mode::Slow, STAGE_1),
    step_case("stage 1 fast", Stage::Pretrain, Mode::Fast, STAGE_1),
    step_case("stage 2 full", Stage::Finetune, Mode::Slow, STAGE_2),
    step_case("stage 2 fast", Stage::Finetune, Mode::Fast, STAGE_2),
    step_case("next full", Stage::Finetune, Mode::Slow, NEXT),
    step_case("next fast", Stage::Finetune, Mode::Fast, NEXT),
    with_tower("stage 1 full, tower", Stage::Pretrain, Mode::Slow, STAGE_1),
    with_tower("stage 1 fast, tower", Stage::Pretrain, Mode::Fast, STAGE_1),
    with_tower("stage 2 full, tower", Stage::Finetune, Mode::Slow, STAGE_2),
    with_tower("stage 2 fast, tower", Stage::Finetune, Mode::Fast, STAGE_2),
    slow("stage 2 slow, tower", STAGE_2),
    with_tower("next full, tower", Stage::Finetune, Mode::Slow, NEXT),
    with_tower("next fast, tower", Stage::Finetune, Mode::Fast, NEXT),
    slow("next slow, tower", NEXT),
    unpad(step_case("next unpad full", Stage::Finetune, Mode::Slow, NEXT)),
    unpad(step_case("next unpad fast", Stage::Finetune, Mode::Fast, NEXT)),
    unpad(with_tower("next unpad full, tower", Stage::Finetune, Mode::Slow, NEXT)),
    unpad(with_tower("next unpad fast, tower", Stage::Finetune, Mode::Fast, NEXT)),
    unpad(slow("next unpad slow, tower", NEXT)),
];
