//! The client library for browsers and Node, `clients/js`.

mod fallback;
mod finite;
mod two_pods;

use std::path::Path;
use std::process::Command;

#[test]
fn the_client_library_passes_its_own_tests() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/js");
    assert!(
        folder.join("dist/index.js").exists(),
        "the client library is not built: run `make tools`"
    );
    let output = Command::new("npm")
        .args(["test", "--silent"])
        .current_dir(folder)
        .output()
        .expect("this test needs Node 20 or newer");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
