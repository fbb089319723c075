//! A changed configuration, applied while clients are connected: none of them is closed and none
//! misses an event.

mod certificates;
mod routes;
mod signals;

use std::path::PathBuf;

use async_nats::jetstream;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually, within};

/// Route of core subjects.
fn route(path: &str, subject: &str) -> String {
    format!("  - path: {path}\n    sources: [{{ subjects: [\"{subject}\"] }}]\n")
}

/// Sends `reload` to the control socket; returns the response.
async fn ask_reload(sidestream: &Sidestream) -> Value {
    let started = sidestream.until_message("admin listening").await;
    let socket = started["control"].as_str().unwrap();
    let mut connection = BufReader::new(UnixStream::connect(socket).await.unwrap());
    connection.write_all(b"reload\n").await.unwrap();
    let mut line = String::new();
    within(
        DEADLINE,
        "the reload is answered",
        connection.read_line(&mut line),
    )
    .await
    .unwrap();
    serde_json::from_str(&line).unwrap()
}

async fn create_stream(context: &jetstream::Context, name: &str, subjects: &[&str]) {
    let subjects = subjects.iter().map(ToString::to_string).collect();
    let stream = jetstream::stream::Config {
        name: name.into(),
        subjects,
        ..Default::default()
    };
    context.create_stream(stream).await.unwrap();
}

async fn publish(context: &jetstream::Context, subject: &'static str, data: &str) {
    context
        .publish(subject, data.to_owned().into())
        .await
        .unwrap()
        .await
        .unwrap();
}

/// Publishes to core NATS; returns when the server has the message.
async fn publish_core(nats: &Nats, subject: &'static str, data: &'static str) {
    let client = nats.client().await;
    client.publish(subject, data.into()).await.unwrap();
    client.flush().await.unwrap();
}

/// A configuration as the kubelet mounts it: the file is a link to `..data/`, which is a link to a
/// dated folder.
struct Mount {
    folder: tempfile::TempDir,
    swaps: u32,
}

impl Mount {
    fn new(text: &str) -> Self {
        let mut mount = Self {
            folder: tempfile::tempdir().unwrap(),
            swaps: 0,
        };
        mount.swap(text);
        std::os::unix::fs::symlink("..data/sidecar.yaml", mount.file()).unwrap();
        mount
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("sidecar.yaml")
    }

    /// Updates as the kubelet does: new folder, new link, rename over the old link, removal of the
    /// old folder.
    fn swap(&mut self, text: &str) {
        self.swaps += 1;
        let root = self.folder.path();
        let dated = format!("..2026_01_01_{}", self.swaps);
        std::fs::create_dir(root.join(&dated)).unwrap();
        std::fs::write(root.join(&dated).join("sidecar.yaml"), text).unwrap();
        std::os::unix::fs::symlink(&dated, root.join("..data_tmp")).unwrap();
        std::fs::rename(root.join("..data_tmp"), root.join("..data")).unwrap();
        if self.swaps > 1 {
            std::fs::remove_dir_all(root.join(format!("..2026_01_01_{}", self.swaps - 1))).unwrap();
        }
    }
}

#[tokio::test]
async fn a_swapped_config_map_adds_a_route_while_a_stream_stays_open() {
    let nats = Nats::start().await;
    let one = route("/one", "one.>");
    let text = |routes: &str| config(&nats, &format!("routes:\n{routes}"));
    let mut mount = Mount::new(&text(&one));
    // The configuration file of the test kit is a link to the mounted one.
    let sidestream = Sidestream::builder(text(&one))
        .linked_to(&mount.file())
        .start()
        .await;
    let mut client = SseClient::get(sidestream.url("/one")).connect().await;
    client.positioned().await;
    assert_eq!(
        SseClient::get(sidestream.url("/two"))
            .connect()
            .await
            .status(),
        404
    );

    mount.swap(&text(&format!("{one}{}", route("/two", "two.>"))));
    let changed = [("result", "changed")];
    sidestream
        .until_metric("sidestream_config_reloads_total", &changed, |reloads| {
            reloads == 1.0
        })
        .await;
    let mut added = SseClient::get(sidestream.url("/two")).connect().await;
    assert_eq!(added.status(), 200);
    let publisher = nats.client().await;
    publisher.publish("one.a", "old".into()).await.unwrap();
    publisher.publish("two.a", "new".into()).await.unwrap();
    assert_eq!(client.next().await.data, "old");
    assert_eq!(added.next().await.data, "new");

    // A removed route accepts no new clients; its open ones remain.
    mount.swap(&text(&one));
    sidestream
        .until_metric("sidestream_config_reloads_total", &changed, |reloads| {
            reloads == 2.0
        })
        .await;
    assert_eq!(
        SseClient::get(sidestream.url("/two"))
            .connect()
            .await
            .status(),
        404
    );
    publisher.publish("two.a", "still".into()).await.unwrap();
    assert_eq!(added.next().await.data, "still");
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_and_is_reported_everywhere_with_its_location() {
    let nats = Nats::start().await;
    let good = config(&nats, &format!("routes:\n{}", route("/one", "one.>")));
    let mut sidestream = Sidestream::start(good.clone()).await;
    let bad = good.replace("    sources:", "    hartbeat: 5s\n    sources:");
    sidestream.rewrite_config(&bad);
    sidestream.signal(Signal::HUP);
    let refused = [("result", "refused")];
    sidestream
        .until_metric("sidestream_config_reloads_total", &refused, |reloads| {
            reloads >= 1.0
        })
        .await;

    let line = 1 + bad
        .lines()
        .position(|line| line.contains("hartbeat"))
        .unwrap();
    let place = format!("sidecar.yaml:{line}:");
    let told = sidestream
        .until_log("the log has the place", |line| {
            line["level"] == "WARN" && line.to_string().contains(&place)
        })
        .await;
    assert!(
        told.to_string().contains("`heartbeat`"),
        "with the nearest known key: {told}"
    );
    let health = sidestream.admin_json("/health").await;
    assert_eq!(
        (
            health["status"].as_str(),
            health["checks"]["config"]["status"].as_str()
        ),
        (Some("degraded"), Some("degraded"))
    );
    let why = health["checks"]["config"]["message"].to_string();
    assert!(why.contains("rejected") && why.contains(&place), "{why}");
    let shown = sidestream.admin_json("/config").await;
    assert_eq!(shown["reload"]["result"], "refused");
    assert!(
        shown["reload"]["problems"].to_string().contains("hartbeat"),
        "{shown}"
    );
    assert_eq!(
        shown["effective"]["routes"][0]["path"], "/one",
        "what is in effect is shown"
    );
    assert_eq!(
        sidestream.admin("/health/ready").await.0,
        200,
        "a bad file is no reason to lose the pod"
    );
    assert_eq!(
        SseClient::get(sidestream.url("/one"))
            .connect()
            .await
            .status(),
        200
    );
    let answer = ask_reload(&sidestream).await;
    assert_eq!(answer["ok"], false);
    assert!(answer.to_string().contains(&place), "{answer}");

    sidestream.rewrite_config(&good);
    let answer = ask_reload(&sidestream).await;
    assert_eq!(answer["ok"], true, "{answer}");
    assert_eq!(sidestream.admin_json("/health").await["status"], "ok");
    assert_eq!(
        sidestream.admin_json("/config").await["reload"]["result"],
        "applied"
    );
}

#[tokio::test]
async fn a_signal_and_the_control_socket_reload_at_once() {
    let nats = Nats::start().await;
    let text = |path: &str| config(&nats, &format!("routes:\n{}", route(path, "a.>")));
    let mut sidestream = Sidestream::start(text("/one")).await;
    let status = |path: &'static str| {
        let url = sidestream.url(path);
        async move { SseClient::get(url).connect().await.status() }
    };
    sidestream.rewrite_config(&text("/two"));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    assert_eq!(
        (status("/one").await, status("/two").await),
        (404, 200),
        "when the answer is there it is applied"
    );
    let url = sidestream.url("/three");
    sidestream.rewrite_config(&text("/three"));
    sidestream.signal(Signal::HUP);
    eventually(DEADLINE, "the signal has applied it", || async {
        SseClient::get(&url).connect().await.status() == 200
    })
    .await;
    assert!(sidestream.running());
}

#[tokio::test]
async fn keys_that_need_a_restart_are_named_and_the_others_are_applied() {
    let nats = Nats::start().await;
    let routes = format!("routes:\n{}", route("/one", "one.>"));
    let sidestream = Sidestream::start(config(&nats, &routes)).await;
    let more = format!(
        "{routes}{}log: {{ format: text, filter: debug }}",
        route("/two", "two.>")
    );
    let other = config(&nats, &more).replace(
        "admin:\n  address: 127.0.0.1:0",
        "admin:\n  address: 127.0.0.1:1",
    );
    sidestream.rewrite_config(&other);
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    let shown = sidestream.admin_json("/config").await;
    let restart = shown["reload"]["needs_restart"].to_string();
    assert!(
        restart.contains("admin.address") && restart.contains("log.format"),
        "{restart}"
    );
    let health = sidestream.admin_json("/health").await;
    let why = health["checks"]["config"]["message"].to_string();
    assert!(
        why.contains("restart") && why.contains("admin.address"),
        "{why}"
    );
    let line = sidestream.until_message("configuration applied").await;
    assert!(line.to_string().contains("admin.address"), "{line}");
    assert_eq!(
        SseClient::get(sidestream.url("/two"))
            .connect()
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn a_warning_is_logged_shown_and_degrades_the_check_until_it_is_fixed() {
    let nats = Nats::start().await;
    let text = |path: &str| config(&nats, &format!("routes:\n{}", route(path, "one.>")));
    let sidestream = Sidestream::start(text("/one/*.json")).await;
    let told = sidestream.until_message("configuration warning").await;
    assert!(
        told["level"] == "WARN" && told.to_string().contains("ordinary character"),
        "{told}"
    );
    let check = sidestream.admin_json("/health").await["checks"]["config"].clone();
    assert!(
        check["status"] == "degraded" && check["message"].to_string().contains("sidecar.yaml:"),
        "{check}"
    );
    assert_eq!(
        sidestream.admin_json("/config").await["warnings"][0]["line"],
        8
    );
    sidestream.rewrite_config(&text("/one"));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    assert_eq!(
        sidestream.admin_json("/health").await["checks"]["config"]["status"],
        "ok"
    );
    assert_eq!(
        sidestream.admin_json("/config").await["warnings"],
        serde_json::json!([])
    );
}

#[tokio::test]
async fn the_log_filter_and_the_limits_change_at_once() {
    let nats = Nats::start().await;
    let text = |rest: &str| config(&nats, &format!("routes:\n{}{rest}", route("/one", "one.>")));
    let sidestream =
        Sidestream::start(text("log: { filter: info }\nlimits: { connections: 100 }")).await;
    let client = SseClient::get(sidestream.url("/one")).connect().await;
    assert_eq!(
        SseClient::get(sidestream.url("/none"))
            .connect()
            .await
            .status(),
        404
    );
    assert!(!sidestream.log().iter().any(|line| line["level"] == "DEBUG"));

    sidestream.rewrite_config(&text("log: { filter: debug }\nlimits: { connections: 1 }"));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    let refused = SseClient::get(sidestream.url("/one")).connect().await;
    assert_eq!(
        (client.status(), refused.status()),
        (200, 503),
        "open clients remain, a new one is above the limit"
    );
    sidestream
        .until_log("debug lines", |line| {
            line["level"] == "DEBUG" && line["message"] == "request rejected"
        })
        .await;

    sidestream.rewrite_config(&text(
        "log: { filter: info }\nlimits: { connections: 100, feeds: 1 }",
    ));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    drop(refused);
    assert_eq!(
        SseClient::get(sidestream.url("/one"))
            .connect()
            .await
            .status(),
        200
    );
}

#[tokio::test]
async fn secrets_are_neither_in_the_served_configuration_nor_in_the_log() {
    let nats = Nats::builder()
        .config("authorization { user: app, password: s3cret-one }")
        .start()
        .await;
    let servers = format!("servers: [\"{}\"]", nats.url());
    let routes = format!(
        "routes:\n{}log: {{ filter: debug }}",
        route("/one", "one.>")
    );
    let text = config(&nats, &routes).replace(
        &servers,
        &format!("{servers}\n  user: app\n  password: \"${{SECRET}}\""),
    );
    let sidestream = Sidestream::builder(text.clone())
        .env("SECRET", "s3cret-one")
        .start()
        .await;
    sidestream.rewrite_config(&text.replace("${SECRET}", "s3cret-two"));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    let in_address = text
        .replace("nats://", "nats://app:s3cret-three@")
        .replace("\n  user: app\n  password: \"${SECRET}\"", "");
    sidestream.rewrite_config(&in_address);
    ask_reload(&sidestream).await;
    sidestream.rewrite_config(&text.replace("\"${SECRET}\"", "[\"s3cret-four\"]"));
    ask_reload(&sidestream).await;
    // At a misspelt key, at an anchor, in a text that cannot be parsed.
    for wrong in [
        "pasword: s3cret-five",
        "password: &p s3cret-six\n  x: *p",
        "pw: \"s3cret-seven",
    ] {
        sidestream.rewrite_config(&text.replace("password: \"${SECRET}\"", wrong));
        assert_eq!(ask_reload(&sidestream).await["ok"], false);
        for path in ["/config", "/health", "/connections", "/metrics"] {
            let (_, body) = sidestream.admin(path).await;
            assert!(!body.contains("s3cret"), "{path}: {body}");
        }
    }
    let told: Vec<_> = sidestream
        .output()
        .into_iter()
        .filter(|line| line.contains("s3cret"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
}
