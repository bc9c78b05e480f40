//! Pruners as the command line names them.

use dualspeed_model::{PrunerSpec, Registry};
use dualspeed_ops::Backend;

/// Pruners by name and options, `visionzip:contextual=10`; `all` among the names stands for every registered pruner but
/// `none`.
///
/// # Errors
/// If a specification is malformed. Whether a pruner of that name exists is known when it is built.
pub(super) fn parse_pruner_specs<B: Backend>(
    names: &[String],
    registry: &Registry<B>,
) -> anyhow::Result<Vec<PrunerSpec>> {
    if names.iter().any(|name| name == "all") {
        let all = registry.names().into_iter().filter(|name| name != "none");
        return Ok(all.map(PrunerSpec::new).collect());
    }
    Ok(names.iter().map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
}
