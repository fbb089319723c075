//! Tests of the table: membership, reused slots, lag by route, and no lock held during a visit.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use super::super::{CloseReason, StreamInfo};
use super::*;

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
