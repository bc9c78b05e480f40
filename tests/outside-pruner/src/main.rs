//! The whole `dualspeed` program with one more pruner.

mod centre;

use dualspeed::prelude::*;

struct Mine;

impl Extensions for Mine {
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry.with("centre", |spec| Ok(Box::new(centre::Centre::new(spec)?)))
    }
}

fn main() -> std::process::ExitCode {
    dualspeed::cli::main_with::<Mine>()
}
