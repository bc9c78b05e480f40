//! One file per subcommand: its arguments, and what it does with them.

pub(crate) mod assemble;
pub(crate) mod assets;
pub(crate) mod bench;
mod checkpoint_args;
pub(crate) mod data;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod generate;
pub(crate) mod global_args;
mod image_args;
pub(crate) mod inspect;
mod overwrite;
pub(crate) mod prune;
mod pruner_specs;
pub(crate) mod quickstart;
pub(crate) mod train;
pub(crate) mod train_tower;
