//! Tests of `sidestream inject` and `uninject` with independent readers: kubectl, the schemas of
//! Kubernetes, and another JSON Patch engine.

#![allow(clippy::unwrap_used)] // a failure is the result

use std::process::{Command, Output};

use serde_json::{Value, json};
use sidestream_inject::{Defaults, review};
use testkit::kubernetes::{self, ask, assert_valid, file, with_input};

const BINARY: &str = env!("CARGO_BIN_EXE_sidestream");

/// Pods of every kind, each with the patch that the webhook answers.
const PODS: [&str; 4] = ["plain", "mesh", "old-cluster", "wrong"];

fn run(arguments: &[&str], input: &str) -> Output {
    with_input(
        Command::new(BINARY)
            .args(arguments)
            .current_dir(kubernetes::root()),
        input,
    )
}

/// Runs a command that must succeed.
fn change(command: &str, input: &str) -> String {
    let output = run(&[command], input);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn pod(name: &str) -> String {
    file(&format!("tests/fixtures/inject/pod-{name}.yaml"))
}

/// Patch of the webhook for a pod.
fn patch(pod: &Value) -> Value {
    let mut labelled = pod.clone();
    labelled["metadata"]["labels"]["sidestream.dev/inject"] = json!("true");
    let review = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "operation": "CREATE",
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "object": labelled,
        },
    });
    let answer = review::answer(review.to_string().as_bytes(), &Defaults::default()).unwrap();
    use base64::Engine as _;
    let patch = answer.body["response"]["patch"].as_str().unwrap();
    serde_json::from_slice(
        &base64::engine::general_purpose::STANDARD
            .decode(patch)
            .unwrap(),
    )
    .unwrap()
}

#[test]
fn webhook_patch_is_the_recorded_one_and_has_the_result_of_inject() {
    let texts: Vec<String> = PODS.iter().map(|name| pod(name)).collect();
    let pods = kubernetes::read(&texts);
    let mut tasks = Vec::new();
    for (name, documents) in PODS.iter().zip(&pods) {
        let mut pod = documents[0].clone();
        pod["metadata"]["labels"]["sidestream.dev/inject"] = json!("true");
        let path = kubernetes::root().join(format!("tests/fixtures/inject/pod-{name}.patch.json"));
        let patch = patch(&pod);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{patch:#}\n")).unwrap();
        }
        let recorded: Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap_or_default()).unwrap_or_default();
        assert!(
            recorded == patch,
            "pod-{name}.patch.json is another: UPDATE_GOLDEN=1 cargo test --test inject"
        );
        tasks.push(json!({ "patch": patch, "of": pod }));
    }
    // Only the webhook changes a pod with problems.
    for ((name, text), patched) in PODS.iter().zip(&texts).zip(ask(&tasks)).take(3) {
        let labelled = text.replacen(
            "metadata:\n",
            "metadata:\n  labels: {sidestream.dev/inject: \"true\"}\n",
            1,
        );
        let text = if text.contains("sidestream.dev/inject") {
            text
        } else {
            &labelled
        };
        let written = kubernetes::read(&[change("inject", text)]);
        assert_eq!(written[0][0], patched, "pod-{name}");
    }
}

#[test]
fn injected_manifests_are_valid_in_every_version() {
    let mut manifests = vec![(
        "workloads".to_owned(),
        change("inject", &file("tests/fixtures/inject/workloads.yaml")),
    )];
    manifests.extend(
        PODS[..3]
            .iter()
            .map(|name| ((*name).to_owned(), change("inject", &pod(name)))),
    );
    assert_valid(&manifests);
    let broken = pod("plain").replace("image:", "imag:");
    let problems = ask(&[json!({ "valid": broken, "versions": ["1.29"] })]);
    assert_eq!(
        problems[0].as_array().unwrap().len(),
        1,
        "what is wrong is seen: {problems:?}"
    );
}

#[test]
fn inject_is_idempotent_and_uninject_restores_the_manifest() {
    let names = ["workloads", "pod-plain", "pod-mesh", "pod-old-cluster"];
    let texts: Vec<String> = names
        .iter()
        .map(|name| file(&format!("tests/fixtures/inject/{name}.yaml")))
        .collect();
    let once: Vec<String> = texts.iter().map(|text| change("inject", text)).collect();
    let out: Vec<String> = once.iter().map(|text| change("uninject", text)).collect();
    for (text, once) in texts.iter().zip(&once) {
        assert_eq!(&change("inject", once), once, "twice is once, to the byte");
        assert_ne!(once, text);
    }
    let before = kubernetes::read(&texts);
    assert_eq!(kubernetes::read(&out), before, "out is as before");
    assert!(
        once[0].starts_with("# Everything at once")
            && once[0].contains("name: settings   # this comment stays")
    );
}

#[test]
fn every_value_keeps_its_meaning_for_kubectl() {
    let traps = file("tests/fixtures/inject/yaml11.yaml");
    let injected = change("inject", &traps);
    for kept in [
        "hostNetwork: on\n",
        "activeDeadlineSeconds: 0644\n",
        "image: y\n",
        "- key: 1:30\n",
    ] {
        assert!(injected.contains(kept), "{kept}: {injected}");
    }
    // crates/inject/src/yaml/tests.rs compares with recorded output of kubectl, this test with
    // kubectl itself.
    let kubectl = kubernetes::kubectl();
    let read = |text: &str| -> Value {
        let arguments = [
            "patch",
            "--local",
            "--type=json",
            "-p",
            "[]",
            "-f",
            "-",
            "-o",
            "json",
        ];
        let output = with_input(Command::new(&kubectl).args(arguments), text);
        assert!(output.status.success(), "{}", self::text(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let before = read(&traps);
    assert_eq!(
        before,
        serde_json::from_str::<Value>(&file("tests/fixtures/inject/yaml11.json")).unwrap()
    );
    assert_eq!(read(&change("uninject", &injected)), before);
    let (mut with, without) = (read(&injected), &before["spec"]["containers"]);
    assert_eq!(&with["spec"]["containers"].take(), without);
}

#[test]
fn values_that_continue_at_the_column_of_their_key_are_accepted() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: p\n  annotations:\n    a: '[\n    1\n    ]'\n    \
                b: \"x\ny\"\n  labels: {c: d,\n  e: 'f\n  g'\n  }\nspec:\n  containers:\n  - name: a\n    image: i\n";
    let injected = change("inject", text);
    let read = kubernetes::read(&[
        text.to_owned(),
        injected.clone(),
        change("uninject", &injected),
    ]);
    assert_eq!(read[2], read[0]);
    assert_eq!(read[1][0]["metadata"]["annotations"]["a"], "[ 1 ]");
    let arguments = ["annotate", "--local", "-f", "-", "q=r", "-o", "json"];
    let output = with_input(Command::new(kubernetes::kubectl()).args(arguments), text);
    let theirs: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(theirs["metadata"]["annotations"]["a"], "[ 1 ]");
    assert_eq!(
        theirs["metadata"]["labels"],
        read[0][0]["metadata"]["labels"]
    );
}

#[test]
fn kubectl_applies_the_patch_to_what_inject_writes() {
    let kubectl = kubernetes::kubectl();
    for name in &PODS[..3] {
        let patch = kubernetes::root().join(format!("tests/fixtures/inject/pod-{name}.patch.json"));
        let text = pod(name);
        let labelled = text.replacen(
            "metadata:\n",
            "metadata:\n  labels: {sidestream.dev/inject: \"true\"}\n",
            1,
        );
        let text = if text.contains("sidestream.dev/inject") {
            text
        } else {
            labelled
        };
        let mut command = Command::new(&kubectl);
        command
            .args([
                "patch",
                "--local",
                "--type=json",
                "-f",
                "-",
                "-o",
                "json",
                "--patch-file",
            ])
            .arg(patch);
        let output = with_input(&mut command, &text);
        assert!(output.status.success(), "{}", self::text(&output.stderr));
        let patched: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            kubernetes::read(&[change("inject", &text)])[0][0],
            patched,
            "pod-{name}"
        );
    }
}

#[test]
fn problems_are_reported_with_their_line_and_nothing_is_written() {
    let output = run(
        &[
            "inject",
            "-f",
            "tests/fixtures/inject/pod-wrong.yaml",
            "--file",
            "-",
        ],
        &pod("plain"),
    );
    assert_eq!(
        (output.status.code(), &*output.stdout),
        (Some(64), &b""[..])
    );
    let report = text(&output.stderr);
    let place = "tests/fixtures/inject/pod-wrong.yaml:1: Pod/orders: ";
    for problem in [
        "annotation `sidestream.dev/port`: \"eighty\" is no port",
        "annotation `sidestream.dev/application-port`: \"web\" is the name of no TCP port of a container",
        "the memory limit of 64Mi is below the request of 128Mi",
        "there is no annotation `sidestream.dev/timeout`; did you mean `sidestream.dev/drain-timeout`?",
    ] {
        assert!(report.contains(&format!("{place}{problem}")), "{report}");
    }
    assert!(
        report.contains("standard input:1: Pod/orders: injected\n"),
        "{report}"
    );
    assert!(
        report.ends_with("4 problems; nothing was written\n"),
        "{report}"
    );
    assert_eq!(
        run(&["inject", "-f", "nowhere.yaml"], "").status.code(),
        Some(64)
    );
    assert_eq!(run(&["uninject", "-q"], "a: [").status.code(), Some(64));
}

#[test]
fn several_files_become_documents_of_one_text() {
    let fixture = |name: &str| format!("tests/fixtures/inject/{name}.yaml");
    let files = [
        fixture("pod-plain"),
        fixture("workloads"),
        fixture("pod-old-cluster"),
    ];
    let mut arguments = vec![
        "inject",
        "--quiet",
        "--image",
        "registry.example/sidestream:2",
        "--config-map",
        "mine",
    ];
    files.iter().for_each(|file| arguments.extend(["-f", file]));
    let output = run(&arguments, "");
    assert_eq!(
        (output.status.code(), text(&output.stderr).as_str()),
        (Some(0), "")
    );
    let written = text(&output.stdout);
    let documents = &kubernetes::read(std::slice::from_ref(&written))[0];
    assert_eq!(documents.len(), 7);
    assert_eq!(
        written
            .matches("image: \"registry.example/sidestream:2\"")
            .count(),
        6
    );
    assert_eq!(
        documents[6]["spec"]["volumes"][0]["configMap"]["name"],
        "mine"
    );
}

/// Three Deployments: one with the label, one of NATS that must not get a sidecar, and one without
/// labels.
fn shop() -> String {
    let deployment = |name: &str, labels: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  template:\n    \
             metadata: {{labels: {labels}}}\n    spec: {{containers: [{{name: app, image: app}}]}}\n---\n"
        )
    };
    deployment("orders", "{app: orders, sidestream.dev/inject: \"true\"}")
        + &deployment("nats", "{app: nats, tier: broker}")
        + &deployment("plain", "{}")
}

#[test]
fn selector_excludes_workloads_that_it_does_not_match() {
    for (selector, injected) in [
        ("sidestream.dev/inject=true", &["orders"][..]),
        ("app in (orders, nats),tier!=broker", &["orders"]),
        ("!app", &["plain"]),
        ("tier!=broker", &["orders", "plain"]),
    ] {
        let output = run(&["inject", "--selector", selector], &shop());
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let documents = kubernetes::read(&[text(&output.stdout)]).remove(0);
        let has =
            |document: &&Value| document["spec"]["template"]["spec"]["initContainers"].is_array();
        let names: Vec<_> = documents
            .iter()
            .filter(has)
            .map(|document| document["metadata"]["name"].clone())
            .collect();
        assert_eq!(names, injected, "{selector}");
        let report = text(&output.stderr);
        assert!(
            report.contains("left as it is: the selector does not match the labels of its pods"),
            "{report}"
        );
    }
    let output = run(
        &["inject", "--quiet", "-l", "sidestream.dev/injct=true"],
        &shop(),
    );
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), shop())
    );
    assert_eq!(
        text(&output.stderr),
        "the selector matches no workload; nothing was injected\n"
    );
    let output = run(&["inject", "--selector", "app="], "");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    for wrong in ["", "app in (", "a b"] {
        let output = run(&["inject", "--selector", wrong], &shop());
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(64), String::new()),
            "{wrong}"
        );
        assert!(
            text(&output.stderr).contains("the selector"),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn default_annotations_are_validated_and_apply() {
    let output = run(
        &[
            "inject",
            "--default",
            "cpu-limit=1",
            "--default",
            "sidestream.dev/port=8081",
        ],
        &pod("plain"),
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let pod_read = &kubernetes::read(&[text(&output.stdout)])[0][0];
    let sidecar = &pod_read["spec"]["initContainers"][0];
    assert_eq!(
        (
            &sidecar["resources"]["limits"]["cpu"],
            &sidecar["ports"][0]["containerPort"]
        ),
        (&json!("1"), &json!(8081))
    );
    for wrong in ["cpu-limit", "cpu-limit=much", "cpu-limt=1"] {
        let output = run(&["inject", "--default", wrong], &pod("plain"));
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(64), String::new()),
            "{wrong}"
        );
        assert!(
            text(&output.stderr).contains("default"),
            "{}",
            text(&output.stderr)
        );
    }
}

/// The input has the form of `kubectl get pods -A -o json`.
#[test]
fn check_reports_pods_that_request_the_sidecar_and_have_none() {
    let pod = |name: &str, label: &str, more: Value| {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name, "namespace": "shop", "labels": { "sidestream.dev/inject": label } },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
        });
        json_patch::merge(&mut pod, &more);
        pod
    };
    let sidecar =
        json!({ "spec": { "initContainers": [{ "name": "sidestream", "image": "sidestream" }] } });
    let plain = json!({ "spec": { "containers": [{ "name": "app" }, { "name": "sidestream" }] } });
    let list = |items: Vec<Value>| {
        json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
    };
    let well = vec![
        pod("native", "true", sidecar),
        pod("plain", "true", plain),
        pod("other", "false", json!({})),
        pod(
            "ended",
            "true",
            json!({ "status": { "phase": "Succeeded" } }),
        ),
        pod(
            "going",
            "true",
            json!({ "metadata": { "deletionTimestamp": "2026-11-29T17:00:00Z" } }),
        ),
    ];
    let output = run(&["inject", "--check"], &list(well.clone()));
    assert_eq!(text(&output.stderr), "2 ask for the sidecar; 0 have none\n");
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), String::new())
    );

    let mut late = well;
    late.push(pod(
        "orders-1",
        "true",
        json!({ "status": { "phase": "Running" } }),
    ));
    let output = run(&["inject", "--check", "--quiet"], &list(late.clone()));
    let report = text(&output.stderr);
    assert_eq!(
        report,
        "Pod/shop/orders-1: asks for the sidecar and has none\n3 ask for the sidecar; 1 have none\n"
    );
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(64), String::new())
    );
    let output = run(&["inject", "--check", "-l", "app=orders"], &list(late));
    assert_eq!(text(&output.stderr), "0 ask for the sidecar; 0 have none\n");
}

#[test]
fn former_command_of_the_webhook_names_the_new_program() {
    let output = run(&["injector", "--listen", "127.0.0.1:0"], "");
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("`sidestream-injector`"));
}
