//! The program `namegate-cni`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    namegate_cni::run()
}
