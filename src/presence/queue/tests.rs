//! Tests of the queue: one place per stream, ends first, bounded, and open streams written again.

use super::super::{Lag, Protocol, Sent, StreamInfo};
use super::*;
use crate::encoding::Framing;

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
            framing: Framing::Sse,
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

fn open(queue: &PresenceQueue) -> (Arc<Stub>, u64) {
    let stub = Stub::new();
    let number = queue.opened(&(stub.clone() as Arc<dyn StreamHandle>));
    (stub, number)
}

/// Sent up to here by a drain, to a client without a name.
fn delivered(id: &str) -> Option<Delivered> {
    Some(Delivered {
        last_event_id: id.into(),
        can_be_claimed: false,
    })
}

fn numbers(updates: &[PresenceUpdate]) -> Vec<u64> {
    updates.iter().map(|update| update.number).collect()
}

#[test]
fn several_changes_are_one_update_with_the_current_state() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&queue);
    for _ in 0..100 {
        queue.changed(number);
    }
    *stub.state.lock().unwrap() = State::Reconnecting;
    let updates = queue.next_batch(10, EVERY, now);
    assert_eq!(updates.len(), 1);
    assert_eq!(updates[0].key.encode(), "me.boot-1");
    assert_eq!(updates[0].entry.state, State::Reconnecting);
    assert_eq!(
        (
            &*updates[0].entry.pod,
            updates[0].entry.reason.clone(),
            updates[0].is_end
        ),
        ("pod", None, false)
    );
    assert_eq!(queue.next_batch(10, EVERY, now), []);
}

#[test]
fn open_streams_are_written_again_and_removed_ones_are_not() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (_one, first) = open(&queue);
    let (_two, second) = open(&queue);
    assert_eq!(numbers(&queue.next_batch(10, EVERY, now)), [first, second]);
    queue.removed(first);
    assert_eq!(
        queue.next_batch(10, EVERY, now + EVERY - Duration::from_secs(1)),
        []
    );
    queue.changed(second);
    assert_eq!(numbers(&queue.next_batch(10, EVERY, now + EVERY)), [second]);
    assert_eq!(
        queue.next_batch(10, EVERY, now + EVERY * 2 - Duration::from_secs(1)),
        []
    );
    assert_eq!(
        numbers(&queue.next_batch(10, EVERY, now + EVERY * 2)),
        [second]
    );
    queue.removed(second);
    assert_eq!(queue.next_batch(10, EVERY, now + EVERY * 9), []);
    let state = queue.lock();
    assert_eq!(
        (state.open.len(), state.rewrites.len(), state.changed.len()),
        (0, 0, 0)
    );
}

#[test]
fn ends_come_first_and_a_batch_is_limited() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, drained) = open(&queue);
    let (other, closed) = open(&queue);
    let (_third, _) = open(&queue);
    queue.next_batch(10, EVERY, now);
    let (_fourth, fourth) = open(&queue);
    queue.ended(closed, &*other, CloseReason::Client, None);
    queue.ended(drained, &*stub, CloseReason::Drain, delivered("3fa9c1-9"));
    let updates = queue.next_batch(2, EVERY, now);
    assert_eq!(numbers(&updates), [closed, drained]);
    let summary = |update: &PresenceUpdate| {
        (
            update.entry.state,
            update.entry.reason.clone().unwrap(),
            update.entry.last_event_id.clone(),
        )
    };
    assert_eq!(
        summary(&updates[0]),
        (State::Closed, "client".into(), "3fa9c1-7".into())
    );
    assert_eq!(
        summary(&updates[1]),
        (State::Reconnecting, "drain".into(), "3fa9c1-9".into())
    );
    assert_eq!(numbers(&queue.next_batch(2, EVERY, now)), [fourth]);
}

#[test]
fn short_lived_stream_is_not_written_unless_a_drain_ended_it() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&queue);
    queue.ended(number, &*stub, CloseReason::Client, None);
    assert_eq!(queue.next_batch(10, EVERY, now), []);
    let (stub, number) = open(&queue);
    queue.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    assert_eq!(numbers(&queue.next_batch(10, EVERY, now)), [number]);
}

#[test]
fn failed_update_is_retried_but_an_end_only_if_it_was_surely_not_written() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (stub, number) = open(&queue);
    let update = queue.next_batch(10, EVERY, now).remove(0);
    queue.requeue(update, false);
    assert_eq!(numbers(&queue.next_batch(10, EVERY, now)), [number]);
    queue.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    let update = queue.next_batch(10, EVERY, now).remove(0);
    queue.requeue(update, true);
    let update = queue.next_batch(10, EVERY, now).remove(0);
    assert_eq!(queue.take_dropped(), 0);
    queue.requeue(update, false);
    assert_eq!(queue.next_batch(10, EVERY, now), []);
    assert_eq!((queue.take_dropped(), queue.take_dropped()), (1, 0));
}

#[test]
fn recreated_bucket_receives_all_open_streams() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let open: Vec<_> = (0..3).map(|_| open(&queue)).collect();
    queue.next_batch(10, EVERY, now);
    queue.rewrite_all();
    let mut updates = numbers(&queue.next_batch(10, EVERY, now));
    updates.sort_unstable();
    assert_eq!(
        updates,
        open.iter().map(|(_, number)| *number).collect::<Vec<_>>()
    );
}

#[test]
fn claimable_position_has_its_own_key_and_comes_first() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let claimable = || {
        Some(Delivered {
            last_event_id: "3fa9c1-9".into(),
            can_be_claimed: true,
        })
    };
    let (stub, number) = open(&queue);
    queue.next_batch(10, EVERY, now);
    queue.ended(number, &*stub, CloseReason::Drain, claimable());
    let updates = queue.next_batch(10, EVERY, now);
    let keys: Vec<_> = updates.iter().map(|update| update.key.encode()).collect();
    assert_eq!(keys, ["me.boot-1.position", "me.boot-1"]);
    assert_eq!(updates[0].entry, updates[1].entry);
    assert_eq!(
        (updates[0].entry.state, &*updates[0].entry.last_event_id),
        (State::Reconnecting, "3fa9c1-9")
    );
    // The entry of this stream was never written, so there is nothing to end.
    let (stub, number) = open(&queue);
    queue.ended(number, &*stub, CloseReason::Drain, claimable());
    let updates = queue.next_batch(10, EVERY, now);
    assert_eq!(
        updates
            .iter()
            .map(|update| update.key.encode())
            .collect::<Vec<_>>(),
        ["me.boot-2.position"]
    );
}

#[test]
fn postponed_entry_waits_for_room_and_writes_no_end() {
    let (queue, now) = (PresenceQueue::new("pod", "boot"), Instant::now());
    let (_stub, number) = open(&queue);
    let update = queue.next_batch(10, EVERY, now).remove(0);
    assert!(update.is_new);
    queue.postpone(number);
    assert_eq!(queue.next_batch(10, EVERY, now + EVERY * 2), []);
    queue.continue_postponed();
    let update = queue.next_batch(10, EVERY, now + EVERY * 2).remove(0);
    assert!(update.is_new);
    assert!(
        !queue
            .next_batch(10, EVERY, now + EVERY * 3)
            .remove(0)
            .is_new
    );
    let (stub, number) = open(&queue);
    queue.next_batch(10, EVERY, now);
    queue.postpone(number);
    queue.ended(number, &*stub, CloseReason::Client, None);
    assert_eq!(queue.next_batch(10, EVERY, now), []);
}

#[test]
fn number_of_waiting_ends_is_bounded() {
    let queue = PresenceQueue::new("pod", "boot");
    for _ in 0..ENDED_MAX + 5 {
        let (stub, number) = open(&queue);
        queue.ended(number, &*stub, CloseReason::Drain, delivered("3fa9c1-7"));
    }
    assert_eq!(queue.len(), ENDED_MAX);
    assert_eq!(queue.take_dropped(), 5);
}
