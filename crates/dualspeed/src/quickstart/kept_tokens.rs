//! Pictures of the visual tokens that pruners keep in a trained model.

use std::path::Path;

use dualspeed_model::PrunerSpec;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::TrainConfig;

use crate::experiment::test_source;
use crate::extensions::{Extensions, parts, registry};
use crate::patch_contributions::{PruningPrompt, VisualEncoder, patch_contributions};
use crate::report::strip;
use crate::run_dir;

/// A PNG of test pictures: as they are, and with what pruners keep in the model that `run` trained.
///
/// # Errors
/// If the run cannot be loaded, or a pruner does not fit its model.
pub(super) fn kept_tokens<B: AutodiffBackend, E: Extensions>(
    run: &Path,
    config: &TrainConfig,
    device: &B::Device,
) -> anyhow::Result<Vec<u8>> {
    const PICTURES: usize = 6;
    const SIDE: u32 = 168;
    let model = run_dir::load_model::<B::InnerBackend>(run, &parts::<B, E>(), device)?;
    let source = test_source(config, PICTURES)?;
    let originals: Vec<_> =
        (0..PICTURES).map(|index| dualspeed_data::render(&source.scene(index))).collect();
    let grid = config.model.visual_grid();
    let keep = config.keep_count(config.model.num_visual_tokens());
    let mut rows =
        vec![originals.iter().map(|picture| strip::scaled(picture, SIDE)).collect::<Vec<_>>()];
    for name in shown_pruners(config) {
        let pruner = registry::<B::InnerBackend, E>(device).build(&PrunerSpec::new(name))?;
        // What drops tokens inside the decoder has nothing to show before it.
        if pruner.layer_drop(keep).is_some() {
            continue;
        }
        let row = originals.iter().map(|picture| {
            let patches = patch_contributions(
                &*pruner,
                &VisualEncoder::Llava(&model),
                &source.processor().process(picture),
                &PruningPrompt::default(),
                keep,
                config.seed,
                device,
            )?;
            Ok(strip::shaded(picture, grid, &patches.shares, SIDE))
        });
        rows.push(row.collect::<anyhow::Result<Vec<_>>>()?);
    }
    Ok(strip::png(&strip::contact_sheet(&rows))?)
}

/// The pruners whose kept tokens are drawn: the recipe's own, one guided by attention, and a control.
pub(super) fn shown_pruners(config: &TrainConfig) -> Vec<String> {
    let mut names = vec![config.pruner().name];
    for name in ["fastervlm", "random"] {
        if !names.iter().any(|shown| shown == name) {
            names.push(name.to_string());
        }
    }
    names
}
