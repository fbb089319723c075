//! Tests of the annotations: each has an effect, and each problem is reported.

use serde_json::json;

use super::*;

fn read(annotations: &Value) -> (Options, Vec<String>) {
    let (options, problems) = Options::read(annotations.as_object(), &Defaults::default());
    assert!(problems.iter().all(Notice::is_problem));
    (options, problems.iter().map(ToString::to_string).collect())
}

#[test]
fn without_annotations_the_defaults_apply() {
    let (options, problems) = Options::read(
        None,
        &Defaults {
            image: "i".into(),
            config_map: "c".into(),
            ..Defaults::default()
        },
    );
    assert_eq!(problems, []);
    assert_eq!(
        (
            &*options.image,
            &*options.config_map,
            options.port,
            options.admin_port
        ),
        ("i", "c", 8080, 9090)
    );
    assert_eq!(options.drain_timeout(), Duration::from_secs(40));
}

#[test]
fn every_annotation_is_read() {
    let (options, problems) = read(&json!({
        "sidestream.dev/image": "registry.example/sidestream:1@sha256:0",
        "sidestream.dev/image-pull-policy": "Always",
        "sidestream.dev/config-map": "orders.events",
        "sidestream.dev/secret": "nats-creds",
        "sidestream.dev/port": "8081",
        "sidestream.dev/admin-port": "9091",
        "sidestream.dev/admin-scheme": "https",
        "sidestream.dev/admin-token-secret": "admin",
        "sidestream.dev/application-port": "http",
        "sidestream.dev/container": "plain",
        "sidestream.dev/cpu-request": "0.1",
        "sidestream.dev/cpu-limit": "2",
        "sidestream.dev/memory-request": "200Mi",
        "sidestream.dev/memory-limit": "1Gi",
        "sidestream.dev/ephemeral-storage-request": "10Mi",
        "sidestream.dev/ephemeral-storage-limit": "100Mi",
        "sidestream.dev/drain-accept-for": "1s",
        "sidestream.dev/drain-spread": "500ms",
        "sidestream.dev/drain-timeout": "2m",
        "sidestream.dev/log-level": "info,sidestream::http=debug",
        "sidestream.dev/nats-url": "tls://nats.example:4222",
        "sidestream.dev/status": "{}",
        "sidestream.dev/grace-period-raised": "from 30 to 60",
        "example.dev/port": "x",
    }));
    assert_eq!(problems, [""; 0]);
    assert_eq!(options.image, "registry.example/sidestream:1@sha256:0");
    assert_eq!(options.image_pull_policy.as_deref(), Some("Always"));
    assert_eq!(
        (&*options.config_map, options.secret.as_deref()),
        ("orders.events", Some("nats-creds"))
    );
    assert_eq!(
        (options.port, options.admin_port, options.container),
        (8081, 9091, Container::Plain)
    );
    assert_eq!(
        (options.admin_scheme, options.admin_token_secret.as_deref()),
        (Scheme::Https, Some("admin"))
    );
    let application_port = PortReference::Name("http".into());
    assert_eq!(options.application_port, Some(application_port));
    assert_eq!(
        (options.cpu_request.text(), options.memory_limit.text()),
        ("0.1", "1Gi")
    );
    let storage = [&options.storage_request, &options.storage_limit]
        .map(|amount| amount.as_ref().unwrap().text());
    assert_eq!(storage, ["10Mi", "100Mi"]);
    assert_eq!(options.drain_spread, Some(Duration::from_millis(500)));
    assert_eq!(options.drain_timeout(), Duration::from_secs(120));
    assert_eq!(
        options.log_level.as_deref(),
        Some("info,sidestream::http=debug")
    );
    assert_eq!(options.nats_url.as_deref(), Some("tls://nats.example:4222"));
}

#[test]
fn every_annotation_is_documented() {
    let defaults = Defaults::default();
    let mut reader = Reader {
        annotations: None,
        defaults: &defaults.annotations,
        known: Vec::new(),
        problems: Vec::new(),
    };
    Options::read_each(&mut reader, &Defaults::default());
    assert!(reader.known.len() > 10);
    let page = include_str!("../../../../docs/kubernetes.md");
    for name in reader.known {
        assert!(
            page.contains(&format!("`{name}`")),
            "`{name}` is not in docs/kubernetes.md"
        );
    }
}

#[test]
fn invalid_annotation_is_reported_and_counts_as_missing() {
    let wrong = json!({
        "sidestream.dev/image": "two words",
        "sidestream.dev/image-pull-policy": "always",
        "sidestream.dev/config-map": "Not_A_Name",
        "sidestream.dev/secret": "",
        "sidestream.dev/port": "0",
        "sidestream.dev/admin-port": "+90",
        "sidestream.dev/admin-scheme": "HTTPS",
        "sidestream.dev/admin-token-secret": "Not_A_Name",
        "sidestream.dev/application-port": "65536",
        "sidestream.dev/container": "init",
        "sidestream.dev/cpu-request": "50 m",
        "sidestream.dev/memory-request": "0",
        "sidestream.dev/drain-timeout": "40",
        "sidestream.dev/drain-spread": "25h",
        "sidestream.dev/log-level": "verbose",
        "sidestream.dev/nats-url": "http://x",
        "sidestream.dev/cpu-limit": 2,
        "sidestream.dev/timeout": "40s",
        "sidestream.dev/inject": "true",
    });
    let (options, problems) = read(&wrong);
    assert_eq!(options, Options::read(None, &Defaults::default()).0);
    assert_eq!(
        problems.len(),
        wrong.as_object().unwrap().len(),
        "{problems:#?}"
    );
    let report = problems.join("\n");
    assert!(
        report.contains("annotation `sidestream.dev/port`: \"0\" is no port: 1 to 65535"),
        "{report}"
    );
    assert!(
        report.contains("`sidestream.dev/cpu-limit`: 2 is no text: it needs quotes"),
        "{report}"
    );
    assert!(
        report.contains("did you mean `sidestream.dev/drain-timeout`?"),
        "{report}"
    );
    assert!(
        report.contains("`sidestream.dev/inject`; it is a label"),
        "{report}"
    );
    assert!(
        problems.iter().all(|text| text.len() <= 256),
        "the API server truncates longer ones"
    );
}

#[test]
fn port_is_referred_to_by_its_number_or_by_a_name_that_kubernetes_allows() {
    assert_eq!(
        PortReference::parse("3000"),
        Ok(PortReference::Number(3000))
    );
    assert_eq!(
        PortReference::parse("8k-http"),
        Ok(PortReference::Name("8k-http".into()))
    );
    for wrong in [
        "",
        "0",
        "65536",
        "-1",
        "+80",
        "HTTP",
        "a_b",
        "a.b",
        "-a",
        "a-",
        "a--b",
        "1-2",
        "sixteen-letters-",
        "sixteen-letters1",
    ] {
        assert!(PortReference::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn contradicting_annotations_are_reset_so_that_the_pod_is_valid() {
    let (options, problems) = read(&json!({
        "sidestream.dev/port": "9090",
        "sidestream.dev/cpu-limit": "10m",
        "sidestream.dev/memory-request": "1Gi",
        "sidestream.dev/ephemeral-storage-request": "1Gi",
        "sidestream.dev/ephemeral-storage-limit": "1Mi",
        "sidestream.dev/drain-timeout": "20s",
    }));
    assert_eq!(
        (problems.len(), &options.storage_limit),
        (5, &None),
        "{problems:#?}"
    );
    assert_eq!(
        (options.port, options.admin_port, options.cpu_limit.clone()),
        (8080, 9090, None)
    );
    assert_eq!(
        (options.memory_limit.text(), options.drain_timeout),
        ("1Gi", None)
    );
}

#[test]
fn default_annotation_applies_if_a_pod_has_none_or_an_invalid_one() {
    let defaults = |pairs: &[(&str, &str)]| Defaults {
        annotations: pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        ..Defaults::default()
    };
    let own = defaults(&[
        ("cpu-limit", "1"),
        ("image-pull-policy", "Always"),
        ("port", "8081"),
    ]);
    assert_eq!(own.problems(), []);
    let pod = json!({ "sidestream.dev/cpu-limit": "2", "sidestream.dev/port": "eighty" });
    let (options, problems) = Options::read(pod.as_object(), &own);
    assert_eq!(problems.len(), 1, "the pod's own: {problems:?}");
    assert_eq!(
        (options.cpu_limit.unwrap().text(), options.port),
        ("2", 8081)
    );
    assert_eq!(options.image_pull_policy.as_deref(), Some("Always"));
    let wrong = defaults(&[("cpu-limt", "1"), ("port", "eighty")]).problems();
    assert_eq!(wrong.len(), 2, "{wrong:?}");
}
