//! Paths of the checkout: its root, its files, the binaries of cargo and the tools in `.tools/`.

use std::path::{Path, PathBuf};

/// Root of the checkout.
pub fn root() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = manifest.ancestors().nth(2);
    root.expect("the crate is two folders below the root")
}

/// Text of a file of the checkout.
pub fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Binary of this workspace, built for the profile of the running test.
///
/// Cargo sets `CARGO_BIN_EXE_<name>` when it runs an integration test or a benchmark of the package
/// that owns the binary, and builds the binary first. A test that is started by hand, or that
/// belongs to another package, uses `target/<profile>/<name>`, one folder above its own executable.
pub fn binary(name: &str) -> PathBuf {
    let binary = match std::env::var_os(format!("CARGO_BIN_EXE_{name}")) {
        Some(path) => PathBuf::from(path),
        None => beside_the_test(name),
    };
    assert!(
        binary.exists(),
        "there is no binary {}: run `cargo build --bin {name}`",
        binary.display()
    );
    binary
}

/// Program that `scripts/tools.sh` has installed into `.tools/<folder><version>/`; the newest
/// version of several.
pub fn tool(folder: &str, program: &str) -> PathBuf {
    let entries = std::fs::read_dir(root().join(".tools"))
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(folder))
        .map(|entry| entry.path().join(program))
        .filter(|program| program.exists())
        .collect();
    found.sort();
    found
        .pop()
        .unwrap_or_else(|| panic!("{program} is not installed: run `make tools`"))
}

/// `target/<profile>/<name>`: test executables are in `target/<profile>/deps/`.
fn beside_the_test(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2);
    profile
        .expect("a test executable is in target/<profile>/deps/")
        .join(name)
}
