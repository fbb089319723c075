//! Tests of the webhook over HTTPS: curl sends recorded reviews, as an API server does.
//!
//! `webhook/cluster.rs` tests `init` against a fake API server, `webhook/exhaustion.rs` tests
//! reviews while other peers hold the connections of the webhook.

#![allow(clippy::unwrap_used)] // a failure is the result

#[path = "webhook/cluster.rs"]
mod cluster;
#[path = "webhook/exhaustion.rs"]
mod exhaustion;

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::certs::{Authority, Identity};
use testkit::kubernetes::{self, ask};
use testkit::process::Process;
use testkit::wait::{DEADLINE, eventually, within};

const BINARY: &str = env!("CARGO_BIN_EXE_sidestream-injector");

/// A running webhook.
struct Injector {
    process: Process,
    webhook: String,
    admin: String,
    authority: PathBuf,
}

/// Response that curl received.
#[derive(Debug)]
struct Answer {
    status: u16,
    protocol: String,
    headers: String,
    body: Value,
}

impl Injector {
    async fn start(authority: &Path, identity: &Identity) -> Self {
        let mut command = Command::new(BINARY);
        command.args([
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--log",
            "debug",
        ]);
        command.args(["--admin-host", "injector.example"]);
        command
            .arg("--certificate")
            .arg(&identity.certificate)
            .arg("--key")
            .arg(&identity.key);
        let process = Process::spawn("injector", &mut command);
        let listening = eventually(DEADLINE, "it listens", || async {
            let lines = process.lines();
            let lines = lines
                .iter()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines
                .into_iter()
                .find(|line| line["message"] == "injector listening")
        })
        .await;
        let address = |name: &str| listening[name].as_str().unwrap().to_owned();
        let (webhook, admin) = (address("webhook"), address("admin"));
        let injector = Self {
            process,
            webhook,
            admin,
            authority: authority.to_owned(),
        };
        eventually(DEADLINE, "it is ready", || async {
            injector.get("/health/ready").await.0 == 200
        })
        .await;
        injector
    }

    /// Sends a body to the webhook.
    async fn post(&self, path: &str, body: &[u8], more: &[&str]) -> Answer {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), body).unwrap();
        let mut command = tokio::process::Command::new("curl");
        command.args([
            "--silent",
            "--show-error",
            "--max-time",
            "9",
            "--write-out",
            "\n%{http_code} %{http_version}",
        ]);
        command
            .arg("--cacert")
            .arg(&self.authority)
            .args(["--header", "Content-Type: application/json"])
            .args(more);
        command
            .arg("--data-binary")
            .arg(format!("@{}", file.path().display()));
        command.arg(format!("https://{}{path}", self.webhook));
        let output = within(DEADLINE, "curl ends", command.output())
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let headers = String::from_utf8_lossy(&output.stderr).to_ascii_lowercase();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, end) = text.trim_end().rsplit_once('\n').unwrap();
        let (status, protocol) = end.split_once(' ').unwrap();
        let body = serde_json::from_str(body).unwrap_or_default();
        Answer {
            status: status.parse().unwrap(),
            protocol: protocol.to_owned(),
            headers,
            body,
        }
    }

    async fn review(&self, review: &Value) -> Answer {
        self.post("/inject", review.to_string().as_bytes(), &[])
            .await
    }

    /// Reads the admin port.
    async fn get(&self, path: &str) -> (u16, String) {
        let url = format!("http://{}{path}", self.admin);
        let mut command = tokio::process::Command::new("curl");
        command.args([
            "--silent",
            "--max-time",
            "9",
            "--write-out",
            "\n%{http_code}",
            &url,
        ]);
        let text = String::from_utf8(command.output().await.unwrap().stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), body.to_owned())
    }
}

fn recorded(name: &str) -> Value {
    serde_json::from_str(&kubernetes::file(&format!(
        "tests/fixtures/reviews/{name}.json"
    )))
    .unwrap()
}

fn patch(answer: &Answer) -> Option<Value> {
    let response = &answer.body["response"];
    assert_eq!(
        (answer.status, &response["allowed"]),
        (200, &json!(true)),
        "{answer:?}"
    );
    let patch = STANDARD.decode(response["patch"].as_str()?).unwrap();
    assert_eq!(response["patchType"], "JSONPatch");
    Some(serde_json::from_slice(&patch).unwrap())
}

/// An injector with an authority of its own.
async fn injector() -> (Injector, Authority) {
    let authority = Authority::new();
    let injector = Injector::start(&authority.file(), &authority.server("webhook")).await;
    (injector, authority)
}

#[tokio::test]
async fn recorded_review_gets_the_expected_patch_or_none() {
    let (injector, _authority) = injector().await;
    let create = recorded("create");
    let answer = injector.review(&create).await;
    assert_eq!(
        answer.protocol, "2",
        "an API server speaks HTTP/2 where it can"
    );
    assert_eq!(answer.body["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(answer.body["response"]["uid"], create["request"]["uid"]);
    assert!(
        answer.body["response"].get("warnings").is_none(),
        "{answer:?}"
    );
    let made = patch(&answer).unwrap();
    let pod = &create["request"]["object"];
    let injected = ask(&[json!({ "patch": made, "of": pod })]).remove(0);
    assert_eq!(injected["spec"]["initContainers"][0]["name"], "sidestream");
    assert_eq!(injected["spec"]["terminationGracePeriodSeconds"], 60);
    let valid = json!({ "valid": injected.to_string(), "versions": kubernetes::VERSIONS });
    assert_eq!(ask(&[valid])[0], json!([]));

    // A dry run gets the same response, which has no side effects.
    let answer = injector.review(&recorded("dry-run")).await;
    assert_eq!(
        answer.body["response"]["uid"],
        "c0ffee00-6393-11e8-b7cc-42010a800003"
    );
    assert_eq!(patch(&answer).unwrap(), made);
    // A second injection adds nothing.
    let mut again = create.clone();
    again["request"]["object"] = injected;
    assert_eq!(patch(&injector.review(&again).await), None);
    // An existing pod cannot change, and a pod without the label gets nothing.
    assert_eq!(patch(&injector.review(&recorded("update")).await), None);
    let mut unlabelled = create.clone();
    unlabelled["request"]["object"]["metadata"]["labels"]["sidestream.dev/inject"] = json!("yes");
    assert_eq!(patch(&injector.review(&unlabelled).await), None);
    let mut other = create.clone();
    other["request"]["resource"]["resource"] = json!("configmaps");
    assert_eq!(patch(&injector.review(&other).await), None);

    let (_, metrics) = injector.get("/metrics").await;
    for (outcome, times) in [("injected", 2), ("unchanged", 1), ("skipped", 3)] {
        let line = format!("sidestream_injector_reviews_total{{outcome=\"{outcome}\"}} {times}\n");
        assert!(metrics.contains(&line), "{metrics}");
    }
    assert!(
        metrics.contains("sidestream_injector_review_seconds_count 6\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn invalid_annotation_becomes_a_warning_and_never_a_rejection() {
    let (injector, _authority) = injector().await;
    let mut wrong = recorded("create");
    let pod = &mut wrong["request"]["object"];
    pod["metadata"]["annotations"]["sidestream.dev/port"] = json!("eighty");
    pod["metadata"]["annotations"]["sidestream.dev/image"] = json!("x ".repeat(400));
    pod["metadata"]["annotations"]["sidestream.dev/application-port"] = json!("no-such-port");
    let answer = injector.review(&wrong).await;
    let warnings = answer.body["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    assert!(warnings.iter().all(|text| {
        text.as_str()
            .unwrap()
            .starts_with("sidestream: annotation `")
    }));
    assert!(
        warnings
            .iter()
            .all(|text| text.as_str().unwrap().chars().count() <= 256)
    );
    assert!(patch(&answer).is_some(), "it is injected all the same");

    let pod = &mut wrong["request"]["object"];
    pod["spec"]["volumes"] = json!([{ "name": "sidestream-config", "emptyDir": {} }]);
    let answer = injector.review(&wrong).await;
    assert!(
        answer.body["response"]["warnings"]
            .to_string()
            .contains("is not injected"),
        "{answer:?}"
    );
    let left =
        ask(&[json!({ "patch": patch(&answer).unwrap(), "of": wrong["request"]["object"] })])
            .remove(0);
    assert_eq!(
        left["spec"], wrong["request"]["object"]["spec"],
        "the pod itself is as it was"
    );
    let warnings = left["metadata"]["annotations"]["sidestream.dev/warnings"]
        .as_str()
        .unwrap();
    assert!(warnings.contains("is not injected"), "{warnings}");
    let (_, metrics) = injector.get("/metrics").await;
    assert!(
        metrics.contains("sidestream_injector_problems_total 7\n"),
        "{metrics}"
    );
}

fn lines(injector: &Injector) -> Vec<Value> {
    let lines = injector.process.lines();
    let lines = lines
        .iter()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines
        .filter(|line| line["message"] == "wrong sidestream.dev annotations")
        .collect()
}

/// A controller creates the pods of a Deployment, and shows their warnings to no user.
#[tokio::test]
async fn problems_of_a_pod_are_in_the_log_and_in_an_annotation_of_the_pod() {
    let (injector, _authority) = injector().await;
    let mut wrong = recorded("create");
    wrong["request"]["object"]["metadata"]["annotations"]["sidestream.dev/port"] = json!("eighty");
    let answer = injector.review(&wrong).await;
    let pod = ask(&[json!({ "patch": patch(&answer).unwrap(), "of": wrong["request"]["object"] })])
        .remove(0);
    let problem = "annotation `sidestream.dev/port`: \"eighty\" is no port: 1 to 65535";
    let warning = "annotation `sidestream.dev/port` is no port: 1 to 65535";
    assert_eq!(
        pod["metadata"]["annotations"]["sidestream.dev/warnings"], warning,
        "without the value"
    );
    let line = eventually(DEADLINE, "it is logged", || async {
        lines(&injector).pop()
    })
    .await;
    assert_eq!(
        (&line["level"], &line["problems"]),
        (&json!("WARN"), &json!(problem))
    );
    let object = ["kind", "namespace", "name", "owner"].map(|key| line[key].as_str().unwrap());
    assert_eq!(
        object,
        [
            "Pod",
            "shop",
            "orders-7d4b9c6f5d-",
            "ReplicaSet/orders-7d4b9c6f5d"
        ]
    );

    // A second injection adds nothing; a copy with valid annotations loses the old warning.
    let mut again = wrong.clone();
    again["request"]["object"] = pod.clone();
    assert_eq!(patch(&injector.review(&again).await), None);
    again["request"]["object"]["metadata"]["annotations"]["sidestream.dev/port"] = json!("8081");
    let patch = patch(&injector.review(&again).await).unwrap();
    let pod = ask(&[json!({ "patch": patch, "of": again["request"]["object"] })]).remove(0);
    assert!(
        pod["metadata"]["annotations"]
            .get("sidestream.dev/warnings")
            .is_none(),
        "{pod}"
    );
}

#[tokio::test]
async fn many_pods_with_one_mistake_do_not_fill_the_log() {
    let (injector, _authority) = injector().await;
    let mut wrong = recorded("create");
    wrong["request"]["object"]["metadata"]["annotations"]["sidestream.dev/port"] = json!("eighty");
    let reviews = (0..40).map(|_| injector.review(&wrong));
    futures_util::future::join_all(reviews).await;
    let (_, metrics) = injector.get("/metrics").await;
    assert!(
        metrics.contains("sidestream_injector_problems_total 40\n"),
        "each is counted: {metrics}"
    );
    // 20 at once, and one a second.
    let logged = lines(&injector).len();
    assert!((20..40).contains(&logged), "{logged}");
    let later = eventually(DEADLINE, "a line says how many were left out", || async {
        injector.review(&wrong).await;
        lines(&injector)
            .into_iter()
            .find(|line| line["left_out"].as_u64() > Some(0))
    })
    .await;
    assert!(later["left_out"].as_u64().unwrap() >= 1, "{later}");
}

/// A review of a workload, as an API server sends it for the rule of `warn.sidestream.dev`.
fn workload_review(kind: &str, resource: &str, operation: &str, template: &Value) -> Value {
    let group = if kind.ends_with("Job") {
        "batch"
    } else {
        "apps"
    };
    let spec = match kind {
        "CronJob" => json!({ "jobTemplate": { "spec": { "template": template } } }),
        _ => json!({ "template": template }),
    };
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "1",
            "kind": { "group": group, "version": "v1", "kind": kind },
            "resource": { "group": group, "version": "v1", "resource": resource },
            "namespace": "shop",
            "name": "orders",
            "operation": operation,
            "object": { "apiVersion": format!("{group}/v1"), "kind": kind, "metadata": { "name": "orders" }, "spec": spec },
        },
    })
}

#[tokio::test]
async fn workload_gets_warnings_and_never_a_patch_or_a_rejection() {
    let (injector, _authority) = injector().await;
    let template = |label: &str| {
        json!({
            "metadata": {
                "labels": { "sidestream.dev/inject": label },
                "annotations": { "sidestream.dev/memory-limt": "1Gi" },
            },
            "spec": { "containers": [{ "name": "app", "image": "app" }] },
        })
    };
    let kinds = [
        ("Deployment", "deployments"),
        ("StatefulSet", "statefulsets"),
        ("DaemonSet", "daemonsets"),
        ("Job", "jobs"),
        ("CronJob", "cronjobs"),
    ];
    for (kind, resource) in kinds {
        for operation in ["CREATE", "UPDATE"] {
            let answer = injector
                .review(&workload_review(
                    kind,
                    resource,
                    operation,
                    &template("true"),
                ))
                .await;
            assert_eq!(patch(&answer), None, "{kind}");
            let warnings = &answer.body["response"]["warnings"];
            assert!(
                warnings[0]
                    .as_str()
                    .unwrap()
                    .contains("`sidestream.dev/memory-limt`"),
                "{kind}: {answer:?}"
            );
        }
        // Before Kubernetes 1.28 an API server sends every workload.
        let answer = injector
            .review(&workload_review(
                kind,
                resource,
                "CREATE",
                &template("false"),
            ))
            .await;
        assert_eq!(
            (patch(&answer), answer.body["response"].get("warnings")),
            (None, None),
            "{kind}"
        );
    }
    // A workload without a template, or of another group, gets an answer as well.
    let mut odd = workload_review("Deployment", "deployments", "CREATE", &template("true"));
    odd["request"]["object"] = Value::Null;
    assert_eq!(patch(&injector.review(&odd).await), None);
    let mut other = workload_review("Deployment", "deployments", "CREATE", &template("true"));
    other["request"]["resource"]["group"] = json!("example.dev");
    assert!(
        injector.review(&other).await.body["response"]
            .get("warnings")
            .is_none()
    );
    let (_, metrics) = injector.get("/metrics").await;
    assert!(
        metrics.contains("sidestream_injector_reviews_total{outcome=\"checked\"} 10\n"),
        "{metrics}"
    );
}

/// Response of the admin port to this head.
fn raw(injector: &Injector, head: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut socket = std::net::TcpStream::connect(&injector.admin).unwrap();
    socket.set_read_timeout(Some(DEADLINE)).unwrap();
    socket
        .write_all(format!("{head}\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test]
async fn admin_port_answers_known_hosts_and_every_response_forbids_sniffing() {
    let (injector, _authority) = injector().await;
    for (head, status) in [
        ("GET /metrics HTTP/1.1\r\nHost: 10.0.0.1:9090", 200),
        ("GET /health/live HTTP/1.1\r\nHost: injector.example", 200),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example", 421),
        ("GET /metrics HTTP/1.1", 400),
        ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: a", 400),
        ("GET /metrics HTTP/1.1\nHost: 10.0.0.1", 400),
    ] {
        let answer = raw(&injector, head);
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{head:?}: {answer}"
        );
        assert!(
            answer.contains("x-content-type-options: nosniff\r\n"),
            "{head:?}: {answer}"
        );
    }
    for (path, body) in [
        ("/inject", recorded("create").to_string()),
        ("/nowhere", "{}".into()),
    ] {
        // Over HTTP/1.1: curl 7.88 reports a response before the end of an HTTP/2 request as an
        // error.
        let answer = injector
            .post(
                path,
                body.as_bytes(),
                &["--http1.1", "--dump-header", "/dev/stderr"],
            )
            .await;
        assert!(matches!(answer.status, 200 | 404), "{answer:?}");
        assert!(
            answer.headers.contains("x-content-type-options: nosniff"),
            "{answer:?}"
        );
    }
}

#[tokio::test]
async fn response_to_thousands_of_invalid_annotations_is_bounded() {
    let (injector, _authority) = injector().await;
    let mut wrong = recorded("create");
    let annotations = (0..7_000).map(|n| (format!("sidestream.dev/x{n}"), json!("y")));
    wrong["request"]["object"]["metadata"]["annotations"] = Value::Object(annotations.collect());
    let answer = injector.review(&wrong).await;
    assert!(patch(&answer).is_some());
    let warnings = answer.body["response"]["warnings"].as_array().unwrap();
    assert_eq!(warnings.len(), 21);
    assert_eq!(warnings[20], "sidestream: and 6980 more");
    assert!(answer.body.to_string().len() < 50_000);
}

#[tokio::test]
async fn request_that_is_not_a_review_gets_a_clear_error() {
    let (injector, _authority) = injector().await;
    let mut old = recorded("create");
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut nameless = recorded("create");
    nameless["request"]["uid"] = json!("");
    let mut empty = recorded("create");
    empty["request"]["object"] = Value::Null;
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let cases = [
        ("{".to_owned(), "this is no JSON"),
        (deep, "this is no JSON"),
        ("[]".to_owned(), "no AdmissionReview of admission.k8s.io/v1"),
        (old.to_string(), "no AdmissionReview of admission.k8s.io/v1"),
        (nameless.to_string(), "no `request.uid`"),
        (empty.to_string(), "no `request.object`"),
    ];
    for (body, why) in cases {
        let answer = injector.post("/inject", body.as_bytes(), &[]).await;
        assert_eq!(
            (answer.status, &answer.body["error"]["code"]),
            (400, &json!("malformed")),
            "{answer:?}"
        );
        assert!(
            answer.body["error"]["message"]
                .as_str()
                .unwrap()
                .contains(why),
            "{answer:?}"
        );
    }
    // Over HTTP/1.1: curl 7.88 reports a response before the end of an HTTP/2 request as an error.
    assert_eq!(
        injector
            .post("/elsewhere", b"{}", &["--http1.1"])
            .await
            .status,
        404
    );
    assert_eq!(
        injector
            .post("/inject", b"{}", &["--http1.1", "--request", "PUT"])
            .await
            .status,
        405
    );
    assert_eq!(injector.get("/nowhere").await.0, 404);
    // A review over HTTP/1.1 is accepted as well.
    let review = recorded("create").to_string();
    assert_eq!(
        injector
            .post("/inject", review.as_bytes(), &["--http1.1"])
            .await
            .protocol,
        "1.1"
    );
}

#[tokio::test]
async fn review_of_5_mb_is_answered_and_one_above_8_mib_is_rejected() {
    let (injector, _authority) = injector().await;
    let mut large = recorded("create");
    large["request"]["object"]["metadata"]["annotations"]["example.dev/large"] =
        json!("x".repeat(5_000_000));
    let made = patch(&injector.review(&large).await).unwrap();
    assert!(
        made.to_string().len() < 10_000,
        "the patch has what changes only"
    );
    large["request"]["object"]["metadata"]["annotations"]["example.dev/large"] =
        json!("x".repeat(9_000_000));
    let answer = injector
        .post("/inject", large.to_string().as_bytes(), &["--http1.1"])
        .await;
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (413, &json!("too_large")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn review_that_arrives_too_slowly_is_rejected() {
    let (injector, _authority) = injector().await;
    let review = recorded("create").to_string();
    let answer = injector
        .post(
            "/inject",
            review.as_bytes(),
            &["--http1.1", "--limit-rate", "300"],
        )
        .await;
    assert_eq!(
        (answer.status, &answer.body["error"]["code"]),
        (408, &json!("too_slow")),
        "{answer:?}"
    );
}

#[tokio::test]
async fn renewed_certificate_is_served_without_a_restart() {
    let authority = Authority::new();
    let identity = authority.server("webhook");
    let mut injector = Injector::start(&authority.file(), &identity).await;
    assert_eq!(injector.review(&recorded("create")).await.status, 200);
    let another = Authority::new();
    let renewed = another.server("webhook");
    std::fs::copy(renewed.key, identity.key).unwrap();
    std::fs::copy(renewed.certificate, identity.certificate).unwrap();
    injector.authority = another.file();
    eventually(DEADLINE, "the new certificate serves", || async {
        let mut curl = tokio::process::Command::new("curl");
        curl.args(["--silent", "--cacert"])
            .arg(&injector.authority)
            .arg(format!("https://{}/", injector.webhook));
        curl.output().await.unwrap().status.success()
    })
    .await;
    assert_eq!(injector.review(&recorded("create")).await.status, 200);
    std::fs::write(authority.folder().join("webhook.crt"), "nothing").unwrap();
    eventually(DEADLINE, "a bad one is a warning", || async {
        injector
            .get("/health")
            .await
            .1
            .contains("the certificate in use is kept")
    })
    .await;
    assert_eq!(
        injector.get("/health/ready").await.0,
        200,
        "and no reason to lose the pod"
    );
}

#[tokio::test]
async fn sigterm_fails_readiness_first_and_a_second_one_ends_the_process() {
    let (mut injector, _authority) = injector().await;
    injector.process.signal(Signal::TERM);
    eventually(DEADLINE, "it is not ready", || async {
        injector.get("/health/ready").await.0 == 503
    })
    .await;
    assert_eq!(injector.get("/health/live").await.0, 200);
    assert!(
        patch(&injector.review(&recorded("create")).await).is_some(),
        "reviews are still answered"
    );
    injector.process.signal(Signal::TERM);
    assert_eq!(injector.process.wait_exit(DEADLINE).await.code(), Some(0));
}

#[tokio::test]
async fn invalid_certificate_is_reported_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tls.crt"), "nothing").unwrap();
    let mut command = Command::new(BINARY);
    command.args([
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--certificate",
        "tls.crt",
    ]);
    command
        .args(["--key", "tls.crt"])
        .current_dir(folder.path());
    let mut process = Process::spawn("injector", &mut command);
    assert_eq!(process.wait_exit(DEADLINE).await.code(), Some(64));
    assert!(
        process
            .lines()
            .iter()
            .any(|line| line.contains("tls.crt holds no certificate")),
        "{:?}",
        process.lines()
    );
}
