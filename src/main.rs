//! argv -> cli -> exit code, and the allocator.

use std::process::ExitCode;

use rustls::crypto::ring;

// Its settings are built in: `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before anything speaks TLS: rustls panics at the first handshake when it has to guess its provider.
    ring::default_provider()
        .install_default()
        .expect("nobody installs a provider before main");
    sidestream::cli::main(std::env::args_os())
}
