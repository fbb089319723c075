//! A state that is read from a replica that lags has everything that the leader has.

use std::collections::BTreeMap;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use futures_util::future::join_all;

use super::{Folded, fold};
use testkit::nats::{Cluster, Nats};
use testkit::sidestream::{Sidestream, config_for};
use testkit::sse::SseClient;
use testkit::wait::{RECOVERY, eventually};

const GROUPS: u32 = 8;
const KEYS: u32 = 400;
const ROUNDS: u32 = 6;

/// Publishes one value to every key of every group, and waits until all are stored.
async fn write(jetstream: &jetstream::Context, value: u32) {
    let padding = "x".repeat(1000);
    let mut sent = Vec::new();
    for key in 0..KEYS {
        for group in 0..GROUPS {
            let subject = format!("s.{group}.{key}");
            let payload = format!("{subject}={value}.{padding}").into();
            sent.push(jetstream.publish(subject, payload).await.unwrap());
        }
        if sent.len() > 500 {
            for stored in sent.drain(..) {
                stored.await.unwrap();
            }
        }
    }
    for stored in sent {
        stored.await.unwrap();
    }
}

/// State of one group, and the values in it with their numbers of keys.
async fn values(sidestream: &Sidestream, group: u32) -> BTreeMap<String, usize> {
    let url = sidestream.url(&format!("/state/{group}"));
    let mut client = SseClient::get(url).connect().await;
    assert_eq!(client.status(), 200);
    let events = client
        .until(|event| event.name == "sidestream.synced")
        .await;
    let mut state = Folded::new();
    events.iter().for_each(|event| fold(&mut state, event));
    let mut values = BTreeMap::new();
    for value in state.into_values() {
        let (value, _) = value.split_once('.').unwrap();
        *values.entry(value.to_owned()).or_insert(0) += 1;
    }
    values
}

#[tokio::test]
async fn replica_that_lags_does_not_make_a_state_older_than_the_leader() {
    let mut cluster = Cluster::start().await;
    let jetstream = jetstream::new(cluster.client().await);
    let config = stream::Config {
        name: "STATE".to_owned(),
        subjects: vec!["s.>".to_owned()],
        max_messages_per_subject: 2,
        num_replicas: 3,
        allow_direct: true,
        ..stream::Config::default()
    };
    let leader = eventually(RECOVERY, "the stream has a leader", || async {
        let mut stream = jetstream.create_stream(config.clone()).await.ok()?;
        stream.info().await.ok()?.cluster.clone()?.leader
    })
    .await;
    // Servers are `test-0` to `test-2`.
    let leader: usize = leader.rsplit('-').next().unwrap().parse().unwrap();
    let server = [cluster.node(leader).url()];
    let route = "routes: [{ path: \"/state/{group}\", sources: [{ stream: STATE, subjects: [\"s.{group}.>\"] }], begin: latest }]\nlimits: { replays: { running: 8 } }";
    let sidestream = Sidestream::start(config_for(&server, route)).await;
    let jetstream = cluster.node(leader).jetstream().await;
    write(&jetstream, 0).await;
    let follower = cluster.node((leader + 1) % 3);
    let checked = async {
        for round in 1..=ROUNDS {
            write(&jetstream, round).await;
            // Not the states of the previous round, which are shared for a second.
            let last = tokio::time::Instant::now() + Duration::from_millis(1100);
            let states = (0..GROUPS).map(|group| values(&sidestream, group));
            for (group, values) in join_all(states).await.into_iter().enumerate() {
                let expected = BTreeMap::from([(round.to_string(), KEYS as usize)]);
                assert_eq!(values, expected, "group {group} in round {round}");
            }
            tokio::time::sleep_until(last).await;
        }
    };
    tokio::select! {
        () = slow_down(follower) => {}
        () = checked => {}
    }
}

/// Makes a server lag, forever: it runs two milliseconds of a hundred.
async fn slow_down(server: &mut Nats) {
    loop {
        server.pause();
        tokio::time::sleep(Duration::from_millis(100)).await;
        server.resume();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
