//! Model of a JetStream stream: all messages it ever had, their fate, and its archive.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use fastrand::Rng;
use sidestream::event::{Event, Fingerprint, Position, SourceTag};
use sidestream::feed::Begin;
use sidestream::feed::archive::{Archive, BoxFuture, Latest, Page, Pages, State, Unavailable};
use sidestream::subject::FilterSet;

use super::world::subject;

/// One message of the current generation.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub(crate) subject: Arc<str>,
    /// Unique among all messages of the simulation.
    pub(crate) content: u64,
    pub(crate) fate: Fate,
    /// It cannot be decoded into an event.
    pub(crate) is_poison: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Kept,
    /// Deleted individually: needs no report.
    Deleted,
    /// No longer retained: readers that have not received it need a gap.
    Expired,
}

#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) tag: SourceTag,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) records: BTreeMap<u64, Record>,
    /// Everything that was ever published: a page may outlive the messages it was read from.
    pub(crate) published: HashMap<Position, Record>,
    /// Incremented when the source is recreated or restored; within one, a sequence number is one
    /// message.
    pub(crate) generation: u64,
    /// The archive reports messages that cannot be decoded. Otherwise it passes over them.
    reports_poison: bool,
    /// The archive returns errors.
    pub(crate) is_failing: bool,
    /// Last state returned by the archive, and its time.
    remembered: Option<(tokio::time::Instant, State)>,
    rng: Rng,
    name: &'static str,
    contents: u64,
    snapshot: Option<(u64, u64, BTreeMap<u64, Record>)>,
}

/// 1 s: maximum age of a remembered state.
const REMEMBERED: Duration = Duration::from_secs(1);

/// A source that the world changes while archives read it.
pub(crate) type Shared = Arc<Mutex<Source>>;

pub(crate) fn lock(source: &Shared) -> MutexGuard<'_, Source> {
    source.lock().unwrap()
}

/// Payload of a message: its content, and padding that varies its size.
pub(crate) fn payload(content: u64) -> String {
    format!("{content}{}", "x".repeat((content % 7 * 9) as usize))
}

pub(crate) fn fingerprint(content: u64) -> Fingerprint {
    Fingerprint::of_publish_time(content.into())
}

impl Source {
    pub(crate) fn new(name: &'static str, seed: u64) -> Shared {
        Arc::new(Mutex::new(Self {
            tag: SourceTag::of_stream(name, 0),
            first_seq: 1,
            last_seq: 0,
            records: BTreeMap::new(),
            published: HashMap::new(),
            generation: 0,
            reports_poison: seed.is_multiple_of(2),
            is_failing: false,
            remembered: None,
            rng: Rng::with_seed(seed),
            name,
            contents: 0,
            snapshot: None,
        }))
    }

    fn publish(&mut self, subject: &str, is_poison: bool) {
        self.last_seq += 1;
        self.contents += 1;
        let record = Record {
            subject: subject.into(),
            content: self.contents,
            fate: Fate::Kept,
            is_poison,
        };
        let position = Position {
            tag: self.tag,
            seq: self.last_seq,
            fingerprint: Some(fingerprint(record.content)),
        };
        self.published.insert(position, record.clone());
        self.records.insert(self.last_seq, record);
    }

    /// Publishes a few messages on random subjects.
    pub(crate) fn publish_some(&mut self, rng: &mut Rng) {
        for _ in 0..rng.usize(1..6) {
            let (subject, is_poison) = (subject(rng), rng.u8(..) < 4);
            self.publish(&subject, is_poison);
        }
    }

    /// Advances the retention to one of the last messages.
    pub(crate) fn expire_some(&mut self, rng: &mut Rng) {
        let back = rng.u64(..12);
        self.expire(self.last_seq.saturating_sub(back));
    }

    /// Deletes one of the last messages.
    pub(crate) fn delete_some(&mut self, rng: &mut Rng) {
        let back = rng.u64(..8);
        self.delete(self.last_seq.saturating_sub(back));
    }

    /// Advances the retention to this sequence number, as a purge or an age limit does.
    fn expire(&mut self, through: u64) {
        self.first_seq = self.first_seq.max(through.min(self.last_seq) + 1);
        for (_, record) in self
            .records
            .range_mut(..self.first_seq)
            .filter(|(_, record)| record.fate == Fate::Kept)
        {
            record.fate = Fate::Expired;
        }
    }

    fn delete(&mut self, seq: u64) {
        if seq > self.first_seq
            && let Some(record) = self.records.get_mut(&seq)
            && record.fate == Fate::Kept
        {
            record.fate = Fate::Deleted;
        }
    }

    pub(crate) fn recreate(&mut self) {
        self.generation += 1;
        self.remembered = None; // A change takes longer than a state is remembered.
        self.tag = SourceTag::of_stream(self.name, i128::from(self.generation));
        (self.first_seq, self.last_seq) = (1, 0);
        self.records.clear();
        self.snapshot = None;
    }

    pub(crate) fn take_snapshot(&mut self) {
        self.snapshot = Some((self.first_seq, self.last_seq, self.records.clone()));
    }

    /// Restores the snapshot; the sequence numbers after it will be assigned to other messages.
    pub(crate) fn restore(&mut self) -> bool {
        let Some(snapshot) = self.snapshot.clone() else {
            return false;
        };
        self.generation += 1;
        self.remembered = None; // A change takes longer than a state is remembered.
        (self.first_seq, self.last_seq, self.records) = snapshot;
        true
    }

    /// Messages stored after a sequence number, in order.
    pub(crate) fn stored(&self, after: u64) -> impl Iterator<Item = (u64, &Record)> {
        self.records
            .range(after + 1..)
            .filter(|(_, record)| record.fate == Fate::Kept)
            .map(|(seq, one)| (*seq, one))
    }

    pub(crate) fn event(&self, seq: u64, record: &Record, received: Instant) -> Event {
        Event {
            position: Position {
                tag: self.tag,
                seq,
                fingerprint: Some(fingerprint(record.content)),
            },
            subject: record.subject.clone(),
            name: None,
            tier: None,
            is_end: false,
            sample: None,
            version: None,
            headers: Default::default(),
            data: payload(record.content).into(),
            received,
        }
    }
}

/// Archive of a source: slow, paged, and failing at random.
#[derive(Debug)]
pub(crate) struct SimulatedArchive(pub Shared);

struct Reading {
    source: Shared,
    filters: FilterSet,
    through: u64,
    generation: u64,
}

impl SimulatedArchive {
    async fn respond(source: &Shared) -> Result<(), Unavailable> {
        let wait = {
            let rng = &mut lock(source).rng;
            if rng.u8(..) < 8 { 2000 } else { rng.u64(..30) }
        };
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let mut source = lock(source);
        let fails = source.is_failing || source.rng.u8(..) < 6;
        if fails {
            Err(Unavailable::Temporary("by chance".into()))
        } else {
            Ok(())
        }
    }
}

impl Archive for SimulatedArchive {
    fn state(&self, seq: u64) -> BoxFuture<'_, State> {
        Box::pin(async move {
            let now = tokio::time::Instant::now();
            let remembered = lock(&self.0).remembered;
            if let Some((_, state)) =
                remembered.filter(|(at, state)| at.elapsed() < REMEMBERED && state.last_seq >= seq)
            {
                return Ok(state);
            }
            Self::respond(&self.0).await?;
            let mut source = lock(&self.0);
            let state = State {
                tag: source.tag,
                first_seq: source.first_seq,
                last_seq: source.last_seq,
            };
            source.remembered = Some((now, state));
            Ok(state)
        })
    }

    fn fingerprint(&self, seq: u64) -> BoxFuture<'_, Option<Fingerprint>> {
        Box::pin(async move {
            Self::respond(&self.0).await?;
            let source = lock(&self.0);
            let record = source
                .records
                .get(&seq)
                .filter(|record| record.fate == Fate::Kept);
            Ok(record.map(|record| fingerprint(record.content)))
        })
    }

    fn locate<'a>(&'a self, _: Begin, _: &'a FilterSet) -> BoxFuture<'a, Position> {
        Box::pin(async move {
            Self::respond(&self.0).await?;
            let source = lock(&self.0);
            Ok(Position {
                tag: source.tag,
                seq: source.first_seq - 1,
                fingerprint: None,
            })
        })
    }

    fn latest<'a>(&'a self, _: &'a FilterSet, _: usize) -> BoxFuture<'a, Latest> {
        Box::pin(async { Err(Unavailable::Temporary("not stored".into())) })
    }

    fn end<'a>(&'a self, _: &'a FilterSet) -> BoxFuture<'a, Option<u64>> {
        Box::pin(async { Ok(None) })
    }

    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages> {
        let generation = lock(&self.0).generation;
        Box::new(Reading {
            source: self.0.clone(),
            filters: filters.clone(),
            through: after,
            generation,
        })
    }
}

impl Pages for Reading {
    fn next(&mut self) -> BoxFuture<'_, Page> {
        Box::pin(async {
            loop {
                SimulatedArchive::respond(&self.source).await?;
                if let Some(page) = self.page()? {
                    self.through = page.through;
                    return Ok(page);
                }
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
        })
    }
}

impl Reading {
    fn page(&self) -> Result<Option<Page>, Unavailable> {
        let mut source = lock(&self.source);
        let source = &mut *source;
        if source.generation != self.generation {
            return Err(Unavailable::Changed);
        }
        let most = source.rng.usize(1..7);
        let mut after = self.through.max(source.first_seq - 1);
        let selected = |after| {
            source
                .stored(after)
                .filter(|(_, one)| self.filters.matches(&one.subject))
                .filter(|(_, one)| source.reports_poison || !one.is_poison)
        };
        let unreadable = selected(after)
            .next()
            .filter(|(_, one)| one.is_poison && after == self.through);
        if let Some((seq, _)) = unreadable {
            after = seq;
        }
        let now = tokio::time::Instant::now().into_std();
        let mut events: Vec<Event> = Vec::new();
        let mut through = source.last_seq;
        for (seq, one) in selected(after) {
            if one.is_poison {
                // It is the start of the next page.
                through = seq - 1;
                break;
            }
            if events.len() == most {
                through = events[most - 1].position.seq;
                break;
            }
            events.push(source.event(seq, one, now));
        }
        Ok((through > self.through).then_some(Page {
            after,
            is_unreadable: unreadable.is_some(),
            events,
            through,
        }))
    }
}
