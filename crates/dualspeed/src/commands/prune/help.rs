//! The pruners, and what each takes.

use dualspeed_model::Registry;
use dualspeed_ops::Backend;

use crate::output::print_line;

/// What follows the list.
const NOTES: &str = "\
Every pruner also takes scope=tile or scope=image, and compat=official where nothing else is said.
Options follow the name: --pruner visionzip:compat=official:contextual=10,random
Formulas, sources and departures from published code: docs/pruners.md";

/// Prints every pruner of the registry with its options and what it reads.
pub(super) fn run<B: Backend>(registry: &Registry<B>) -> anyhow::Result<()> {
    let names = registry.names();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    for name in names {
        let info = registry.info(&name)?;
        let mut parts = Vec::new();
        if !info.options.is_empty() {
            parts.push(format!("options: {}", info.options.join(", ")));
        }
        let reads: Vec<&str> = info.needs.names().collect();
        if !reads.is_empty() {
            parts.push(format!("reads: {}", reads.join(", ")));
        }
        if let Some(reason) = info.no_official {
            parts.push(format!("no compat=official: {reason}"));
        }
        print_line(format!("{name:<width$}  {}", parts.join("; ")).trim_end())?;
    }
    print_line(format_args!("\n{NOTES}"))
}
