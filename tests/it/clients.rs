//! The fetch-based client, tested by the test runner of Node.

use std::path::Path;
use std::process::Command;

#[test]
fn the_fetch_client_reconnects_resumes_and_stops_as_documented() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = root.join("tests/clients/fetch-client.test.mjs");
    let output = Command::new("node")
        .arg("--test")
        .arg(tests)
        .output()
        .expect("this test needs Node 18 or newer");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}
