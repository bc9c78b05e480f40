//! Parts of a model that other crates bring, by the names in its configuration.

use crate::projector::ProjectorRegistry;
use crate::vision::TowerRegistry;

/// Vision towers and projectors of other crates by name; a value, not global state.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Vision towers.
    pub towers: TowerRegistry,
    /// Projectors.
    pub projectors: ProjectorRegistry,
}
