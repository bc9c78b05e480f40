//! A part of every kind that another crate can bring, registered by name; `train.toml` names them all.
//!
//! | module | part | its name in configurations |
//! |---|---|---|
//! | [`centre`] | pruner | `pruning.pruner.name` |
//! | [`plateau`] | schedule of fast and slow steps | `mode.schedule` |
//! | [`view_gap`] | objective | `objective.name` |
//! | [`tokens_saved`] | metric | `metrics` |
//! | [`patch_tower`] | vision tower | `model.vision.kind` |
//! | [`pixel_shuffle`] | projector | `model.mm_projector_type.kind` |
//! | [`squares`] | data source | `data.train.source` |

pub mod centre;
pub mod patch_tower;
pub mod pixel_shuffle;
pub mod plateau;
pub mod squares;
pub mod tokens_saved;
pub mod view_gap;

use dualspeed::prelude::*;

/// The parts of this crate.
pub struct Outside;

impl Extensions for Outside {
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry.with("centre", |spec| Ok(Box::new(centre::Centre::new(spec)?)))
    }

    fn schedules(registry: ScheduleRegistry) -> ScheduleRegistry {
        registry.with("plateau", |spec| Ok(Box::new(plateau::Plateau::new(spec)?)))
    }

    fn objectives<B: Backend>(registry: ObjectiveRegistry<B>) -> ObjectiveRegistry<B> {
        registry.with("view_gap", |spec| Ok(Box::new(view_gap::ViewGap::new(spec)?)))
    }

    fn metrics(registry: MetricRegistry) -> MetricRegistry {
        registry.with("tokens_saved", |()| Ok(Box::new(tokens_saved::TokensSaved)))
    }

    fn parts<B: AutodiffBackend>(parts: Parts) -> Parts {
        Parts {
            towers: parts.towers.with::<B, _>("patch_tower", patch_tower::PatchTower::new),
            projectors: parts
                .projectors
                .with::<B, _>("pixel_shuffle", pixel_shuffle::PixelShuffle::new),
        }
    }

    fn sources(registry: SourceRegistry) -> SourceRegistry {
        registry.with("squares", |spec| Ok(Box::new(squares::squares(spec)?)))
    }
}
