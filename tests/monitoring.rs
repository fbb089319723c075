//! Dashboard and alerts of `k8s/monitoring` in a real Prometheus that scrapes a real sidecar.

#![allow(clippy::unwrap_used)] // a failure is the result
#![allow(unreachable_pub)] // the collector is a module of another test too

#[path = "monitoring/alerts.rs"]
mod alerts;
// The tests use a part of it.
#[allow(dead_code)]
#[path = "it/traces/collector.rs"]
mod collector;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use sidestream::telemetry::Metrics;

use testkit::endpoint::{Endpoint, Reply};
use testkit::http1;
use testkit::issuer::Issuer;
use testkit::kubernetes;
use testkit::nats::{Nats, create_stream};
use testkit::prometheus::Prometheus;
use testkit::repository::file;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

use collector::Collector;

/// Labels that Prometheus adds to every series of a pod.
const OF_THE_SCRAPE: [&str; 5] = ["namespace", "pod", "instance", "job", "le"];

/// The alerts as a rule file.
fn rules() -> Value {
    let manifest = kubernetes::read(&[file("k8s/monitoring/prometheusrule.yaml")]);
    manifest[0][0]["spec"].clone()
}

/// The alerts.
fn alert_rules() -> Vec<Value> {
    let mut rules = rules();
    let Value::Array(rules) = rules["groups"][0]["rules"].take() else {
        panic!("the group has no rules");
    };
    rules
}

/// Expressions of all panels, with the variables of Grafana replaced.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&file("k8s/monitoring/dashboard.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        let targets = panel["targets"].as_array();
        assert!(targets.is_some() || panel["type"] == "row", "{title}");
        for target in targets.into_iter().flatten() {
            let text = target["expr"].as_str().unwrap();
            let text = text.replace("$namespace", ".*").replace("$pod", ".*");
            let text = text.replace("$__rate_interval", "1m");
            assert!(!text.contains('$'), "{title}: {text}");
            found.push((format!("panel {title}"), text));
        }
    }
    found
}

/// All expressions by what they belong to.
fn expressions() -> Vec<(String, String)> {
    let of_alert = |rule: Value| {
        let text = |key: &str| rule[key].as_str().unwrap().to_owned();
        (text("alert"), text("expr"))
    };
    let alerts = alert_rules().into_iter().map(of_alert);
    panels().into_iter().chain(alerts).collect()
}

/// A selector in an expression: the name of a metric, and its matchers.
#[derive(Debug)]
struct Selector {
    /// Text with the matchers.
    text: String,
    metric: String,
    /// Names of the labels in the matchers.
    labels: Vec<String>,
}

/// Finds the selectors of Sidestream's metrics.
fn selectors(expression: &str) -> Vec<Selector> {
    let mut found = Vec::new();
    for (start, _) in expression.match_indices("sidestream_") {
        let rest = &expression[start..];
        let end = rest.find(|character: char| !character.is_alphanumeric() && character != '_');
        let (metric, after) = rest.split_at(end.unwrap_or(rest.len()));
        let matchers = after
            .strip_prefix('{')
            .map(|matchers| &matchers[..matchers.find('}').unwrap()]);
        let labels = matchers.into_iter().flat_map(|matchers| {
            let pairs = matchers.split("\",");
            pairs.map(|pair| pair[..pair.find(['=', '!']).unwrap()].to_owned())
        });
        let text = matchers.map(|matchers| format!("{metric}{{{matchers}}}"));
        found.push(Selector {
            text: text.unwrap_or_else(|| metric.to_owned()),
            metric: metric.to_owned(),
            labels: labels.collect(),
        });
    }
    found
}

/// Names of the labels after each `by`.
fn grouped(expression: &str) -> BTreeSet<String> {
    let groups = expression.split(" by (").skip(1);
    let lists = groups.map(|group| &group[..group.find(')').unwrap()]);
    lists
        .flat_map(|list| list.split(", ").map(ToOwned::to_owned))
        .collect()
}

/// Name of a metric without the suffix of a histogram's series.
fn family(metric: &str) -> &str {
    let suffixes = ["_bucket", "_sum", "_count"];
    let mut stripped = suffixes.iter().filter_map(|end| metric.strip_suffix(end));
    stripped.next().unwrap_or(metric)
}

/// Labels of every metric of the sidecar and the injector, by name.
fn known() -> BTreeMap<String, BTreeSet<String>> {
    let metrics = Metrics::new().unwrap();
    let of_sidecar = metrics.described().iter().map(|one| {
        let labels = one.labels.iter().cloned().collect();
        (one.name.clone(), labels)
    });
    // The injector is another package; a test of it writes its table.
    let documentation = file("docs/metrics.md");
    let of_injector = documentation.lines().filter_map(|line| {
        let line = line.strip_prefix("| `sidestream_injector_")?;
        let mut cells = line.split(" | ");
        let name = cells.next()?.trim_end_matches('`');
        let labels = cells.nth(1)?.split(", ");
        let labels = labels.map(|label| label.trim().trim_matches('`').to_owned());
        Some((format!("sidestream_injector_{name}"), labels.collect()))
    });
    of_sidecar.chain(of_injector).collect()
}

#[test]
fn expressions_use_metrics_and_labels_that_exist() {
    let known = known();
    let mut problems = Vec::new();
    for (owner, expression) in expressions() {
        let mut labels: BTreeSet<&str> = OF_THE_SCRAPE.into();
        for selector in selectors(&expression) {
            let Some(of_metric) = known.get(family(&selector.metric)) else {
                problems.push(format!("{owner}: there is no metric {}", selector.metric));
                continue;
            };
            labels.extend(of_metric.iter().map(String::as_str));
            let is_known = |label: &String| {
                of_metric.contains(label) || OF_THE_SCRAPE.contains(&label.as_str())
            };
            let unknown = selector.labels.iter().filter(|label| !is_known(label));
            problems.extend(
                unknown.map(|label| format!("{owner}: {} has no label {label}", selector.metric)),
            );
        }
        let unknown = grouped(&expression);
        let unknown = unknown
            .iter()
            .filter(|label| !labels.contains(label.as_str()));
        problems.extend(unknown.map(|label| format!("{owner}: no metric has the label {label}")));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Each metric has a panel, so that an operator finds it.
#[test]
fn every_metric_is_on_the_dashboard() {
    // The dashboard's variables are filled from it.
    let elsewhere = ["sidestream_build_info"];
    let panels = panels();
    let shown = panels.iter().flat_map(|(_, text)| selectors(text));
    let shown: BTreeSet<String> = shown.map(|one| family(&one.metric).to_owned()).collect();
    let missing: Vec<_> = known()
        .into_keys()
        .filter(|name| !shown.contains(name) && !elsewhere.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "on no panel: {missing:?}");
}

#[test]
fn panels_of_the_dashboard_have_ids_and_places_of_their_own() {
    let dashboard: Value = serde_json::from_str(&file("k8s/monitoring/dashboard.json")).unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "id of {title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        let columns = at("x")..at("x") + at("w");
        for place in columns.flat_map(|x| (at("y")..at("y") + at("h")).map(move |y| (x, y))) {
            assert!(places.insert(place), "{title} covers another panel");
        }
    }
}

/// Configuration with everything that has metrics of its own.
fn sections(endpoint: &Endpoint, collector: &Collector, issuer: &Issuer) -> String {
    let (url, collector) = (endpoint.url(), collector.url());
    let (application, issuer) = (endpoint.address(), issuer.url());
    format!(
        r#"
authentication:
  providers:
    - {{ name: idp, jwt: {{ issuer: "{issuer}", audience: [sidestream], keys: {{ discovery: true }} }} }}
    - {{ name: app, forward: {{ url: "{url}" }} }}
  tickets: {{ path: /tickets, bucket: tickets, authenticate: [idp] }}
  revocations: {{ bucket: revocations }}
presence: {{ bucket: presence }}
application: {{ address: "http://{application}" }}
tracing: {{ otlp: "{collector}", sample: 1 }}
schemas:
  folder: .
  validate: count
  payloads: [{{ subjects: ["news.>"], schema: news.json }}]
routes:
  - path: /orders
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
    format: cloudevents
    compression: {{}}
  - path: /news
    sources: [{{ subjects: ["news.>"] }}]
    versions:
      current: 2
      supported: [1, 2]
      conversions: [{{ from: 2, to: 1, patch: [{{ op: remove, path: /a }}] }}, {{ from: 1, to: 2, patch: [{{ op: add, path: /b, value: 1 }}] }}]
  - path: /state
    sources: [{{ stream: ORDERS, subjects: ["orders.>"] }}]
    begin: latest
  - path: /private
    authenticate: [idp]
    sources: [{{ subjects: ["private.>"] }}]
  - path: /asked
    authenticate: [app]
    sources: [{{ subjects: ["private.>"] }}]
"#
    )
}

#[tokio::test]
async fn prometheus_evaluates_every_expression_stores_exemplars_and_a_healthy_pod_fires_no_alert() {
    let (nats, collector) = (Nats::start().await, Collector::start().await);
    let endpoint = Endpoint::start(|call| match call.target.as_str() {
        "/page" => Reply::json("{}"),
        _ => Reply::status(200),
    });
    let (endpoint, issuer) = (endpoint.await, Issuer::start().await);
    create_stream(&nats.jetstream().await, "ORDERS", &["orders.>"]).await;
    let sidestream = Sidestream::builder(config(&nats, &sections(&endpoint, &collector, &issuer)))
        .file("news.json", r#"{ "type": "object" }"#)
        .start()
        .await;
    let target = sidestream.url_admin("");
    let target = target.trim_start_matches("http://").trim_end_matches('/');
    let prometheus = Prometheus::start(target, &rules().to_string()).await;

    let mut clients = Vec::new();
    for path in ["/orders", "/news", "/news?version=1", "/asked", "/state"] {
        clients.push(SseClient::get(sidestream.url(path)).connect().await);
    }
    clients[0].positioned().await;
    let publisher = nats.client().await;
    for number in 0..20 {
        for subject in ["orders.a", "news.a"] {
            let payload = format!("{{\"a\":{number}}}");
            publisher.publish(subject, payload.into()).await.unwrap();
        }
    }
    publisher.flush().await.unwrap();
    assert_eq!(clients[0].take(20).await.len(), 20);
    assert_eq!(
        http1::get(&sidestream.url("/private"))
            .await
            .unwrap()
            .status,
        401
    );
    assert_eq!(
        http1::get(&sidestream.url("/page")).await.unwrap().status,
        200
    );

    let ask = async |path: &str, query: &[(&str, &str)]| {
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(query);
        prometheus.get(path, &text.finish()).await
    };
    // The first scrape may come after the deliveries.
    let query = "sum(sidestream_delivery_seconds_count) > 0 and sum(count_over_time(sidestream_delivery_seconds_count[1m])) > 4";
    let delivered = [("query", query)];
    eventually(
        DEADLINE,
        "Prometheus has scraped the deliveries twice",
        || async {
            let found = ask("query", &delivered).await.unwrap();
            !found["result"].as_array().unwrap().is_empty()
        },
    )
    .await;

    // Series of what did not happen here; the first test compares their labels.
    let absent = [
        "sidestream_injector_",
        "sidestream_republish_",
        "sidestream_log_lines",
    ];
    let mut problems = Vec::new();
    for (owner, expression) in expressions() {
        if let Err(error) = ask("query", &[("query", &expression)]).await {
            problems.push(format!("{owner}: {error}: {expression}"));
        }
        for selector in selectors(&expression) {
            if absent.iter().any(|name| selector.metric.starts_with(name)) {
                continue;
            }
            let series = ask("series", &[("match[]", &selector.text)]).await.unwrap();
            if series.as_array().unwrap().is_empty() {
                problems.push(format!("{owner}: no series of {}", selector.text));
            }
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));

    let spans = collector.until("deliver", 1).await;
    let buckets = ("query", "sidestream_delivery_seconds_bucket");
    let range = [buckets, ("start", "0"), ("end", "9999999999")];
    let traces = eventually(DEADLINE, "Prometheus has an exemplar", || async {
        let found = ask("query_exemplars", &range).await.unwrap();
        let series = found.as_array().unwrap().clone();
        let all = series
            .iter()
            .flat_map(|one| one["exemplars"].as_array().unwrap());
        let ids = all.map(|one| one["labels"]["trace_id"].as_str().unwrap().to_owned());
        let ids: Vec<_> = ids.collect();
        (!ids.is_empty()).then_some(ids)
    })
    .await;
    assert!(
        !spans.is_empty() && traces.iter().all(|id| id.len() == 32),
        "{traces:?}"
    );

    let firing = ask("alerts", &[]).await.unwrap();
    let firing = firing["alerts"].as_array().unwrap();
    let firing: Vec<_> = firing
        .iter()
        .filter(|alert| alert["state"] == "firing")
        .collect();
    assert_eq!(json!(firing), json!([]));
}
