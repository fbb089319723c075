//! The manifests under `k8s/`: valid in every version, equal to the injector, with existing
//! metrics.

#![allow(clippy::unwrap_used)] // a failure is the result

#[path = "kubernetes/nats_conf.rs"]
mod nats_conf;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use testkit::kubernetes::{self, assert_valid, file, root, with_input};

const BINARY: &str = env!("CARGO_BIN_EXE_sidestream");

const BASES: [&str; 4] = ["sidecar", "injector", "example", "monitoring"];

/// The manifests of the bases: path and text.
fn manifests() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for base in BASES {
        for entry in std::fs::read_dir(root().join("k8s").join(base)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            let is_manifest =
                name.ends_with(".yaml") && !matches!(&*name, "sidecar.yaml" | "kustomization.yaml");
            if is_manifest {
                let path = format!("k8s/{base}/{name}");
                found.push((path.clone(), file(&path)));
            }
        }
    }
    found.sort();
    assert!(found.len() >= 12, "there are manifests to look at");
    found
}

fn inject(manifests: &str) -> String {
    let output = with_input(
        Command::new(BINARY).args(["inject", "--quiet", "--image", "sidestream"]),
        manifests,
    );
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_manifest_is_valid_in_every_version_and_with_the_sidecar_as_well() {
    let mut all = manifests();
    let example = file("k8s/example/application.yaml");
    all.push(("the example, injected".into(), inject(&example)));
    assert_valid(&all);
}

#[test]
fn a_base_names_all_its_files() {
    for (path, _) in manifests() {
        let path = Path::new(&path);
        let list = file(path.with_file_name("kustomization.yaml").to_str().unwrap());
        let name = path.file_name().unwrap().to_str().unwrap();
        assert!(
            list.contains(&format!("  - {name}\n")),
            "{} is in no kustomization",
            path.display()
        );
    }
}

/// `k8s/sidecar` explains what the injector adds: line by line the same.
#[test]
fn the_sidecar_by_hand_is_what_the_injector_makes() {
    let by_hand = file("k8s/sidecar/deployment.yaml");
    let without = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: application}
spec:
  template:
    metadata:
      labels: {app.kubernetes.io/name: application}
      annotations: {sidestream.dev/nats-url: "nats://nats:4222"}
    spec: {containers: [{name: application, image: application}]}
"#;
    let read = kubernetes::read(&[by_hand, inject(without)]);
    let template = |documents: &[Value]| documents[0]["spec"]["template"].clone();
    let (by_hand, mut injected) = (template(&read[0]), template(&read[1]));
    assert!(injected["metadata"]["annotations"].take().is_object());
    injected["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("annotations");
    assert_eq!(by_hand, injected);
}

/// The documented command, and what it leaves alone: a sidecar in the pod of NATS would wait for
/// the NATS server that it keeps from being ready.
#[test]
fn the_documented_command_gives_the_example_one_sidecar_and_nats_none() {
    let kustomized = Command::new(kubernetes::kubectl())
        .args(["kustomize", "k8s/example"])
        .current_dir(root())
        .output();
    let kustomized = String::from_utf8(kustomized.unwrap().stdout).unwrap();
    let command = "kubectl kustomize k8s/example | sidestream inject --selector sidestream.dev/inject=true | kubectl apply -f -";
    for page in ["k8s/example/kustomization.yaml", "docs/kubernetes.md"] {
        assert!(file(page).contains(command), "{page}");
    }
    let with_sidecar = |arguments: &[&str]| -> Vec<String> {
        let output = with_input(
            Command::new(BINARY).arg("inject").args(arguments),
            &kustomized,
        );
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let documents = kubernetes::read(&[String::from_utf8(output.stdout).unwrap()]).remove(0);
        let injected = documents.iter().filter(|document| {
            let containers = document["spec"]["template"]["spec"]["initContainers"].as_array();
            containers.is_some_and(|containers| {
                containers
                    .iter()
                    .any(|container| container["name"] == "sidestream")
            })
        });
        injected
            .map(|document| document["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        with_sidecar(&["--selector", "sidestream.dev/inject=true"]),
        ["orders"]
    );
    assert_eq!(
        with_sidecar(&[]),
        ["orders"],
        "labels keep the others out without a selector, too"
    );
}

/// A Service that leads to the sidecar's port, which a NetworkPolicy of the same pods lets through.
#[test]
fn the_port_of_the_sidecar_has_a_service() {
    for (path, name) in [
        ("k8s/example/application.yaml", "orders"),
        ("k8s/sidecar/service.yaml", "application-events"),
    ] {
        let documents = kubernetes::read(&[file(path)]).remove(0);
        let service = documents
            .iter()
            .find(|document| document["kind"] == "Service" && document["metadata"]["name"] == name);
        assert_eq!(
            service.unwrap()["spec"]["ports"][0]["targetPort"],
            8080,
            "{path}"
        );
        if let Some(policy) = documents
            .iter()
            .find(|document| document["kind"] == "NetworkPolicy")
        {
            assert_eq!(
                policy["spec"]["ingress"][0]["ports"],
                json!([{ "port": 8080 }]),
                "{path}: the application is reached through the sidecar only"
            );
        }
    }
}

/// With what an injected pod has in its environment, and without.
#[test]
fn the_configurations_that_ship_have_no_problems() {
    let folder = tempfile::tempdir().unwrap();
    let example = kubernetes::read(&[file("k8s/example/application.yaml")]).remove(0);
    let in_example = example[0]["data"]["sidecar.yaml"]
        .as_str()
        .unwrap()
        .to_owned();
    for (name, text) in [
        ("sidecar", file("k8s/sidecar/sidecar.yaml")),
        ("example", in_example),
    ] {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        let check = |environment: &[(&str, &str)]| {
            let mut command = Command::new(BINARY);
            command
                .env_clear()
                .envs(environment.iter().copied())
                .arg("check")
                .arg("--config")
                .arg(&path);
            let output = command.output().unwrap();
            assert!(
                output.status.success(),
                "{name}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            String::from_utf8(output.stdout).unwrap()
        };
        assert!(check(&[]).contains("listens on 0.0.0.0:8080\n"));
        let said = check(&[
            ("SIDESTREAM_PORT", "8081"),
            ("SIDESTREAM_ADMIN_PORT", "9091"),
            ("NATS_URL", "tls://nats.example:4222"),
            ("SIDESTREAM_DRAIN_ACCEPT_FOR", "1s"),
            ("SIDESTREAM_DRAIN_SPREAD", "500ms"),
            ("SIDESTREAM_DRAIN_TIMEOUT", "90s"),
            ("SIDESTREAM_LOG", "debug"),
            ("ADMIN_TOKEN", "0123456789abcdef0123456789abcdef"),
            ("APPLICATION_ADDRESS", "http://127.0.0.1:3000"),
        ]);
        assert!(
            said.contains("listens on 0.0.0.0:8081\n"),
            "the annotation acts: {said}"
        );
        let passes = "passes other paths to the application at http://127.0.0.1:3000\n";
        assert!(said.contains(passes), "{name}: {said}");
        assert!(!check(&[]).contains("passes other paths"), "{name}");
        if name == "sidecar" {
            let access = "/connections and /config are";
            assert!(said.contains(&format!("{access} protected")), "{said}");
            assert!(check(&[]).contains(&format!("{access} open")));
        }
    }
}

/// The policies for pods with the sidecar: that of the base and of the chart, and the example.
#[test]
fn network_policies_of_the_chart_and_of_the_documentation_are_valid() {
    let page = file("docs/kubernetes.md");
    let example = page
        .split("```yaml\n")
        .map(|block| block.split("```").next().unwrap())
        .find(|block| block.contains("name: sidestream-egress"))
        .unwrap();
    let values = tempfile::NamedTempFile::new().unwrap();
    let egress = kubernetes::read(&[example.to_owned()])[0][0]["spec"]["egress"].clone();
    let sidecar = json!({ "namespaces": ["shop"], "config": "routes: []",
        "annotations": { "admin-scheme": "https" } });
    let all = json!({
        "sidecar": sidecar,
        "networkPolicy": { "sidecarEgress": egress },
        "monitoring": { "podMonitor": true, "tlsConfig": { "serverName": "sidestream.example" } },
    });
    std::fs::write(values.path(), all.to_string()).unwrap();
    let chart = Command::new(kubernetes::helm())
        .args([
            "template",
            "sidestream",
            "k8s/chart",
            "-n",
            "sidestream",
            "--values",
        ])
        .arg(values.path())
        .current_dir(root())
        .output()
        .unwrap();
    let chart = String::from_utf8(chart.stdout).unwrap();
    assert_valid(&[
        ("the chart".to_owned(), chart.clone()),
        ("the example".to_owned(), example.to_owned()),
    ]);
    let base = file("k8s/sidecar/networkpolicy.yaml");
    let read = kubernetes::read(&[base, example.to_owned(), chart]);
    let found = |documents: &[Value], kind: &str, name: &str| {
        let is_it =
            |document: &&Value| document["kind"] == kind && document["metadata"]["name"] == name;
        let found = documents.iter().find(is_it);
        found.unwrap_or_else(|| panic!("no {kind} {name}"))["spec"].clone()
    };
    for (written, name) in [
        (&read[0], "sidestream-admin"),
        (&read[1], "sidestream-egress"),
    ] {
        let written = found(written, "NetworkPolicy", name);
        assert_eq!(written, found(&read[2], "NetworkPolicy", name), "{name}");
    }
    let monitor = found(&read[2], "PodMonitor", "sidestream");
    let endpoint = &monitor["podMetricsEndpoints"][0];
    assert_eq!(
        (&endpoint["scheme"], &endpoint["tlsConfig"]["serverName"]),
        (&json!("https"), &json!("sidestream.example"))
    );
    let monitor = found(&read[2], "PodMonitor", "sidestream-injector");
    assert!(monitor["podMetricsEndpoints"][0].get("scheme").is_none());
}

/// The policy for applications that are reached through the sidecar: that of the documentation and
/// of the chart.
#[test]
fn policy_of_the_documentation_and_of_the_chart_opens_only_the_port_of_the_sidecar() {
    let page = file("docs/kubernetes.md");
    let documented = page
        .split("```yaml\n")
        .map(|block| block.split("```").next().unwrap())
        .find(|block| block.contains("name: sidestream-admin"))
        .unwrap();
    let render = |values: &str| {
        let output = Command::new(kubernetes::helm())
            .args(["template", "sidestream", "k8s/chart", "-n", "sidestream"])
            .args(["--set-string", "sidecar.config=routes: []"])
            .args(["--set", "sidecar.namespaces={shop}"])
            .args(["--set", "networkPolicy.sidecarPortOnly=true"])
            .args(["--set-string", values])
            .current_dir(root())
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let chart = render("sidecar.name=sidestream");
    let other = render("sidecar.annotations.port=8081");
    assert_valid(&[
        ("the documentation".to_owned(), documented.to_owned()),
        ("the chart".to_owned(), chart.clone()),
    ]);
    let read = kubernetes::read(&[documented.to_owned(), chart, other]);
    let ingress = read.iter().map(|documents| {
        let policy = documents
            .iter()
            .find(|document| document["metadata"]["name"] == "sidestream-admin");
        policy.unwrap()["spec"]["ingress"].clone()
    });
    let [documented, chart, other] = ingress.collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(documented, chart);
    assert_eq!(chart[0], json!({ "ports": [{ "port": 8080 }] }));
    assert_eq!(other[0], json!({ "ports": [{ "port": 8081 }] }));
}

/// The names of metrics in an expression.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    words
        .filter(|word| word.starts_with("sidestream_"))
        .map(str::to_owned)
        .collect()
}

/// The names that a scrape may have.
fn known() -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for line in file("docs/metrics.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
    {
        let (name, rest) = line.split_once("` | ").unwrap();
        if rest.starts_with("histogram") {
            known.extend(["bucket", "sum", "count"].map(|end| format!("{name}_{end}")));
        } else {
            known.insert(name.to_owned());
        }
    }
    assert!(
        known.contains("sidestream_streams")
            && known.contains("sidestream_delivery_seconds_bucket")
    );
    known
}

fn strings(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Object(map) => map.values().for_each(|item| strings(item, found)),
        _ => {}
    }
}

#[test]
fn alerts_and_the_dashboard_use_only_metrics_that_there_are() {
    let known = known();
    let rules = kubernetes::read(&[file("k8s/monitoring/prometheusrule.yaml")])
        .remove(0)
        .remove(0);
    let rules = rules["spec"]["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .clone();
    let (mut used, documentation) = (BTreeSet::new(), file("docs/kubernetes.md"));
    for rule in &rules {
        let alert = rule["alert"].as_str().unwrap();
        assert!(
            documentation.contains(&format!("| `{alert}` | ")),
            "{alert} is not in docs/kubernetes.md"
        );
        let names = named(rule["expr"].as_str().unwrap());
        assert!(!names.is_empty(), "{rule}");
        assert!(
            rule["annotations"]["summary"].is_string() && rule["labels"]["severity"].is_string(),
            "{rule}"
        );
        let runbook = rule["annotations"]["runbook"].as_str().unwrap();
        let (page, section) = runbook.split_once('#').unwrap();
        let headings = file(page);
        let mut sections = headings
            .lines()
            .filter_map(|line| line.strip_prefix("## "))
            .map(|heading| heading.to_lowercase().replace(' ', "-").replace(',', ""));
        assert!(sections.any(|other| other == section), "{alert}: {runbook}");
        used.extend(names);
    }
    // Conditions that an operator must know.
    for metric in [
        "sidestream_gaps_total",
        "sidestream_lag_seconds",
        "sidestream_file_descriptors_limit",
        "sidestream_drain_cut_total",
        "sidestream_nats_connected",
        "sidestream_config_reloads_total",
        "sidestream_health_check",
        "sidestream_authentication_keys_loaded_timestamp_seconds",
        "sidestream_refusals_total",
        "sidestream_application_responses_total",
    ] {
        assert!(used.contains(metric), "no alert on {metric}");
    }
    let dashboard: Value = serde_json::from_str(&file("k8s/monitoring/dashboard.json")).unwrap();
    let mut texts = Vec::new();
    strings(&dashboard, &mut texts);
    let shown: BTreeSet<_> = texts.iter().flat_map(|text| named(text)).collect();
    assert!(shown.len() > 15, "{shown:?}");
    let unknown: Vec<_> = used
        .union(&shown)
        .filter(|name| !known.contains(*name))
        .collect();
    assert!(unknown.is_empty(), "not in docs/metrics.md: {unknown:?}");
    let ids: BTreeSet<_> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|panel| panel["id"].to_string())
        .collect();
    assert_eq!(
        ids.len(),
        dashboard["panels"].as_array().unwrap().len(),
        "each panel has an id of its own"
    );
}

/// A chart cannot reach outside of its folder, so it has copies.
#[test]
fn the_files_of_the_chart_are_those_of_the_bases() {
    let copies: [(_, _, &[&str]); 2] = [
        (
            "monitoring",
            "",
            &["podmonitor.yaml", "prometheusrule.yaml", "dashboard.json"],
        ),
        ("example", "example/", &["nats.yaml", "publisher.yaml"]),
    ];
    for (base, folder, names) in copies {
        for name in names {
            let (own, copy) = (
                format!("k8s/{base}/{name}"),
                format!("k8s/chart/files/{folder}{name}"),
            );
            assert!(file(&own) == file(&copy), "cp {own} {copy}");
        }
    }
    // Its application has the sidecar already: pods are created before an injector of the same
    // release answers.
    let example = file("k8s/example/application.yaml");
    let injected = inject(&example);
    let (written, path) = (
        file("k8s/chart/files/example/application.yaml"),
        "k8s/chart/files/example/application.yaml",
    );
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(root().join(path), &injected).unwrap();
    }
    assert!(
        written == injected,
        "{path} is another: UPDATE_GOLDEN=1 cargo test --test kubernetes"
    );
    let chart = file("k8s/chart/Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        chart.contains(&format!("\nversion: {version}\nappVersion: {version}\n")),
        "{chart}"
    );
}

#[test]
fn the_default_values_of_the_chart_fit_its_schema() {
    let values = kubernetes::read(&[file("k8s/chart/values.yaml")])
        .remove(0)
        .remove(0);
    let schema: Value = serde_json::from_str(&file("k8s/chart/values.schema.json")).unwrap();
    let problems = kubernetes::ask(&[json!({ "fits": values, "schema": schema })]);
    assert_eq!(problems[0], json!([]));
    let mut wrong = values;
    wrong["injector"]["replicas"] = json!(0);
    wrong["injektor"] = json!({});
    let problems = kubernetes::ask(&[json!({ "fits": wrong, "schema": schema })]);
    assert_eq!(
        problems[0].as_array().unwrap().len(),
        2,
        "what is wrong is seen: {problems:?}"
    );
}

#[test]
fn kubectl_builds_every_base() {
    let kubectl = kubernetes::kubectl();
    let mut built = Vec::new();
    for base in BASES {
        let output = Command::new(&kubectl)
            .arg("kustomize")
            .arg(root().join("k8s").join(base))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{base}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        built.push((base.to_owned(), String::from_utf8(output.stdout).unwrap()));
    }
    let injector = &built[1].1;
    let images = |image: &str| injector.matches(image).count();
    assert_eq!(
        (
            images("image: sidestream-injector:0.1.0"),
            images("value: sidestream:0.1.0")
        ),
        (2, 1),
        "init container and webhook, and the image for pods: {injector}"
    );
    assert_valid(&built);
}

/// Each webhook that only warns lets everything pass when it does not answer; the chart has the
/// same as the base.
#[test]
fn the_rule_for_workloads_only_warns_in_the_base_and_in_the_chart() {
    let chart = Command::new(kubernetes::helm())
        .args(["template", "sidestream", "k8s/chart", "-n", "sidestream"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        chart.status.success(),
        "{}",
        String::from_utf8_lossy(&chart.stderr)
    );
    let texts = [
        file("k8s/injector/webhook.yaml"),
        String::from_utf8(chart.stdout).unwrap(),
    ];
    let mut webhooks = kubernetes::read(&texts).into_iter().map(|documents| {
        let mut found = documents
            .into_iter()
            .filter(|document| document["kind"] == "MutatingWebhookConfiguration");
        found.next().unwrap()["webhooks"].clone()
    });
    let (base, chart) = (webhooks.next().unwrap(), webhooks.next().unwrap());
    assert_eq!(base, chart);
    assert_eq!(
        (&base[1]["name"], &base[1]["failurePolicy"]),
        (&json!("warn.sidestream.dev"), &json!("Ignore"))
    );
    assert!(
        base[1]["matchConditions"].is_array(),
        "workloads without the label are not reviewed"
    );
}

#[test]
fn helm_renders_the_chart() {
    let helm = kubernetes::helm();
    let render = |more: &[&str]| {
        let mut command = Command::new(&helm);
        command
            .args([
                "template",
                "events",
                ".",
                "--namespace",
                "events",
                "--kube-version",
                "1.33.0",
            ])
            .args(more);
        command
            .current_dir(root().join("k8s/chart"))
            .output()
            .unwrap()
    };
    let everything = "monitoring.podMonitor=true,monitoring.rules=true,monitoring.dashboard=true,example.enabled=true";
    let digest = "0a".repeat(32);
    let digest = format!(
        "image.repository=registry.example/sidestream,image.digest=sha256:{digest},\
         injector.image.repository=registry.example/injector,injector.image.digest=sha256:{digest}"
    );
    let ways: [&[&str]; 4] = [
        &[],
        &[
            "--set",
            everything,
            "--set",
            "sidecar.namespaces={a,b}",
            "--set-file",
            "sidecar.config=../sidecar/sidecar.yaml",
        ],
        &[
            "--set",
            "injector.certificateSecret=own,injector.replicas=1,networkPolicy.enabled=false",
        ],
        &[
            "--set",
            &digest,
            "--set",
            "image.pullPolicy=Always,image.pullSecrets={one,two},injector.nodeSelector.pool=system",
            "--set",
            "injector.tolerations[0].operator=Exists,injector.priorityClassName=system-cluster-critical",
            "--set-string",
            "sidecar.annotations.cpu-limit=1",
        ],
    ];
    let mut rendered = Vec::new();
    for way in ways {
        let output = render(way);
        assert!(
            output.status.success(),
            "{way:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        rendered.push((
            format!("{way:?}"),
            String::from_utf8(output.stdout).unwrap(),
        ));
    }
    assert_valid(&rendered);
    let digest = format!("sha256:{}", "0a".repeat(32));
    let images = rendered[3]
        .1
        .matches(&format!("registry.example/sidestream@{digest}"))
        .count();
    let example = &rendered[1].1;
    assert_eq!(
        (
            example
                .matches("image: \"sidestream-injector:0.1.0\"")
                .count(),
            example.matches("image: \"sidestream:0.1.0\"").count(),
        ),
        (2, 1),
        "two of the injector, one of the example"
    );
    assert!(
        !example.contains("image: \"sidestream\"") && example.contains("sidestream.dev/status"),
        "{example}"
    );
    assert_eq!(images, 1, "the image for pods: {}", rendered[3].1);
    let own = format!("image: \"registry.example/injector@{digest}\"");
    assert_eq!(
        rendered[3].1.matches(&own).count(),
        2,
        "init container and webhook: {}",
        rendered[3].1
    );
    for option in [
        "imagePullSecrets:\n        - name: one\n        - name: two\n",
        "imagePullPolicy: Always\n",
        "\"--default=image-pull-policy=Always\"",
        "\"--default=cpu-limit=1\"",
        "nodeSelector:\n        pool: system\n",
        "tolerations:\n        - operator: Exists\n",
        "priorityClassName: system-cluster-critical\n",
    ] {
        assert!(
            rendered[3].1.contains(option),
            "{option}: {}",
            rendered[3].1
        );
    }
    assert!(
        rendered[1].1.contains("kind: PrometheusRule")
            && rendered[1].1.contains("{{ $labels.pod }}")
    );
    for refused in [
        "injector.replicas=0",
        "injektor.enabled=true",
        "sidecar.namespaces={a}",
        "image.digest=latest",
        "injector.image.digest=latest",
        "image.pullPolicy=always",
    ] {
        assert!(!render(&["--set", refused]).status.success(), "{refused}");
    }
}
