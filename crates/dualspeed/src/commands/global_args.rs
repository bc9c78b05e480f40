//! Arguments that every command takes.

use clap::Args;

use crate::backend::BackendChoice;

// No doc comment here: clap would take it for the program's own.
#[derive(Debug, Args)]
pub(crate) struct GlobalArgs {
    /// The backend to compute on.
    #[arg(long, global = true, value_enum, default_value_t = BackendChoice::default())]
    pub(crate) backend: BackendChoice,
    /// The device's index, where the backend has several.
    #[arg(long, global = true, default_value_t = 0)]
    pub(crate) device: usize,
    /// Say less: no progress bars.
    #[arg(long, short, global = true)]
    pub(crate) quiet: bool,
}
