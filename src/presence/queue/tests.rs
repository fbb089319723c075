//! One place for each, ends first, nothing for ever: what waits to be told is bounded and told again in time.

use super::super::{Lag, Protocol, Sent, StreamInfo};
use super::*;

const EVERY: Duration = Duration::from_secs(60);

struct Stub {
    route: Arc<str>,
    state: Mutex<State>,
}

impl Stub {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            route: "/a".into(),
            state: Mutex::new(State::Active),
        })
    }
}

impl StreamHandle for Stub {
    fn route(&self) -> &Arc<str> {
        &self.route
    }
    fn client(&self) -> &str {
        "me"
    }
    fn lag(&self) -> Lag {
        Lag::default()
    }
    fn is_slow(&self) -> bool {
        false
    }
    fn memory_bytes(&self) -> u64 {
        0
    }
    fn describe(&self) -> StreamInfo {
        StreamInfo {
            client: "me".into(),
            route: self.route.clone(),
            subjects: vec!["a.1".into()],
            protocol: Protocol::Http11,
            tls: false,
            remote: "192.0.2.7:4711".parse().unwrap(),
            state: *self.state.lock().unwrap(),
            opened: 0,
            last_event_id: "3fa9c1-7".into(),
            lag: Lag::default(),
            sent: Sent::default(),
            memory_bytes: 0,
            slow: false,
            gaps: 0,
        }
    }
    fn close(&self, _: CloseReason) {}
}

fn open(changes: &PresenceQueue) -> (Arc<Stub>, u64) {
    let stub = Stub::new();
    let number = changes.opened(&(stub.clone() as Arc<dyn StreamHandle>));
    (stub, number)
}

/// Sent up to here by a drain, to a client that has no name.
fn delivered(id: &str) -> Option<Delivered> {
    Some(Delivered {
        last_event_id: id.into(),
        can_be_claimed: false,
    })
}

fn numbers(told: &[PresenceUpdate]) -> Vec<u64> {
    told.iter().map(|told| told.number).collect()
}

#[test]
fn one_that_changes_often_is_told_once_and_as_it_is_then() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&changes);
    for _ in 0..100 {
        changes.changed(number);
    }
    *stub.state.lock().unwrap() = State::Reconnecting;
    let told = changes.take(10, EVERY, now);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].key.encode(), "me.boot-1");
    assert_eq!(told[0].entry.state, State::Reconnecting);
    assert_eq!(
        (
            &*told[0].entry.pod,
            told[0].entry.reason.clone(),
            told[0].is_end
        ),
        ("pod", None, false)
    );
    assert_eq!(changes.take(10, EVERY, now), []);
}

#[test]
fn what_is_open_is_told_again_in_time_and_what_is_gone_is_not() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (_one, first) = open(&changes);
    let (_two, second) = open(&changes);
    assert_eq!(numbers(&changes.take(10, EVERY, now)), [first, second]);
    changes.gone(first);
    assert_eq!(
        changes.take(10, EVERY, now + EVERY - Duration::from_secs(1)),
        []
    );
    changes.changed(second);
    assert_eq!(numbers(&changes.take(10, EVERY, now + EVERY)), [second]);
    assert_eq!(
        changes.take(10, EVERY, now + EVERY * 2 - Duration::from_secs(1)),
        []
    );
    assert_eq!(numbers(&changes.take(10, EVERY, now + EVERY * 2)), [second]);
    changes.gone(second);
    assert_eq!(changes.take(10, EVERY, now + EVERY * 9), []);
    let waiting = changes.lock();
    assert_eq!(
        (
            waiting.open.len(),
            waiting.told.len(),
            waiting.changed.len()
        ),
        (0, 0, 0)
    );
}

#[test]
fn ends_come_first_and_no_more_is_taken_than_is_asked_for() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, drained) = open(&changes);
    let (other, closed) = open(&changes);
    let (_third, _) = open(&changes);
    changes.take(10, EVERY, now);
    let (_fourth, fourth) = open(&changes);
    changes.ended(closed, &*other, CloseReason::Client, None);
    changes.ended(drained, &*stub, CloseReason::Drain, delivered("3fa9c1-9"));
    let told = changes.take(2, EVERY, now);
    assert_eq!(numbers(&told), [closed, drained]);
    let tell = |told: &PresenceUpdate| {
        (
            told.entry.state,
            told.entry.reason.clone().unwrap(),
            told.entry.last_event_id.clone(),
        )
    };
    assert_eq!(
        tell(&told[0]),
        (State::Closed, "client".into(), "3fa9c1-7".into())
    );
    assert_eq!(
        tell(&told[1]),
        (State::Reconnecting, "drain".into(), "3fa9c1-9".into())
    );
    assert_eq!(numbers(&changes.take(2, EVERY, now)), [fourth]);
}

#[test]
fn one_that_came_and_went_within_a_moment_is_not_told_unless_a_drain_ended_it() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&changes);
    changes.ended(number, &*stub, CloseReason::Client, None);
    assert_eq!(changes.take(10, EVERY, now), []);
    let (stub, number) = open(&changes);
    changes.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    assert_eq!(numbers(&changes.take(10, EVERY, now)), [number]);
}

#[test]
fn what_could_not_be_told_is_told_later_but_an_end_only_if_it_surely_was_not() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&changes);
    let told = changes.take(10, EVERY, now).remove(0);
    changes.failed(told, false);
    assert_eq!(numbers(&changes.take(10, EVERY, now)), [number]);
    changes.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    let told = changes.take(10, EVERY, now).remove(0);
    changes.failed(told, true);
    let told = changes.take(10, EVERY, now).remove(0);
    assert_eq!(changes.take_lost(), 0);
    changes.failed(told, false);
    assert_eq!(changes.take(10, EVERY, now), []);
    assert_eq!((changes.take_lost(), changes.take_lost()), (1, 0));
}

#[test]
fn a_bucket_that_was_made_anew_is_told_all_that_is_open() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let open: Vec<_> = (0..3).map(|_| open(&changes)).collect();
    changes.take(10, EVERY, now);
    changes.forgotten();
    let mut told = numbers(&changes.take(10, EVERY, now));
    told.sort_unstable();
    assert_eq!(
        told,
        open.iter().map(|(_, number)| *number).collect::<Vec<_>>()
    );
}

#[test]
fn a_position_that_can_be_claimed_has_a_key_of_its_own_and_comes_first() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let claimable = || {
        Some(Delivered {
            last_event_id: "3fa9c1-9".into(),
            can_be_claimed: true,
        })
    };
    let (stub, number) = open(&changes);
    changes.take(10, EVERY, now);
    changes.ended(number, &*stub, CloseReason::Drain, claimable());
    let told = changes.take(10, EVERY, now);
    let keys: Vec<_> = told.iter().map(|told| told.key.encode()).collect();
    assert_eq!(keys, ["me.boot-1.position", "me.boot-1"]);
    assert_eq!(told[0].entry, told[1].entry);
    assert_eq!(
        (told[0].entry.state, &*told[0].entry.last_event_id),
        (State::Reconnecting, "3fa9c1-9")
    );
    // One that was never told has nothing to end.
    let (stub, number) = open(&changes);
    changes.ended(number, &*stub, CloseReason::Drain, claimable());
    let told = changes.take(10, EVERY, now);
    assert_eq!(
        told.iter()
            .map(|told| told.key.encode())
            .collect::<Vec<_>>(),
        ["me.boot-2.position"]
    );
}

#[test]
fn what_is_postponed_for_want_of_room_waits_for_it_and_has_no_end_to_write() {
    let (changes, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (_stub, number) = open(&changes);
    let told = changes.take(10, EVERY, now).remove(0);
    assert!(told.is_new);
    changes.postpone(number);
    assert_eq!(changes.take(10, EVERY, now + EVERY * 2), []);
    changes.continue_postponed();
    let told = changes.take(10, EVERY, now + EVERY * 2).remove(0);
    assert!(told.is_new);
    assert!(!changes.take(10, EVERY, now + EVERY * 3).remove(0).is_new);
    let (stub, number) = open(&changes);
    changes.take(10, EVERY, now);
    changes.postpone(number);
    changes.ended(number, &*stub, CloseReason::Client, None);
    assert_eq!(changes.take(10, EVERY, now), []);
}

#[test]
fn ends_that_nobody_takes_do_not_pile_up() {
    let changes = PresenceQueue::new("pod", "boot");
    for _ in 0..ENDED_MAX + 5 {
        let (stub, number) = open(&changes);
        changes.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    }
    assert_eq!(changes.len(), ENDED_MAX);
    assert_eq!(changes.take_lost(), 5);
}
