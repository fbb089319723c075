//! Tests of the table: membership, reused slots, lag by route, and no lock held during a visit.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::super::{CloseReason, StreamInfo};
use super::*;
use crate::auth::Principal;
use crate::auth::revocations::{Change, Revocations, Times};

struct Stub {
    route: Arc<str>,
    client: String,
    lag: Lag,
    slow: bool,
    registration: Mutex<Option<Registration>>,
    closed: AtomicU64,
}

impl Stub {
    fn new(route: &str, client: usize, lag: Lag, slow: bool) -> Arc<Self> {
        let (route, client) = (route.into(), client.to_string());
        Arc::new(Self {
            route,
            client,
            lag,
            slow,
            registration: Mutex::default(),
            closed: AtomicU64::new(0),
        })
    }

    fn plain(client: usize) -> Arc<Self> {
        Self::new("/a", client, Lag::default(), false)
    }
}

impl StreamHandle for Stub {
    fn memory_bytes(&self) -> u64 {
        0
    }

    fn route(&self) -> &Arc<str> {
        &self.route
    }
    fn client(&self) -> &str {
        &self.client
    }
    fn lag(&self) -> Lag {
        self.lag
    }
    fn is_slow(&self) -> bool {
        self.slow
    }
    fn describe(&self) -> StreamInfo {
        unreachable!("not asked for here")
    }
    fn close(&self, _: CloseReason) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        // A real stream must not do this, and it must not deadlock either.
        drop(self.registration.lock().unwrap().take());
    }
}

fn clients(table: &StreamTable) -> BTreeSet<String> {
    let mut clients = BTreeSet::new();
    table.for_each(|stream| {
        assert!(clients.insert(stream.client().to_owned()), "visited once");
    });
    clients
}

#[test]
fn registration_has_its_expected_size() {
    assert_eq!(size_of::<Registration>(), 24);
}

#[test]
fn table_contains_exactly_the_registered_streams_in_any_order() {
    let random = &mut fastrand::Rng::with_seed(7);
    let table = StreamTable::default();
    let mut held = Vec::new();
    for step in 0..4_000 {
        if held.is_empty() || random.u8(..) < 140 {
            held.push((step.to_string(), table.insert(Stub::plain(step), None)));
        } else {
            drop(held.swap_remove(random.usize(..held.len())));
        }
        if step % 97 == 0 {
            assert_eq!(
                clients(&table),
                held.iter().map(|(client, _)| client.clone()).collect()
            );
            assert_eq!(table.len(), held.len());
        }
    }
    held.clear();
    assert!(table.is_empty());
    assert!(clients(&table).is_empty());
}

#[test]
fn slots_are_reused_when_clients_reconnect() {
    let table = StreamTable::default();
    for step in 0..10_000 {
        drop(table.insert(Stub::plain(step), None));
    }
    let slots: usize = table
        .0
        .shards
        .iter()
        .map(|shard| shard.lock().unwrap().streams.capacity())
        .sum();
    // A vector allocates at least four elements.
    assert!(slots <= 4 * SHARDS as usize, "{slots}");
}

#[test]
fn stream_is_released_when_its_registration_is_dropped() {
    let table = StreamTable::default();
    let stub = Stub::plain(1);
    let registration = table.insert(Arc::clone(&stub) as Arc<dyn StreamHandle>, None);
    assert_eq!(Arc::strong_count(&stub), 2);
    drop(registration);
    assert_eq!(Arc::strong_count(&stub), 1);
}

#[test]
fn lag_is_the_maximum_per_route_and_slow_clients_are_counted() {
    let table = StreamTable::default();
    let lag = |events, bytes, seconds| Lag {
        events,
        bytes,
        age: Duration::from_secs(seconds),
    };
    let members = [
        Stub::new("/a", 1, lag(5, 10, 3), false),
        Stub::new("/a", 2, lag(2, 900, 1), true),
        Stub::new("/a", 3, lag(0, 0, 0), true),
        Stub::new("/b", 4, lag(1, 1, 1), false),
    ];
    let registrations: Vec<_> = members
        .into_iter()
        .map(|stream| table.insert(stream, None))
        .collect();
    let routes = table.lag();
    assert_eq!(routes.len(), 2);
    assert_eq!(
        routes["/a"],
        RouteLag {
            lag: lag(5, 900, 3),
            slow: 2
        }
    );
    assert_eq!(
        routes["/b"],
        RouteLag {
            lag: lag(1, 1, 1),
            slow: 0
        }
    );
    drop(registrations);
    assert!(table.lag().is_empty());
}

#[test]
fn visit_may_close_event_streams() {
    let table = StreamTable::default();
    let members: Vec<_> = (0..100).map(Stub::plain).collect();
    for stream in &members {
        let registration = table.insert(Arc::clone(stream) as Arc<dyn StreamHandle>, None);
        *stream.registration.lock().unwrap() = Some(registration);
    }
    table.for_each(|stream| stream.close(CloseReason::Drain));
    assert!(table.is_empty());
    assert!(
        members
            .iter()
            .all(|stream| stream.closed.load(Ordering::Relaxed) == 1)
    );
}

fn kick(revocations: &Revocations, client: &str) -> Ended {
    let times = Times {
        at: 1,
        until: u32::MAX,
    };
    revocations.apply(&[Change {
        kind: Kind::Kick,
        value: client.to_owned(),
        times: Some(times),
    }]);
    revocations.take_ended()
}

#[test]
fn only_event_streams_with_a_matching_mark_end() {
    let (table, revocations) = (StreamTable::default(), Revocations::new());
    let insert = |client: usize, is_marked: bool| {
        let stub = Stub::plain(client);
        let name = client.to_string();
        let mark = revocations.mark(&Principal::Anonymous, Some(&name));
        let registration = table.insert(stub.clone(), is_marked.then_some(mark));
        *stub.registration.lock().unwrap() = Some(registration);
        stub
    };
    let closed = |stub: &Stub| stub.closed.load(Ordering::Relaxed);
    let streams: Vec<_> = (0..100).map(|client| insert(client, client != 7)).collect();
    let counts = table.end_revoked(&kick(&revocations, "42"));
    assert_eq!(counts, [0, 0, 0, 0, 1]);
    for (client, stream) in streams.iter().enumerate() {
        assert_eq!(closed(stream), u64::from(client == 42), "{client}");
    }
    // The slot of the one that has ended belongs to another client now.
    let reused: Vec<_> = (100..140)
        .map(|client| insert(client, client % 2 == 0))
        .collect();
    assert_eq!(table.end_revoked(&kick(&revocations, "42")), [0; 5]);
    assert_eq!(
        table.end_revoked(&kick(&revocations, "7")),
        [0; 5],
        "no mark"
    );
    assert_eq!(
        table.end_revoked(&kick(&revocations, "102")),
        [0, 0, 0, 0, 1]
    );
    assert_eq!(reused.iter().map(|stub| closed(stub)).sum::<u64>(), 1);
}

#[test]
#[ignore = "measures time: run it alone, with --release"]
fn a_search_of_a_hundred_thousand_event_streams_takes_milliseconds() {
    let (table, revocations) = (StreamTable::default(), Revocations::new());
    let members: Vec<_> = (0..100_000)
        .map(|client| {
            let mark = revocations.mark(&Principal::Anonymous, Some(&client.to_string()));
            table.insert(Stub::plain(client), Some(mark))
        })
        .collect();
    let ended = kick(&revocations, "another");
    let begun = std::time::Instant::now();
    assert_eq!(table.end_revoked(&ended), [0; 5]);
    let elapsed = begun.elapsed();
    println!("{elapsed:?} for {} event streams", members.len());
    assert!(elapsed < Duration::from_millis(100), "{elapsed:?}");
}
