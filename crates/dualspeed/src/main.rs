//! The `dualspeed` program: see [`dualspeed::cli`].

fn main() -> std::process::ExitCode {
    dualspeed::cli::main_with::<()>()
}
