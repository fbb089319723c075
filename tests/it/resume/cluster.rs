//! Cluster of three nats-servers: the stream leader steps down, then crashes, while clients read
//! and resume.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::jetstream::{self, stream};

use super::reader::{Reader, Via};
use super::{subject, texts};
use testkit::nats::{Cluster, publish};
use testkit::sidestream::{Sidestream, config_for};
use testkit::wait::{RECOVERY, eventually, within};

const STORED: u64 = 300;

/// Name of the stream leader, if there is a leader.
async fn leader(stream: &stream::Stream) -> Option<String> {
    stream
        .get_info()
        .await
        .ok()?
        .cluster?
        .leader
        .filter(|leader| !leader.is_empty())
}

/// Waits until a server other than this one leads the stream.
async fn leader_but(stream: &stream::Stream, last: &str) -> String {
    eventually(RECOVERY, "the stream has another leader", || async {
        leader(stream).await.filter(|it| it != last)
    })
    .await
}

/// Resumes a client at a position in the archive and checks every number up to the end.
async fn reading(sidestream: &Sidestream, via: Via, id: &str) -> Reader {
    let reader = Reader::open(sidestream, via, "/all", &[("last-event-id", id)]).await;
    assert_eq!(reader.status(), 200);
    reader
}

#[tokio::test]
async fn a_leader_step_down_and_a_leader_crash_lose_no_event() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let jetstream = jetstream::new(client.clone());
    let config = stream::Config {
        name: "A".into(),
        subjects: vec!["a.>".into()],
        num_replicas: 3,
        ..Default::default()
    };
    let stream = eventually(RECOVERY, "the stream is created", || async {
        jetstream.create_stream(config.clone()).await.ok()
    })
    .await;
    for number in 1..=STORED {
        publish(&jetstream, &subject(number), [number.to_string()]).await;
    }
    let route = "routes: [{ path: /all, sources: [{ stream: A, subjects: [\"a.>\"] }], window: { events: 20 } }]";
    let sidestream = Sidestream::start(config_for(&cluster.urls(), route)).await;
    let mut first = Reader::open(&sidestream, Via::Http1, "/all", &[]).await;

    let stop = Arc::new(AtomicBool::new(false));
    let publishing = tokio::spawn({
        let (jetstream, stop) = (jetstream.clone(), Arc::clone(&stop));
        async move {
            let mut last = STORED;
            while !stop.load(Ordering::Relaxed) {
                last += 1;
                publish(&jetstream, &subject(last), [last.to_string()]).await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            last
        }
    });
    let event = within(RECOVERY, "live events arrive", first.next()).await;
    let tag = event.id.split('-').next().unwrap().to_owned();
    let from_live: u64 = event.data.parse().unwrap();
    let mut readers = vec![(from_live, first)];
    let mut last_leader = leader_but(&stream, "").await;
    for change in ["step down", "die"] {
        for (via, after) in [(Via::Http1, 0), (Via::H2, 100)] {
            readers.push((
                after,
                reading(&sidestream, via, &format!("{tag}-{after}")).await,
            ));
        }
        match change {
            "step down" => {
                let answer = client
                    .request("$JS.API.STREAM.LEADER.STEPDOWN.A", "".into())
                    .await
                    .unwrap();
                let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
                assert_eq!(answer["success"], true, "{answer}");
            }
            _ => cluster
                .node(last_leader.rsplit('-').next().unwrap().parse().unwrap())
                .kill9(),
        }
        last_leader = leader_but(&stream, &last_leader).await;
        // The new leader stores a message, and connected clients receive it.
        let before = stream
            .get_info()
            .await
            .map_or(0, |info| info.state.last_sequence);
        eventually(RECOVERY, "the new leader stores messages", || async {
            stream
                .get_info()
                .await
                .is_ok_and(|info| info.state.last_sequence > before + 20)
        })
        .await;
    }
    for via in Via::ALL {
        readers.push((50, reading(&sidestream, via, &format!("{tag}-50")).await));
    }
    stop.store(true, Ordering::Relaxed);
    let last = within(RECOVERY, "the publisher ends", publishing)
        .await
        .unwrap();
    publish(&jetstream, "a.end", ["end".to_owned()]).await;
    // A new consumer needs a cluster with a leader.
    for metric in ["sidestream_replays_running", "sidestream_replays_queued"] {
        eventually(RECOVERY, "no replay waits", || async {
            sidestream.metric(metric, &[]).await == 0.0
        })
        .await;
    }
    // The tailer on the crashed server reconnects after its idle timeout.
    let end = format!("{tag}-{}-", last + 1);
    eventually(
        RECOVERY,
        "the pod has delivered everything to every client",
        || async {
            let told = sidestream.admin_json("/connections").await;
            let has_end =
                |id: &serde_json::Value| id.as_str().is_some_and(|id| id.starts_with(&end));
            told["connections"]
                .as_array()
                .unwrap()
                .iter()
                .all(|client| has_end(&client["last_event_id"]))
        },
    )
    .await;
    for (after, mut reader) in readers {
        let seen = within(RECOVERY, "every client has everything", reader.until("end")).await;
        assert_eq!(seen, texts(after + 1, last), "after {after}");
    }
    assert_eq!(sidestream.metric("sidestream_gaps_total", &[]).await, 0.0);
}
