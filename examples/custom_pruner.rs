//! A pruner of your own, known by name to the whole command line:
//! `cargo run --release --example custom_pruner -- prune --image cat.png --pruner largest_norm --keep 14 --out kept.png`

use dualspeed::prelude::*;

/// Keeps the visual tokens of largest Euclidean norm.
#[derive(Debug)]
struct LargestNorm;

impl<B: Backend> Pruner<B> for LargestNorm {
    fn name(&self) -> &str {
        "largest_norm"
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>, // projected: [images, n, d]
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let norms = visual.projected.clone().powi_scalar(2).sum_dim(2).squeeze_dim(2); // [images, n]
        Ok(Kept::Select(top_indices(norms, keep))) // [images, keep]
    }
}

struct Mine;

impl Extensions for Mine {
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry.with("largest_norm", |_| Ok(Box::new(LargestNorm)))
    }
}

fn main() -> std::process::ExitCode {
    dualspeed::cli::main_with::<Mine>()
}
