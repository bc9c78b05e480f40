//! The kernels in `kernels/*.cu`: the modules that they are compiled to, and the options for it.
//!
//! `scripts/compile_kernels.py` has the same list.

/// A file of kernels.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

/// The module of a name: the prelude, the other files, and the file of that name.
macro_rules! source {
    ($name:literal $(, $file:literal)*) => {
        Source {
            name: $name,
            text: concat!(
                include_str!("kernels/prelude.cu"),
                $(include_str!(concat!("kernels/", $file, ".cu")),)*
                include_str!(concat!("kernels/", $name, ".cu"))
            ),
        }
    };
}

pub(super) static ADAMW: Source = source!("adamw");
pub(super) static DROPOUT: Source = source!("dropout");
pub(super) static ELEMENTWISE: Source = source!("elementwise");
pub(super) static LOSSES: Source = source!("losses");
pub(super) static POINTS: Source = source!("points");
pub(super) static SELECT: Source = source!("select");
/// Attention for heads of any width, in f32 too.
pub(super) static ATTENTION_ANY: Source = source!("attention_any");
/// Attention on tensor cores.
static ATTENTION: Source = source!("attention");
/// Attention on tensor cores for short sequences.
static ATTENTION_WHOLE: Source = source!("attention_whole", "attention");
/// The kernels of [`ATTENTION`] on the warpgroup products of Hopper.
static ATTENTION_SM90: Source = source!("attention_sm90", "attention");

/// Head dims of the kernels on tensor cores.
pub(super) const FLASH_DIMS: [usize; 4] = [64, 80, 96, 128];
/// Those with a version for Hopper.
const HOPPER_DIMS: [usize; 2] = [64, 128];

/// The attention kernels for a head dim of [`FLASH_DIMS`], and the options they are compiled with.
pub(super) fn attention(arch: &str, d: usize) -> (&'static Source, String) {
    match arch == "sm_90a" && HOPPER_DIMS.contains(&d) {
        true => (&ATTENTION_SM90, format!("-DHEAD_DIM={d} -DPARTS_ONLY")),
        false => (&ATTENTION, format!("-DHEAD_DIM={d}")),
    }
}

/// The attention kernels for short sequences of a head dim of [`FLASH_DIMS`], and their options.
pub(super) fn attention_whole(d: usize) -> (&'static Source, String) {
    (&ATTENTION_WHOLE, format!("-DHEAD_DIM={d} -DPARTS_ONLY"))
}

/// What a training step wants: attention for the head dims of the decoder and of the vision tower, norms, activations and
/// losses.
pub(super) fn of_a_step(arch: &str) -> Vec<(&'static Source, String)> {
    let attention = [attention(arch, 128), attention(arch, 64), attention_whole(128)];
    let others = [&ELEMENTWISE, &LOSSES].map(|source| (source, String::new()));
    attention.into_iter().chain(others).collect()
}
