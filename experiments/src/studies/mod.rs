//! All studies.

mod fig_tradeoff;
mod table_ablation;

use crate::study::Study;

/// All studies, in the order of `list`.
pub const STUDIES: &[&Study] = &[&table_ablation::STUDY, &fig_tradeoff::STUDY];

/// The study of that name.
///
/// # Errors
/// If there is none; names those there are.
pub fn find(name: &str) -> anyhow::Result<&'static Study> {
    STUDIES.iter().copied().find(|s| s.name == name).ok_or_else(|| {
        let known: Vec<_> = STUDIES.iter().map(|s| s.name).collect();
        anyhow::anyhow!("no study is called {name:?}; there are: {}", known.join(", "))
    })
}
