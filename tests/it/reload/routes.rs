//! Reloads that change the subjects of a followed stream: open event streams are not affected, and
//! the old routes serve new clients until the new ones replace them.

use std::time::{Duration, Instant};

use async_nats::jetstream::{Context, stream};
use serde_json::Value;
use tokio::time::sleep;

use super::{ask_reload, create_stream, publish};
use testkit::h2::H2Client;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;

#[tokio::test]
async fn wider_filters_close_nothing_and_lose_nothing() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>", "b.>"]).await;
    let text = |subjects: &str| {
        config(
            &nats,
            &format!(
                "routes:\n  - path: /e\n    sources: [{{ stream: A, subjects: [{subjects}] }}]"
            ),
        )
    };
    let sidestream = Sidestream::start(text("\"a.>\"")).await;
    let mut old = SseClient::get(sidestream.url("/e")).connect().await;
    old.positioned().await;
    let mut h2 = H2Client::connect(sidestream.url("/")).await;
    let mut multiplexed = h2.get("/e").await;
    multiplexed.positioned().await;
    publish(&context, "a.x", "1").await;
    assert_eq!(old.next().await.data, "1");
    assert_eq!(multiplexed.next().await.data, "1");

    sidestream.rewrite_config(&text("\"a.>\", \"b.>\""));
    let reloading = ask_reload(&sidestream);
    let publishing = async {
        for number in 2..=30 {
            publish(&context, "a.x", &number.to_string()).await;
        }
    };
    let (answer, ()) = tokio::join!(reloading, publishing);
    assert_eq!(answer["ok"], true, "{answer}");

    let mut new = SseClient::get(sidestream.url("/e")).connect().await;
    new.positioned().await;
    let mut resumed = SseClient::get(sidestream.url("/e"))
        .last_event_id(old.last_event_id())
        .connect()
        .await;
    publish(&context, "b.x", "wide").await;
    publish(&context, "a.x", "31").await;
    let expected: Vec<String> = (2..=31).map(|number| number.to_string()).collect();
    let data = |events: Vec<testkit::sse::Event>| {
        events
            .into_iter()
            .map(|event| event.data)
            .collect::<Vec<_>>()
    };
    assert_eq!(
        data(old.take(30).await),
        expected,
        "an open client keeps its filter"
    );
    assert_eq!(data(multiplexed.take(30).await), expected);
    // Some earlier events may still be in transit to the new consumer when a client begins.
    let begun = data(new.until(|event| event.data == "31").await);
    assert!(
        begun.ends_with(&["wide".to_owned(), "31".to_owned()]),
        "{begun:?}"
    );
    let mut wider = expected;
    wider.insert(29, "wide".into());
    assert_eq!(
        data(resumed.take(31).await),
        wider,
        "a resumed client gets earlier events, and the wider filter from then on"
    );
    assert_eq!(sidestream.metric("sidestream_gaps_total", &[]).await, 0.0);
    assert_eq!(
        sidestream
            .metric("sidestream_nats_reconnects_total", &[])
            .await,
        0.0
    );

    // Without readers, the old consumer is deleted.
    drop((old, multiplexed, h2));
    let stream = context.get_stream("A").await.unwrap();
    super::eventually(super::DEADLINE, "one consumer is left", || async {
        stream
            .get_info()
            .await
            .is_ok_and(|info| info.state.consumer_count == 1)
    })
    .await;
    publish(&context, "b.x", "after").await;
    assert_eq!(data(new.take(1).await), ["after"]);
}

/// Configuration with a route `/NAME` for each of these streams.
fn routes(nats: &Nats, names: &[&str]) -> String {
    let routes: String = names
        .iter()
        .map(|name| {
            let subject = name.to_lowercase();
            format!(
                "  - path: /{name}\n    sources: [{{ stream: {name}, subjects: [\"{subject}.>\"] }}]\n"
            )
        })
        .collect();
    config(nats, &format!("routes:\n{routes}"))
}

/// Reloads, and asserts that the pod is ready all the time.
async fn reload_while_ready(sidestream: &Sidestream) {
    let mut probes = 0;
    let probing = async {
        loop {
            let (status, body) = sidestream.admin("/health/ready").await;
            assert_eq!(status, 200, "probe {probes}: {body}");
            probes += 1;
        }
    };
    let answer: Value = tokio::select! {
        biased;
        () = probing => unreachable!("the probes end with the reload"),
        answer = ask_reload(sidestream) => answer,
    };
    assert_eq!(answer["ok"], true, "{answer}");
}

#[tokio::test]
async fn reloaded_route_with_a_missing_stream_degrades_its_check_and_the_pod_stays_ready() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    let sidestream = Sidestream::start(routes(&nats, &["A"])).await;
    let mut client = SseClient::get(sidestream.url("/A")).connect().await;
    client.positioned().await;
    sidestream.rewrite_config(&routes(&nats, &["A", "B"]));
    reload_while_ready(&sidestream).await;
    assert_eq!(sidestream.admin("/health/ready").await.0, 200);
    let health = sidestream.admin_json("/health").await;
    let check = &health["checks"]["stream:B"];
    assert_eq!(check["status"], "degraded", "{check}");
    let why = check["message"].to_string();
    assert!(
        why.contains("stream B: JetStream has no such stream"),
        "{why}"
    );
    publish(&context, "a.x", "undisturbed").await;
    assert_eq!(client.next().await.data, "undisturbed");
    assert_eq!(
        SseClient::get(sidestream.url("/B"))
            .connect()
            .await
            .status(),
        503
    );
    create_stream(&context, "B", &["b.>"]).await;
    super::eventually(super::DEADLINE, "the new stream is served", || async {
        SseClient::get(sidestream.url("/B"))
            .connect()
            .await
            .status()
            == 200
    })
    .await;

    // From now on it is a stream like any other.
    context.delete_stream("B").await.unwrap();
    super::eventually(super::DEADLINE, "readiness fails without it", || async {
        sidestream.admin("/health/ready").await.0 == 503
    })
    .await;
}

#[tokio::test]
async fn pod_stays_ready_without_a_stream_that_only_open_event_streams_read() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    create_stream(&context, "B", &["b.>"]).await;
    let sidestream = Sidestream::start(routes(&nats, &["A", "B"])).await;
    let mut client = SseClient::get(sidestream.url("/B")).connect().await;
    client.positioned().await;
    sidestream.rewrite_config(&routes(&nats, &["A"]));
    reload_while_ready(&sidestream).await;
    context.delete_stream("B").await.unwrap();
    super::eventually(super::DEADLINE, "its check reports it", || async {
        assert_eq!(sidestream.admin("/health/ready").await.0, 200);
        let health = sidestream.admin_json("/health").await;
        health["checks"]["stream:B"]["status"] == "degraded"
    })
    .await;
}

#[tokio::test]
async fn pod_stays_ready_while_a_reload_follows_a_stream_in_a_new_way() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    for number in 0..500 {
        publish(&context, "a.x", &number.to_string()).await;
    }
    let text = |subject: &str| routes(&nats, &["A"]).replace("a.>", subject);
    let sidestream = Sidestream::start(text("a.>")).await;
    for subject in ["a.x", "a.*", "a.x.>", "a.>"] {
        sidestream.rewrite_config(&text(subject));
        reload_while_ready(&sidestream).await;
    }
}

#[tokio::test]
async fn reload_does_not_wait_for_a_missing_stream_that_it_does_not_change() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    create_stream(&context, "C", &["c.>"]).await;
    let sidestream = Sidestream::builder(routes(&nats, &["A", "B"]))
        .without_waiting()
        .start()
        .await;
    super::eventually(super::DEADLINE, "the missing stream is known", || async {
        let health = sidestream.admin_json("/health").await;
        let why = health["checks"]["stream:B"]["message"].to_string();
        why.contains("no such stream")
    })
    .await;
    sidestream.rewrite_config(&routes(&nats, &["A", "B", "C"]));
    let started = Instant::now();
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(
        SseClient::get(sidestream.url("/C"))
            .connect()
            .await
            .status(),
        200
    );
    // The pod was never ready: its missing stream fails readiness, whatever is reloaded.
    assert_eq!(sidestream.admin("/health/ready").await.0, 503);
    sidestream.rewrite_config(&routes(&nats, &["A", "D"]));
    assert_eq!(ask_reload(&sidestream).await["ok"], true);
    let health = sidestream.admin_json("/health").await;
    assert_eq!(health["checks"]["stream:D"]["status"], "failing");
}

#[tokio::test]
async fn old_routes_serve_new_clients_until_a_reload_is_applied() {
    let nats = Nats::start().await;
    let context = nats.jetstream().await;
    create_stream(&context, "A", &["a.>"]).await;
    let republishing = stream::Config {
        name: "R".to_owned(),
        subjects: vec!["r.>".to_owned()],
        republish: Some(stream::Republish {
            source: "r.>".to_owned(),
            destination: "live.>".to_owned(),
            headers_only: false,
        }),
        ..stream::Config::default()
    };
    context.create_stream(republishing).await.unwrap();
    let text = |token: &str, more: &str| {
        let routes = format!(
            "routes:
  - {{ path: /shared, sources: [{{ stream: A, subjects: [\"a.{token}\"] }}] }}
  - {{ path: /republish, sources: [{{ stream: R, subjects: [\"r.{token}\"], delivery: republish }}] }}
{more}"
        );
        config(&nats, &routes)
    };
    let sidestream = Sidestream::start(text("old", "")).await;
    assert_new_clients_receive(&sidestream, &context, "old").await;

    // The reload waits for the missing stream, longer than retired sources without clients live.
    let missing = "  - { path: /missing, sources: [{ stream: B, subjects: [\"b.>\"] }] }";
    sidestream.rewrite_config(&text("new", missing));
    let mut checks = 0;
    let checking = async {
        while checks < u32::MAX {
            assert_new_clients_receive(&sidestream, &context, "old").await;
            checks += 1;
            // No client for a while: only the old routes use the old sources.
            sleep(Duration::from_millis(300)).await;
        }
    };
    let answer = tokio::select! {
        answer = ask_reload(&sidestream) => answer,
        () = checking => unreachable!("the checks end with the reload"),
    };
    assert!(checks >= 3, "the reload waited: {checks}");
    assert_eq!(answer["ok"], true, "{answer}");
    assert_new_clients_receive(&sidestream, &context, "new").await;
    let stream = context.get_stream("A").await.unwrap();
    super::eventually(super::DEADLINE, "the old consumer is deleted", || async {
        stream
            .get_info()
            .await
            .is_ok_and(|info| info.state.consumer_count == 1)
    })
    .await;
}

/// Asserts that a new client of each delivery receives what is published now.
async fn assert_new_clients_receive(sidestream: &Sidestream, context: &Context, token: &str) {
    for (path, prefix) in [("/shared", "a"), ("/republish", "r")] {
        let mut client = SseClient::get(sidestream.url(path)).connect().await;
        assert_eq!(client.status(), 200, "{path} of the {token} routes");
        client.positioned().await;
        let sent = context.publish(format!("{prefix}.{token}"), "event".into());
        sent.await.unwrap().await.unwrap();
        assert_eq!(client.next().await.data, "event");
    }
}
