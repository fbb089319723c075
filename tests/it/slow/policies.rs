//! Slow client policies of a route: events and gaps of a client that was slow for a while.

use std::time::{Duration, Instant};

use super::fixture::{Fixture, Published, STALL_TIMEOUT, Tally};
use testkit::h2::H2Client;
use testkit::proxy::{Fault, Proxy};
use testkit::sidestream::metric;
use testkit::sse::{End, Event, SseClient};
use testkit::wait::{DEADLINE, eventually};

const LAST: &str = "the last one";

/// Returns true for the last published event.
fn is_number(number: u64) -> impl Fn(&Event) -> bool {
    move |event| event.data.starts_with(&format!("{number} "))
}

async fn assert_counted(fixture: &Fixture, tally: &Tally, route: &str, reason: &str) {
    for tier in ["critical", "normal", "telemetry"] {
        let counted = fixture
            .sidestream
            .metric(
                "sidestream_shed_events_total",
                &[("route", route), ("tier", tier)],
            )
            .await;
        assert_eq!(counted, tally.count_missed(tier) as f64, "{tier}");
    }
    let reason = [("route", route), ("reason", reason)];
    let missed = fixture
        .sidestream
        .metric("sidestream_missed_events_total", &reason)
        .await;
    assert_eq!(missed, tally.missed.len() as f64);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &reason)
            .await,
        tally.gaps as f64
    );
}

/// Client that does not read yet, on the route with load shedding.
pub async fn assert_shed_with_gaps(mut fixture: Fixture, mut client: SseClient) {
    fixture.publish_until_waiting("/shed", 900, 500).await;
    fixture.until_slow("/shed").await;
    assert_eq!(fixture.connection("/shed").await["slow"], true);
    let events = client.until(is_number(fixture.published - 1)).await;
    let tally = Tally::of(&events, 0, "slow");
    assert_eq!(tally.count_missed("critical"), 0);
    assert!(
        tally.count_missed("telemetry") > 0 && tally.count_missed("normal") > 0,
        "{:?}",
        tally.missed
    );
    // Below three quarters of the lag limit, normal events are delivered again, telemetry is not
    // yet.
    let last_normal = tally
        .missed
        .iter()
        .rposition(|missed| missed.tier == "normal")
        .unwrap();
    assert!(
        tally.missed[last_normal + 1..]
            .iter()
            .all(|missed| missed.tier == "telemetry")
    );
    assert!(
        tally.missed.len() > last_normal + 1,
        "telemetry is shed longer"
    );
    assert_counted(&fixture, &tally, "/shed", "slow").await;

    // The client can resume at the position of the gap: later events are delivered again from
    // memory.
    let gap = events
        .iter()
        .find(|event| event.name == "sidestream.gap")
        .unwrap();
    let mut again = SseClient::get(fixture.sidestream.url("/shed"))
        .last_event_id(&gap.id)
        .connect()
        .await;
    let events = again.until(is_number(fixture.published - 1)).await;
    let first = Published::read(&events[0]).number;
    assert!(Tally::of(&events, first, "slow").missed.is_empty());
    assert_eq!(tally.missed[0].number, first);
}

#[tokio::test]
async fn a_slow_client_gets_all_critical_events_in_order_and_exact_gaps_for_shed_ones() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy("/shed").await;
    assert_shed_with_gaps(fixture, client).await;
}

#[tokio::test]
async fn gaps_of_a_client_are_logged_with_its_id_and_counted_by_route() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.lazy("/shed?user=ada").await;
    fixture.publish_until_waiting("/shed", 900, 500).await;
    fixture.until_slow("/shed").await;
    let events = client.until(is_number(fixture.published - 1)).await;
    let tally = Tally::of(&events, 0, "slow");
    assert!(tally.gaps > 0, "{events:?}");
    assert_counted(&fixture, &tally, "/shed", "slow").await;
    let other_route = [("route", "/conflate"), ("reason", "slow")];
    let metrics = fixture.sidestream.admin("/metrics").await.1;
    assert!(metrics.contains(r#"sidestream_gaps_total{reason="slow",route="/conflate"} 0"#));
    assert_eq!(metric(&metrics, "sidestream_gaps_total", &other_route), 0.0);

    let last_id = client.last_event_id().to_owned();
    drop(client);
    let closed = fixture
        .sidestream
        .until_log("the end of the event stream is logged", |line| {
            line["message"] == "event stream closed" && line["client"] == "ada"
        })
        .await;
    assert_eq!(closed["route"], "/shed");
    assert_eq!(closed["gaps"], tally.gaps);
    assert_eq!(closed["missed"], tally.missed.len());
    assert_eq!(closed["position"], last_id);

    let log = fixture.sidestream.log();
    let lines: Vec<_> = log
        .iter()
        .filter(|line| line["message"] == "event stream gap" && line["client"] == "ada")
        .collect();
    let sent: Vec<_> = events
        .iter()
        .filter(|event| event.name == "sidestream.gap")
        .collect();
    assert_eq!(lines.len(), sent.len());
    for (line, gap) in lines.iter().zip(sent) {
        let data: serde_json::Value = serde_json::from_str(&gap.data).unwrap();
        assert_eq!(line["missed"], data["missed"]);
        assert_eq!(line["reason"], data["reason"]);
        assert_eq!(line["position"], gap.id);
        assert_eq!(line["route"], "/shed");
        assert_eq!(line["source"], "ORDERS");
        assert!(line["client.addr"].is_string(), "{line}");
    }
}

#[tokio::test]
async fn a_slow_client_with_few_pending_events_misses_nothing() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.lazy("/shed").await;
    fixture.publish_until_waiting("/shed", 100, 1000).await;
    fixture.until_slow("/shed").await;
    let events = client.until(is_number(fixture.published - 1)).await;
    assert_eq!(events.len() as u64, fixture.published);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        0.0
    );
}

#[tokio::test]
async fn conflation_keeps_the_newest_event_of_each_subject_after_one_gap() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.lazy("/conflate").await;
    fixture.publish_until_waiting("/conflate", 900, 1000).await;
    fixture.until_slow("/conflate").await;
    let waiting = fixture.connection("/conflate").await["lag"]["events"]
        .as_u64()
        .unwrap();
    let first = fixture.published - waiting;
    let events = client.until(is_number(fixture.published - 1)).await;
    let tally = Tally::of(&events, 0, "conflated");
    assert_eq!(tally.gaps, 1);
    assert_eq!(tally.count_missed("critical"), 0);
    assert_eq!(
        tally.missed.first().unwrap().number,
        first + u64::from(Published::of(first).tier == "critical")
    );
    let gap = events
        .iter()
        .position(|event| event.name == "sidestream.gap")
        .unwrap();
    assert!(
        events[..gap]
            .iter()
            .all(|event| Published::read(event).number <= first),
        "the gap is before the events after the loss"
    );
    // One write batch is conflated: 32 KiB. Missing events in it were not the newest of their
    // subject.
    let newest = |one: &Published| one.number + 10 >= fixture.published;
    assert!(
        !tally.missed.iter().any(newest),
        "the newest of each subject is delivered"
    );
    assert_counted(&fixture, &tally, "/conflate", "conflated").await;
}

#[tokio::test]
async fn the_disconnect_policy_skips_no_event() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.lazy("/disconnect").await;
    fixture
        .publish_until_waiting("/disconnect", 900, 1000)
        .await;
    fixture.until_slow("/disconnect").await;
    let events = client.until(is_number(fixture.published - 1)).await;
    assert_eq!(events.len() as u64, fixture.published);
}

#[tokio::test]
async fn pending_events_of_both_sources_count() {
    let mut fixture = Fixture::start().await;
    let mut client = fixture.lazy("/both").await;
    fixture.publish_until_waiting("/both", 900, 1000).await;
    fixture.until_slow("/both").await;
    fixture.publish_core(LAST).await;
    let mut events = Vec::new();
    let mut said = false;
    while !said
        || events
            .last()
            .is_none_or(|event| !is_number(fixture.published - 1)(event))
    {
        let event = client.next().await;
        assert_eq!(event.id.split('.').count(), 2, "{event:?}");
        if event.data == LAST {
            said = true;
        } else {
            events.push(event);
        }
    }
    let tally = Tally::of(&events, 0, "slow");
    assert!(tally.count_missed("critical") == 0 && tally.count_missed("telemetry") > 0);
    assert_counted(&fixture, &tally, "/both", "slow").await;
}

/// Client that does not read yet, on the route that closes at a hundred pending events.
pub async fn assert_closed_with_event(mut fixture: Fixture, mut client: SseClient) {
    fixture.publish_until_waiting("/strict", 101, 4000).await;
    // It reads again within the second of the close grace period.
    eventually(DEADLINE, "it is to end", || async {
        fixture.connection("/strict").await["state"] == "closed"
    })
    .await;
    assert_eq!(client.closed().await, End::Terminated);
    let mut events = client.rest();
    let close = events.pop().unwrap();
    assert_eq!(
        (&*close.name, &*close.data),
        ("sidestream.close", r#"{"reason":"slow","retry":5000}"#)
    );
    assert_eq!(client.retry(), Some(5000));
    fixture.until_ended("/strict", 1.0).await;
    let before = Tally::of(&events, 0, "slow");
    assert!(before.missed.is_empty(), "nothing is skipped here");
    let back =
        SseClient::get(fixture.sidestream.url("/strict")).last_event_id(client.last_event_id());
    let mut client = back.connect().await;
    let events = client.until(is_number(fixture.published - 1)).await;
    assert!(
        Tally::of(&events, before.given.len() as u64, "slow")
            .missed
            .is_empty()
    );
}

#[tokio::test]
async fn a_slow_client_above_the_lag_limit_is_closed_and_resumes_without_loss() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy("/strict").await;
    assert_closed_with_event(fixture, client).await;
}

/// Same as [`assert_closed_with_event`], for a client that never reads.
pub async fn is_reset(mut fixture: Fixture, mut client: SseClient) {
    fixture.publish_until_waiting("/strict", 101, 4000).await;
    fixture.until_ended("/strict", 1.0).await;
    let line = fixture
        .sidestream
        .until_message("event stream closed")
        .await;
    assert_eq!(
        (&line["reason"], &line["level"]),
        (&"slow".into(), &"WARN".into())
    );
    // Stall timeout, up to a second until the next check, a second of close grace period.
    let lasted = line["seconds"].as_f64().unwrap();
    assert!(lasted < STALL_TIMEOUT.as_secs_f64() + 4.0, "{lasted}");
    assert_eq!(client.closed().await, End::Reset);
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_streams", &[("route", "/strict")])
            .await,
        0.0
    );
}

#[tokio::test]
async fn a_client_that_never_reads_is_reset_a_second_after_its_close() {
    let fixture = Fixture::start().await;
    let client = fixture.lazy("/strict").await;
    is_reset(fixture, client).await;
}

/// Two event streams of one connection, one of them never read.
pub async fn assert_reset_alone(mut fixture: Fixture, mut connection: H2Client) {
    let mut stalled = connection.get("/strict").await;
    let mut reading = connection.get("/usual").await;
    for _ in 0..6 {
        fixture.publish(50, 4000).await;
        reading.until(is_number(fixture.published - 1)).await;
    }
    fixture.until_ended("/strict", 1.0).await;
    assert_eq!(stalled.closed().await, End::StreamReset(8), "CANCEL");
    assert!(!connection.going_away());
    fixture.publish(1, 10).await;
    reading.until(is_number(fixture.published - 1)).await;
}

#[tokio::test]
async fn one_stalled_stream_of_an_http2_connection_is_reset_and_the_others_continue() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2().await;
    assert_reset_alone(fixture, connection).await;
}

/// HTTP/2 stream on the route with load shedding.
pub async fn assert_shed_like_a_socket(mut fixture: Fixture, mut connection: H2Client) {
    let mut client = connection.get("/shed").await;
    client
        .until_seen("the client has a position", |parser| {
            !parser.last_event_id().is_empty()
        })
        .await;
    fixture.publish_until_waiting("/shed", 900, 1000).await;
    fixture.until_slow("/shed").await;
    let events = client.until(is_number(fixture.published - 1)).await;
    let tally = Tally::of(&events, 0, "slow");
    assert_eq!(tally.count_missed("critical"), 0);
    let missed = [
        tally.count_missed("telemetry"),
        tally.count_missed("normal"),
    ];
    assert!(missed.iter().all(|count| *count > 0), "{missed:?}");
    assert_counted(&fixture, &tally, "/shed", "slow").await;
}

#[tokio::test]
async fn a_slow_http2_stream_is_shed_with_gaps_like_a_socket() {
    let fixture = Fixture::start().await;
    let connection = fixture.http2().await;
    assert_shed_like_a_socket(fixture, connection).await;
}

#[tokio::test]
async fn a_large_event_over_a_slow_connection_is_no_stall() {
    let mut fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    // A write batch takes a tenth of the stall timeout of 2 s, the event twice the timeout.
    proxy.set(Fault {
        bytes_per_second: 220_000,
        ..Fault::default()
    });
    let url = format!("http://{}", proxy.address());
    let mut one = SseClient::get(format!("{url}/usual")).connect().await;
    let mut connection = H2Client::connect(&url).await;
    let mut other = connection.get("/usual").await;
    fixture
        .sidestream
        .until_metric("sidestream_streams", &[], |streams| streams == 2.0)
        .await;
    fixture.publish(1, 900_000).await;
    fixture.publish(1, 10).await;
    let began = Instant::now();
    let watch = async {
        loop {
            let slow = fixture
                .sidestream
                .metric("sidestream_slow_clients", &[])
                .await;
            assert_eq!(slow, 0.0, "after {:?}", began.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = watch => {}
        _ = async { tokio::join!(one.take(2), other.take(2)) } => {}
    }
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "the line was fast: {:?}",
        began.elapsed()
    );
}

#[tokio::test]
#[ignore = "takes a minute: ten kilobytes a second"]
async fn at_ten_kilobytes_per_second_all_critical_events_arrive_in_order_and_a_reconnect_resumes() {
    let mut fixture = Fixture::start().await;
    let proxy = Proxy::start(fixture.sidestream.address()).await;
    proxy.set(Fault {
        bytes_per_second: 10_000,
        ..Fault::default()
    });
    let url = format!("http://{}/tiers", proxy.address());
    let mut client = SseClient::get(url).receive_buffer(4096).connect().await;
    client
        .until_seen("the client has a position", |parser| {
            !parser.last_event_id().is_empty()
        })
        .await;
    fixture.publish_until_waiting("/tiers", 900, 300).await;
    let most = fixture.published - 50;
    let mut events = client
        .until(|event| event.name == "message" && Published::read(event).number >= most)
        .await;
    let shed = fixture
        .sidestream
        .metric("sidestream_shed_events_total", &[])
        .await;
    // More than the lag limit at once: the event stream is closed.
    fixture.publish(1700, 300).await;
    while let Some(event) = client.next_within(DEADLINE).await {
        events.push(event);
    }
    fixture.until_ended("/tiers", 1.0).await;
    let closed = events
        .pop_if(|event| event.name == "sidestream.close")
        .is_some();
    while events.pop_if(|event| event.name != "message").is_some() {}
    let tally = Tally::of(&events, 0, "slow");
    println!(
        "received {}, missed {} in {} gaps, shed {shed} before the close, close event: {closed}",
        tally.given.len(),
        tally.missed.len(),
        tally.gaps
    );
    assert_eq!(tally.count_missed("critical"), 0);
    assert!(tally.count_missed("telemetry") > 0);
    let back =
        SseClient::get(fixture.sidestream.url("/tiers")).last_event_id(client.last_event_id());
    let events = back
        .connect()
        .await
        .until(is_number(fixture.published - 1))
        .await;
    let next = tally.given.last().unwrap().number + 1;
    assert!(
        Tally::of(&events, next, "slow").missed.is_empty(),
        "everything from {next} on"
    );
}
