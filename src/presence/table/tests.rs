//! What the table promises: exact membership, reused slots, maxima by route, and no lock held while visiting.

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
        // What a real one must not do, and what must not hang all the same.
        drop(self.registration.lock().unwrap().take());
    }
}

fn clients(registry: &StreamTable) -> BTreeSet<String> {
    let mut clients = BTreeSet::new();
    registry.for_each(|member| {
        assert!(clients.insert(member.client().to_owned()), "visited once");
    });
    clients
}

#[test]
fn an_entry_costs_a_fat_pointer_and_a_registration_little_more() {
    assert_eq!(size_of::<Slot>(), 16);
    assert_eq!(size_of::<Registration>(), 24);
}

#[test]
fn the_table_holds_exactly_what_is_registered_whatever_the_order_of_coming_and_going() {
    let random = &mut fastrand::Rng::with_seed(7);
    let registry = StreamTable::default();
    let mut held = Vec::new();
    for step in 0..4_000 {
        if held.is_empty() || random.u8(..) < 140 {
            held.push((step.to_string(), registry.insert(Stub::plain(step))));
        } else {
            drop(held.swap_remove(random.usize(..held.len())));
        }
        if step % 97 == 0 {
            assert_eq!(
                clients(&registry),
                held.iter().map(|(client, _)| client.clone()).collect()
            );
            assert_eq!(registry.len(), held.len());
        }
    }
    held.clear();
    assert!(registry.is_empty());
    assert!(clients(&registry).is_empty());
}

#[test]
fn slots_are_used_again_so_that_a_reconnecting_client_costs_no_memory() {
    let registry = StreamTable::default();
    for step in 0..10_000 {
        drop(registry.insert(Stub::plain(step)));
    }
    let slots: usize = registry
        .0
        .shards
        .iter()
        .map(|shard| shard.lock().unwrap().slots.len())
        .sum();
    assert_eq!(slots, SHARDS as usize);
}

#[test]
fn a_member_is_let_go_when_its_registration_is_dropped() {
    let registry = StreamTable::default();
    let stub = Stub::plain(1);
    let registration = registry.insert(Arc::clone(&stub) as Arc<dyn StreamHandle>);
    assert_eq!(Arc::strong_count(&stub), 2);
    drop(registration);
    assert_eq!(Arc::strong_count(&stub), 1);
}

#[test]
fn lag_is_the_maximum_of_each_measure_by_route_and_slow_clients_are_counted() {
    let registry = StreamTable::default();
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
        .map(|member| registry.insert(member))
        .collect();
    let routes = registry.lag();
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
    assert!(registry.lag().is_empty());
}

#[test]
fn a_visit_may_end_event_streams() {
    let registry = StreamTable::default();
    let members: Vec<_> = (0..100).map(Stub::plain).collect();
    for member in &members {
        let registration = registry.insert(Arc::clone(member) as Arc<dyn StreamHandle>);
        *member.registration.lock().unwrap() = Some(registration);
    }
    registry.for_each(|member| member.close(CloseReason::Drain));
    assert!(registry.is_empty());
    assert!(
        members
            .iter()
            .all(|member| member.closed.load(Ordering::Relaxed) == 1)
    );
}
