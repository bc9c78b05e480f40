//! The whole `dualspeed` program with the parts of this crate.

fn main() -> std::process::ExitCode {
    dualspeed::cli::main_with::<outside::Outside>()
}
