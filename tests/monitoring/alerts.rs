//! Each alert fires on the series that it is made for, and not on those of a healthy pod (`promtool`).

use serde_json::json;
use tempfile::TempDir;

use testkit::prometheus::promtool;

use super::*;

/// Series on which an alert fires: a metric with its labels but those of the pod, and its values in
/// promtool's notation, one per minute.
struct Case {
    alert: &'static str,
    series: &'static [(&'static str, &'static str)],
    /// Minute at which the alert fires.
    minute: u32,
    /// Labels of the alert besides those of the pod and its severity.
    labels: &'static [(&'static str, &'static str)],
}

/// A counter that grows from 0, as every closed label does.
const GROWS: &str = "0 0 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25";

/// A counter that stays at 0.
const ZERO: &str = "0x27";

/// A gauge at 1, and at 0.
const ONE: &str = "1x27";

const fn case(
    alert: &'static str,
    series: &'static [(&'static str, &'static str)],
    minute: u32,
    labels: &'static [(&'static str, &'static str)],
) -> Case {
    Case {
        alert,
        series,
        minute,
        labels,
    }
}

const CASES: &[Case] = &[
    case(
        "SidestreamNatsDown",
        &[("sidestream_nats_connected", "1 0x27")],
        3,
        &[],
    ),
    case(
        "SidestreamGaps",
        &[(r#"sidestream_gaps_total{route="/a",reason="slow"}"#, GROWS)],
        5,
        &[("route", "/a"), ("reason", "slow")],
    ),
    case(
        "SidestreamLag",
        &[(r#"sidestream_lag_seconds{route="/a"}"#, "31x27")],
        6,
        &[("route", "/a")],
    ),
    case(
        "SidestreamFileDescriptors",
        &[
            ("sidestream_file_descriptors", "900x27"),
            ("sidestream_file_descriptors_limit", "1024x27"),
        ],
        2,
        &[],
    ),
    case(
        "SidestreamDrainOverrun",
        &[("sidestream_drain_cut_total", GROWS)],
        5,
        &[],
    ),
    case(
        "SidestreamDrainStuck",
        &[(r#"sidestream_drain_phase{phase="running"}"#, "1 0x27")],
        8,
        &[("phase", "running")],
    ),
    case(
        "SidestreamReloadFailed",
        &[(
            r#"sidestream_config_reloads_total{result="refused"}"#,
            GROWS,
        )],
        5,
        &[("result", "refused")],
    ),
    case(
        "SidestreamCheckNotOk",
        &[(
            r#"sidestream_health_check{check="nats",status="degraded"}"#,
            ONE,
        )],
        16,
        &[("check", "nats"), ("status", "degraded")],
    ),
    case(
        "SidestreamTokenKeysMissing",
        &[(
            r#"sidestream_authentication_keys_loaded_timestamp_seconds{provider="idp"}"#,
            ZERO,
        )],
        3,
        &[("provider", "idp")],
    ),
    case(
        "SidestreamTokenKeysOld",
        // The time of the test begins at 0; the keys were loaded in its first second.
        &[(
            r#"sidestream_authentication_keys_loaded_timestamp_seconds{provider="idp"}"#,
            "1x70",
        )],
        62,
        &[("provider", "idp")],
    ),
    case(
        "SidestreamAuthenticationRejections",
        &[
            (
                r#"sidestream_refusals_total{code="invalid_token"}"#,
                "0+60x27",
            ),
            (
                r#"sidestream_streams_opened_total{route="/a",protocol="h2",framing="sse"}"#,
                "0+6x27",
            ),
        ],
        20,
        &[],
    ),
    case(
        "SidestreamAuthenticationFailures",
        &[(
            r#"sidestream_refusals_total{code="too_many_authentication_failures"}"#,
            GROWS,
        )],
        5,
        &[],
    ),
    case(
        "SidestreamAuthenticationFailures",
        &[(
            r#"sidestream_admin_refusals_total{port="admin",code="too_many_authentication_failures"}"#,
            GROWS,
        )],
        5,
        &[],
    ),
    case(
        "SidestreamForwardFailing",
        &[(
            r#"sidestream_authentication_forward_requests_total{provider="app",result="failed"}"#,
            GROWS,
        )],
        10,
        &[("provider", "app")],
    ),
    case(
        "SidestreamRevocationsNotRead",
        &[(
            r#"sidestream_health_check{check="revocations",status="failing"}"#,
            ONE,
        )],
        3,
        &[],
    ),
    case(
        "SidestreamRevocationsIgnored",
        &[(
            r#"sidestream_revocation_entries_ignored_total{reason="full"}"#,
            GROWS,
        )],
        5,
        &[("reason", "full")],
    ),
    case(
        "SidestreamTicketsUnavailable",
        &[(r#"sidestream_ticket_issues_total{result="full"}"#, GROWS)],
        5,
        &[],
    ),
    case(
        "SidestreamTicketsUnavailable",
        &[(
            r#"sidestream_ticket_redemptions_total{result="unavailable"}"#,
            GROWS,
        )],
        5,
        &[],
    ),
    case(
        "SidestreamLoadShedding",
        &[(r#"sidestream_pressure_level{level="none"}"#, "1 0x27")],
        8,
        &[("level", "none")],
    ),
    case(
        "SidestreamReplaysQueued",
        &[("sidestream_replays_queued", "0 7x27")],
        12,
        &[],
    ),
    case(
        "SidestreamInvalidPayloads",
        &[(
            r#"sidestream_schema_payloads_total{schema="a.json",result="invalid"}"#,
            GROWS,
        )],
        5,
        &[],
    ),
    case(
        "SidestreamInvalidPayloads",
        &[(
            r#"sidestream_version_conversions_total{route="/a",version="1",result="failed"}"#,
            GROWS,
        )],
        5,
        &[],
    ),
    case(
        "SidestreamTracesNotExported",
        &[(r#"sidestream_trace_spans_total{result="failed"}"#, GROWS)],
        15,
        &[],
    ),
    case(
        "SidestreamApplicationDown",
        &[
            (
                r#"sidestream_refusals_total{code="application_timeout"}"#,
                "0+10x27",
            ),
            (
                r#"sidestream_application_responses_total{status="2xx"}"#,
                "0+90x27",
            ),
        ],
        12,
        &[],
    ),
    case(
        "SidestreamApplicationErrors",
        &[
            (
                r#"sidestream_application_responses_total{status="5xx"}"#,
                "0+10x27",
            ),
            (
                r#"sidestream_application_responses_total{status="2xx"}"#,
                "0+90x27",
            ),
        ],
        20,
        &[],
    ),
    case(
        "SidestreamInjectorProblems",
        &[("sidestream_injector_problems_total", GROWS)],
        5,
        &[],
    ),
];

/// Adds the labels of the pod to a series.
fn of_pod(series: &str) -> String {
    const POD: &str = r#"namespace="shop",pod="pod""#;
    match series.split_once('{') {
        None => format!("{series}{{{POD}}}"),
        Some((name, labels)) => format!("{name}{{{POD},{labels}"),
    }
}

/// Writes rules without annotations, which promtool would compare as well, and tests; runs promtool.
fn run(rules: &[Value], tests: &[Value]) -> Result<(), String> {
    let folder = TempDir::new().unwrap();
    let without = |rule: &Value| {
        let mut rule = rule.clone();
        rule.as_object_mut().unwrap().remove("annotations");
        rule
    };
    let rules: Vec<_> = rules.iter().map(without).collect();
    let rules = json!({ "groups": [{ "name": "sidestream", "rules": rules }] });
    std::fs::write(folder.path().join("rules.yml"), rules.to_string()).unwrap();
    let tests = json!({ "rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests });
    std::fs::write(folder.path().join("tests.yml"), tests.to_string()).unwrap();
    promtool(folder.path(), &["test", "rules", "tests.yml"])
}

/// Test of one case: the alert fires at its minute, and not at the start.
fn test_of(case: &Case, rule: &Value) -> Value {
    let series = case
        .series
        .iter()
        .map(|(series, values)| json!({ "series": of_pod(series), "values": values }));
    let mut labels = json!({ "namespace": "shop", "pod": "pod" });
    labels["severity"] = rule["labels"]["severity"].clone();
    for (name, value) in case.labels {
        labels[*name] = json!(value);
    }
    json!({
        "interval": "1m",
        "input_series": series.collect::<Vec<_>>(),
        "alert_rule_test": [
            { "eval_time": "0m", "alertname": case.alert, "exp_alerts": [] },
            {
                "eval_time": format!("{}m", case.minute),
                "alertname": case.alert,
                "exp_alerts": [{ "exp_labels": labels }],
            },
        ],
    })
}

#[test]
fn each_alert_fires_on_the_series_that_it_is_made_for() {
    let rules = alert_rules();
    let find = |name: &str| {
        let rule = rules.iter().find(|rule| rule["alert"] == name);
        rule.unwrap_or_else(|| panic!("there is no alert {name}"))
    };
    let tests: Vec<_> = CASES
        .iter()
        .map(|case| test_of(case, find(case.alert)))
        .collect();
    if let Err(output) = run(&rules, &tests) {
        panic!("{output}");
    }
    let tested: BTreeSet<_> = CASES.iter().map(|case| case.alert).collect();
    for rule in &rules {
        let name = rule["alert"].as_str().unwrap();
        assert!(tested.contains(name), "{name} has no case");
    }
    // The comparison can fail.
    let mut wrong = test_of(&CASES[0], find(CASES[0].alert));
    wrong["alert_rule_test"][1]["exp_alerts"] = json!([]);
    assert!(run(&rules, &[wrong]).is_err());
}

#[test]
fn promtool_accepts_the_rules_with_their_annotations() {
    let folder = TempDir::new().unwrap();
    std::fs::write(folder.path().join("rules.yml"), rules().to_string()).unwrap();
    promtool(
        folder.path(),
        &["check", "rules", "--lint=all", "--lint-fatal", "rules.yml"],
    )
    .unwrap();
}
