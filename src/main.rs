//! Entry point: arguments to `cli`, exit code to the system; chooses the allocator.

use std::process::ExitCode;

use rustls::crypto::ring;

// Settings are compiled in from `.cargo/config.toml`.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // Before any TLS: without a default provider rustls panics at the first handshake.
    ring::default_provider()
        .install_default()
        .expect("no other code installs a provider before main");
    sidestream::cli::main(std::env::args_os())
}
