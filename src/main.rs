//! argv -> cli -> exit code.

use std::process::ExitCode;

use rustls::crypto::ring;

fn main() -> ExitCode {
    // Before anything speaks TLS: rustls panics at the first handshake when it has to guess its provider.
    ring::default_provider().install_default().expect("nobody installs a provider before main");
    sidestream::cli::main(std::env::args_os())
}
