//! The kinds of inference that are compared.

use dualspeed_model::View;
use dualspeed_train::{EvalView, TrainConfig};

/// The three views of every table: `full` (all visual tokens), `pruned` (as trained), `pruned_no_isolator`.
pub fn evaluation_views(config: &TrainConfig) -> Vec<EvalView> {
    let keep = config.keep_count(config.model.num_visual_tokens());
    vec![
        EvalView::new("full", View::Full),
        EvalView::new("pruned", View::Pruned { keep, isolator: config.model.isolator_length > 0 }),
        EvalView::new("pruned_no_isolator", View::Pruned { keep, isolator: false }),
    ]
}
