//! Model of one pod: a stream buffer that follows a source, and the history of all appends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use fastrand::Rng;
use sidestream::event::{Position, SourceTag};
use sidestream::feed::buffer::ArchiveAccess;
use sidestream::feed::replay::{self, ReplaySlots};
use sidestream::feed::{
    Budget, Gap, GapReason, Limits, Source as _, StreamBuffer, StreamWriter, buffer,
};
use sidestream::subject::{Filter, FilterSet};
use sidestream::telemetry::Metrics;

use super::source::{self, Shared, fingerprint, lock};

/// One append to the buffer.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Sequence numbers ascend within an epoch.
    pub(crate) epoch: usize,
    pub(crate) position: Position,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Event {
        subject: Arc<str>,
        content: u64,
    },
    /// The message after `position` is missing.
    Gap(Gap),
    /// The sequence starts, or continues elsewhere.
    Begin(Gap),
}

/// A budget that no world fills.
pub(crate) const ROOM: usize = 1 << 20;

pub(crate) struct Pod {
    pub(crate) budget: Arc<Budget>,
    pub(crate) buffer: Arc<StreamBuffer>,
    pub(crate) writer: StreamWriter,
    pub(crate) source: Shared,
    pub(crate) limits: Limits,
    /// Bytes and receipt of the events that the buffer has to hold while its budget is not
    /// exceeded.
    held: VecDeque<(usize, Instant)>,
    pub(crate) history: Vec<Entry>,
    pub(crate) epoch: usize,
    /// Generation of the source that it follows; `None` before it started.
    pub(crate) generation: Option<u64>,
    pub(crate) tag: SourceTag,
    pub(crate) head: u64,
    /// Start of the current epoch.
    pub(crate) floor: u64,
    /// Ranges that were not appended: from (exclusive), to.
    pub(crate) skipped_ranges: Vec<(u64, u64)>,
    pub(crate) has_archive: bool,
    replays: Option<tokio::task::JoinHandle<()>>,
}

/// Time of the runtime.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Recreates or restores the source.
pub(crate) fn change(source: &Shared, pods: &mut [Pod], rng: &mut Rng) {
    if rng.bool() {
        lock(source).recreate();
    } else if lock(source).restore() {
        // Under the same tag only the tailer can notice; it does so at once.
        for pod in pods.iter_mut().filter(|pod| pod.generation.is_some()) {
            pod.adjoin(rng);
        }
    }
}

impl Pod {
    pub(crate) fn new(
        source: &Shared,
        has_archive: bool,
        budget: &Arc<Budget>,
        metrics: &Arc<Metrics>,
        rng: &mut Rng,
    ) -> Self {
        let limits = Limits {
            events: rng.usize(1..30),
            bytes: rng.usize(100..3000),
            age: std::time::Duration::from_secs(rng.u64(5..60)),
        };
        let reach = FilterSet::new([Filter::parse(">").unwrap()]);
        let config = replay::ReplayLimits {
            running: rng.usize(1..4),
            queued: rng.usize(1..12),
        };
        let access = has_archive.then(|| ArchiveAccess {
            archive: Arc::new(source::SimulatedArchive(source.clone())),
            reach,
            replays: ReplaySlots::new(config, metrics),
        });
        let (writer, buffer) = buffer::writer::channel("S", limits, budget, access);
        let replays = has_archive.then(|| tokio::spawn(buffer.replays()));
        let tag = lock(source).tag;
        Self {
            budget: budget.clone(),
            buffer,
            writer,
            source: source.clone(),
            limits,
            held: VecDeque::new(),
            history: Vec::new(),
            epoch: 0,
            generation: None,
            tag,
            head: 0,
            floor: 0,
            skipped_ranges: Vec::new(),
            has_archive,
            replays,
        }
    }

    /// Acts as the tailer: starts or notices a change of the source, then reads some messages.
    pub(crate) fn follow(&mut self, rng: &mut Rng, now: Instant) {
        self.adjoin(rng);
        let source = self.source.clone();
        let source = lock(&source);
        let most = rng.usize(1..8);
        let records: Vec<_> = source
            .stored(self.head)
            .take(most)
            .map(|(seq, one)| (seq, one.clone()))
            .collect();
        let mut batch = Vec::new();
        for (seq, record) in &records {
            if record.is_poison {
                self.append(std::mem::take(&mut batch));
                // The position is the same on every pod: directly before the missing message.
                self.writer.advance(*seq - 1);
                self.head = self.head.max(*seq - 1);
                let gap = Gap {
                    reason: GapReason::Upstream,
                    missed: Some(1),
                };
                self.writer.gap(gap.reason, gap.missed);
                self.note(
                    Position {
                        tag: self.tag,
                        seq: self.head,
                        fingerprint: None,
                    },
                    Kind::Gap(gap),
                );
                self.writer.advance(*seq);
                self.head = *seq;
            } else {
                batch.push((source.event(*seq, record, now), record.content));
            }
        }
        self.append(batch);
        let is_end = source.stored(self.head).next().is_none();
        if is_end && rng.bool() {
            self.writer.advance(source.last_seq);
            self.head = self.head.max(source.last_seq);
        }
        assert_eq!(self.writer.head(), Some((self.tag, self.head)));
    }

    /// Acts as the tailer until nothing is left.
    pub(crate) fn follow_to_end(&mut self, rng: &mut Rng) {
        while self.generation.is_none()
            || !self.is_current()
            || lock(&self.source).stored(self.head).next().is_some()
        {
            self.follow(rng, now());
        }
    }

    /// Acts as the tailer after a reconnect: reads the state of the source and continues from it.
    pub(crate) fn adjoin(&mut self, rng: &mut Rng) {
        let source = self.source.clone();
        let source = lock(&source);
        let recent = source
            .last_seq
            .saturating_sub(rng.u64(..10))
            .max(source.first_seq - 1);
        let uncounted = |reason| Gap {
            reason,
            missed: None,
        };
        match self.generation {
            None => {
                self.writer.begin(source.tag, recent);
                (self.tag, self.head, self.floor) = (source.tag, recent, recent);
                self.skipped_ranges = vec![(0, recent)];
            }
            Some(_) if self.tag != source.tag => {
                self.writer.begin(source.tag, recent);
                self.begin_epoch(source.tag, recent, uncounted(GapReason::Recreated));
            }
            Some(generation) if generation != source.generation => {
                let reason = if self.head > source.last_seq {
                    GapReason::Ahead
                } else {
                    GapReason::Recreated
                };
                self.writer
                    .start_epoch(source.tag, source.last_seq, uncounted(reason));
                self.begin_epoch(source.tag, source.last_seq, uncounted(reason));
            }
            Some(_) if self.head + 1 < source.first_seq => {
                let gap = Gap {
                    reason: GapReason::Expired,
                    missed: Some(source.first_seq - 1 - self.head),
                };
                self.writer
                    .start_epoch(source.tag, source.first_seq - 1, gap);
                self.begin_epoch(source.tag, source.first_seq - 1, gap);
            }
            Some(_) => self.writer.begin(self.tag, self.head),
        }
        self.generation = Some(source.generation);
    }

    /// Index of the history at which the current epoch starts, after the gap that reports it.
    pub(crate) fn epoch_place(&self) -> usize {
        let first = self
            .history
            .iter()
            .position(|entry| entry.epoch == self.epoch);
        first.map_or(self.history.len(), |first| {
            first + usize::from(self.epoch > 0)
        })
    }

    /// True if the pod never appended this sequence number.
    pub(crate) fn was_skipped(&self, seq: u64) -> bool {
        seq > self.head
            || self
                .skipped_ranges
                .iter()
                .any(|(from, to)| (from + 1..=*to).contains(&seq))
    }

    pub(crate) fn is_current(&self) -> bool {
        self.generation == Some(lock(&self.source).generation)
    }

    fn begin_epoch(&mut self, tag: SourceTag, head: u64, gap: Gap) {
        if gap.reason == GapReason::Expired {
            self.skipped_ranges.push((self.head, head));
        } else {
            self.epoch += 1;
            (self.floor, self.skipped_ranges) = (head, vec![(0, head)]);
        }
        (self.tag, self.head) = (tag, head);
        self.held.clear();
        self.note(
            Position {
                tag,
                seq: head,
                fingerprint: None,
            },
            Kind::Begin(gap),
        );
    }

    fn append(&mut self, batch: Vec<(sidestream::event::Event, u64)>) {
        let Some(now) = batch.last().map(|(event, _)| event.received) else {
            return;
        };
        for (event, content) in &batch {
            let bytes = format!(
                "data: {}\nid: {}\n\n",
                source::payload(*content),
                event.position
            )
            .len();
            self.held.push_back((bytes, event.received));
            assert_eq!(event.position.fingerprint, Some(fingerprint(*content)));
            self.head = event.position.seq;
            self.note(
                event.position,
                Kind::Event {
                    subject: event.subject.clone(),
                    content: *content,
                },
            );
        }
        self.writer
            .append(batch.into_iter().map(|(event, _)| event).collect());
        self.assert_held(now);
    }

    pub(crate) fn sweep(&mut self, now: Instant) {
        self.buffer.sweep(now);
        self.assert_held(now);
    }

    /// True if only the limits of the windows evict.
    pub(crate) fn is_roomy(&self) -> bool {
        self.budget.max() >= ROOM
    }

    /// Asserts that the buffer holds what its limits allow, and within the budget not less.
    fn assert_held(&mut self, now: Instant) {
        let Limits { events, bytes, age } = self.limits;
        let is_over = |held: &VecDeque<(usize, Instant)>| {
            let is_old = held
                .front()
                .is_some_and(|(_, received)| now.saturating_duration_since(*received) > age);
            let sum: usize = held.iter().map(|(bytes, _)| bytes).sum();
            is_old || held.len() > events || (sum > bytes && held.len() > 1)
        };
        while is_over(&self.held) {
            self.held.pop_front();
        }
        let held = self.buffer.size().events;
        assert!(
            held <= self.held.len(),
            "{held} events in a buffer that may hold {}",
            self.held.len()
        );
        assert!(
            held == self.held.len() || !self.is_roomy(),
            "{held} events left of {}",
            self.held.len()
        );
    }

    fn note(&mut self, position: Position, kind: Kind) {
        self.history.push(Entry {
            epoch: self.epoch,
            position,
            kind,
        });
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if let Some(replays) = &self.replays {
            replays.abort();
        }
    }
}
