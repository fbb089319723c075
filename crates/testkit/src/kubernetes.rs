//! Independent readers of manifests: schemas of Kubernetes, a JSON Patch engine, kubectl and helm.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

pub use crate::repository::{file, root};

/// Kubernetes versions that are tested: from the first with native sidecars to the newest.
pub const VERSIONS: [&str; 4] = ["1.29", "1.33", "1.35", "1.37"];

/// Runs `tests/kubernetes/check.py` once for all tasks, because its start takes most of the time.
pub fn ask(tasks: &[Value]) -> Vec<Value> {
    let python = root().join(".tools/kubernetes-1.37.0/bin/python");
    assert!(
        python.exists(),
        "the schemas of Kubernetes are not installed: run `make tools`"
    );
    let mut command = Command::new(python);
    command.arg(root().join("tests/kubernetes/check.py"));
    let output = with_input(&mut command, &json!(tasks).to_string());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Panics with all errors that the schemas find in these manifests, given as `(name, text)`.
pub fn assert_valid(manifests: &[(String, String)]) {
    assert!(!manifests.is_empty());
    let tasks: Vec<_> = manifests
        .iter()
        .map(|(_, text)| json!({ "valid": text, "versions": VERSIONS }))
        .collect();
    let mut wrong = Vec::new();
    for ((name, _), problems) in manifests.iter().zip(ask(&tasks)) {
        wrong.extend(
            problems
                .as_array()
                .unwrap()
                .iter()
                .map(|problem| format!("{name}: {problem}")),
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Documents of each text, parsed by PyYAML.
pub fn read(texts: &[String]) -> Vec<Vec<Value>> {
    let tasks: Vec<_> = texts.iter().map(|text| json!({ "read": text })).collect();
    ask(&tasks)
        .into_iter()
        .map(|documents| documents.as_array().unwrap().clone())
        .collect()
}

/// Runs a command with this text as standard input.
pub fn with_input(command: &mut Command, input: &str) -> Output {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // In a thread: otherwise each side could block on a full pipe that the other does not read.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

/// kubectl in `.tools/`.
pub fn kubectl() -> PathBuf {
    let kubectl = root().join(".tools/kubectl-1.37.1/bin/kubectl");
    assert!(
        kubectl.exists(),
        "kubectl is not installed: run `make tools`"
    );
    kubectl
}

/// helm: the environment variable `HELM`, the one in `.tools/`, or `helm` in `PATH` (on processors
/// without a wheel of it).
pub fn helm() -> PathBuf {
    let own = root().join(".tools/helm-4.3.1/bin/helm");
    let helm = std::env::var_os("HELM").map(PathBuf::from);
    let helm = helm.unwrap_or_else(|| if own.exists() { own } else { "helm".into() });
    let works = Command::new(&helm)
        .arg("version")
        .output()
        .is_ok_and(|output| output.status.success());
    assert!(
        works,
        "{} is not helm: run `make tools`, or set HELM",
        helm.display()
    );
    helm
}
