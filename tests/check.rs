//! `sidestream check` as a shell sees it: what it prints, where, and its exit code.

use std::process::{Command, Output};

fn check(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command.arg("check").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR"));
    command.env("NATS_PASSWORD", "hunter2").output().expect("the program starts")
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
    assert!(told.contains(" --> tests/fixtures/config/wrong.yaml:13:16\n"), "{told}");
    assert!(told.ends_with(" problems\n") && !told.contains("hunter2"), "{told}");
}

#[test]
fn a_file_that_is_not_there_is_a_problem_too() {
    let output = check(&["--config", "nowhere.yaml"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).starts_with("error: there is no such file\n  --> nowhere.yaml\n"));
}
