//! `sidestream check` in a shell: its output and its exit code.

use std::process::{Command, Output};

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command
        .arg("check")
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
        .env("NATS_PASSWORD", "hunter2")
        .output()
        .expect("the program starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("what is printed is UTF-8")
}

#[test]
fn the_reference_file_has_no_problems_and_is_the_default() {
    let output = check(&[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "");
    let expected = "\
sidecar.yaml: no problems
  listens on 0.0.0.0:8080
  listens on 0.0.0.0:8443 (TLS)
  admin port on 0.0.0.0:9090 (TLS): /connections and /config are open; `admin.token` protects them
  serves /events/orders/{id} from ORDERS, core NATS
  serves /events from ORDERS
";
    assert_eq!(text(&output.stdout), expected);
}

#[test]
fn every_problem_goes_to_standard_error_and_the_exit_code_is_64() {
    let output = check(&["--config", "tests/fixtures/config/wrong.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    assert_eq!(text(&output.stdout), "");
    let told = text(&output.stderr);
    assert!(
        told.contains(" --> tests/fixtures/config/wrong.yaml:13:16\n"),
        "{told}"
    );
    assert!(
        told.ends_with(" problems\n") && !told.contains("hunter2"),
        "{told}"
    );
}

#[test]
fn a_missing_file_is_a_problem() {
    let output = check(&["--config", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    let printed = text(&output.stderr);
    assert!(
        printed.starts_with("error: file not found\n--> nowhere.yaml\n"),
        "{printed}"
    );
}

/// Runs the program in a shell, to redirect its output to a full disk or a pipe without a reader.
fn shell(script: &str) -> Output {
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(script)
        .arg("bash")
        .arg(env!("CARGO_BIN_EXE_sidestream"));
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("bash starts")
}

#[test]
fn output_that_cannot_be_written_is_one_message_and_a_failure() {
    for command in [
        "check",
        "--help",
        "inject -f tests/fixtures/inject/pod-plain.yaml -q",
    ] {
        let output = shell(&format!("\"$1\" {command} > /dev/full"));
        let message =
            "sidestream: cannot write to standard output: No space left on device (os error 28)\n";
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(70), message),
            "{command}"
        );
    }
}

#[test]
fn standard_error_that_cannot_be_written_changes_no_exit_code() {
    for (command, code) in [
        ("check --config nowhere.yaml", 64),
        ("run --config nowhere.yaml", 64),
        ("inject -f nowhere.yaml", 64),
        ("drain --config nowhere.yaml", 64),
        ("nonsense", 64),
    ] {
        let closed =
            format!("set -o pipefail; {{ sleep 0.1; \"$1\" {command}; }} 2>&1 >/dev/null | true");
        assert_eq!(
            shell(&closed).status.code(),
            Some(code),
            "{command} 2>| true"
        );
        let full = shell(&format!("\"$1\" {command} 2> /dev/full"));
        assert_eq!(full.status.code(), Some(code), "{command} 2> /dev/full");
    }
}

#[test]
fn a_closed_pipe_ends_a_command_without_a_panic() {
    for command in ["check", "--help"] {
        let output = shell(&format!(
            "set -o pipefail; {{ sleep 0.1; \"$1\" {command}; }} | true"
        ));
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(0), ""),
            "{command}"
        );
    }
    let output = shell(
        "set -o pipefail; { sleep 0.1; \"$1\" inject -q -f tests/fixtures/inject/pod-plain.yaml; } | true",
    );
    assert_eq!(
        output.status.code(),
        Some(70),
        "half of the manifests is not all of them"
    );
    assert!(
        !text(&output.stderr).contains("panicked"),
        "{}",
        text(&output.stderr)
    );
}
