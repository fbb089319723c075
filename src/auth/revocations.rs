//! Revocations: credentials that are not accepted until a time, and event streams that end.
//!
//! ```text
//! bucket --nats::kv::revocations--> Revocations::apply --> Table     each request: check_principal,
//!                                         |                          check_client
//!                                         '-> Ended --> StreamTable  open event streams: Mark
//! ```
//!
//! | kind | revoked |
//! | --- | --- |
//! | `jti`, `sid` | credentials with this claim |
//! | `sub` | credentials of this subject, of every provider, if their `iat` is at or before `at`, or missing |
//! | `client` | clients of this name, under the same condition |
//! | `kick` | nothing: open event streams of this name end once |
//!
//! The table has at most [`ENTRIES_MAX`] entries. Above that, further entries still end open event
//! streams, but their clients may return, as if the bucket could not be read: `when_unavailable`
//! decides, and the check is degraded.

pub mod entry;
mod mark;
mod table;

#[cfg(test)]
mod tests;

use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::config::WhenUnavailable;
use super::principal::{Identity, Principal};
pub use entry::{Entry, InvalidEntry, Kind, Times};
pub use mark::{Ended, Mark};
use mark::{hash, is_revoked};
use table::{Digest, Table};

/// 1,048,576 entries: about 45 MB.
pub const ENTRIES_MAX: usize = 1 << 20;

/// 30 s without the bucket, until requests count as not checked: longer than a restart of NATS or
/// an election in its cluster.
pub const UNAVAILABLE_AFTER: Duration = Duration::from_secs(30);

/// Number of entries that one call of [`Revocations::sweep`] looks at: well below a millisecond.
const SWEEP_ENTRIES: usize = 1024;

/// Revocations that this pod knows.
#[derive(Debug)]
pub struct Revocations {
    table: RwLock<Table>,
    /// Number of entries: without any, a request costs no digest.
    len: AtomicUsize,
    /// Increases with every change that can concern a client.
    generation: AtomicU64,
    source: RwLock<Source>,
    /// Requests are rejected while the revocations are not known.
    rejects_unchecked: AtomicBool,
    /// Values whose open event streams have not been ended yet.
    ended: Mutex<Ended>,
    key: RandomState,
}

/// State of the bucket.
#[derive(Debug, Default)]
struct Source {
    /// It was read completely once.
    was_read: bool,
    /// Time at which the watch was lost.
    lost: Option<Instant>,
    /// Entries are missing, because the table is full.
    is_incomplete: bool,
}

/// Change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Kind of the value.
    pub kind: Kind,
    /// The value.
    pub value: String,
    /// Times of the entry. `None`: it was deleted.
    pub times: Option<Times>,
}

/// Reason why a request is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Its credentials are revoked.
    Revoked,
    /// Revocations are not known at the moment.
    Unavailable,
}

impl Default for Revocations {
    fn default() -> Self {
        Self::new()
    }
}

impl Revocations {
    /// Returns an empty table of a bucket that was not read yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_max(ENTRIES_MAX)
    }

    fn with_max(entries_max: usize) -> Self {
        Self {
            table: RwLock::new(Table::new(entries_max)),
            len: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            source: RwLock::default(),
            rejects_unchecked: AtomicBool::new(false),
            ended: Mutex::default(),
            key: RandomState::new(),
        }
    }

    // Requests.

    /// Changes whether requests are rejected while the revocations are not known.
    pub fn set_when_unavailable(&self, when: WhenUnavailable) {
        let rejects = when == WhenUnavailable::Reject;
        self.rejects_unchecked.store(rejects, Ordering::Relaxed);
    }

    /// Checks the credentials of a request. An anonymous one has none.
    ///
    /// # Errors
    /// They are revoked, or it is not known whether they are.
    pub fn check_principal(&self, principal: &Principal) -> Result<(), Denial> {
        let Principal::Identified(identity) = principal else {
            return Ok(());
        };
        let values = values(identity);
        let values = values.iter().map(|(kind, value)| (*kind, &**value));
        self.check(values, issued(identity))
    }

    /// Checks the name of a client.
    ///
    /// # Errors
    /// It is revoked, or it is not known whether it is.
    pub fn check_client(&self, name: &str, principal: &Principal) -> Result<(), Denial> {
        let issued = match principal {
            Principal::Anonymous => 0,
            Principal::Identified(identity) => issued(identity),
        };
        self.check([(Kind::Client, name)].into_iter(), issued)
    }

    fn check<'v>(
        &self,
        mut values: impl Iterator<Item = (Kind, &'v str)>,
        issued: u32,
    ) -> Result<(), Denial> {
        if self.len.load(Ordering::Relaxed) > 0 {
            let now = unix_seconds();
            let is_known = |(kind, value): (Kind, &str)| {
                let digest = Digest::of(kind, value);
                let table = self.table.read().unwrap_or_else(PoisonError::into_inner);
                let times = table.get(&digest, now);
                times.is_some_and(|times| is_revoked(kind, times.at, issued))
            };
            if values.any(is_known) {
                return Err(Denial::Revoked);
            }
        }
        if self.rejects_unchecked.load(Ordering::Relaxed) && !self.is_available() {
            return Err(Denial::Unavailable);
        }
        Ok(())
    }

    /// Returns a number that changes with every entry. An event stream that is registered with the
    /// same number before and after is found by the next [`Self::take_ended`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Returns what an event stream keeps. `client`: its name, if it has one.
    #[must_use]
    pub fn mark(&self, principal: &Principal, client: Option<&str>) -> Mark {
        let mut mark = Mark::default();
        let mut set = |kind: Kind, value: &str| {
            mark.hashes[kind as usize] = hash(&self.key, kind, value);
        };
        if let Some(client) = client {
            set(Kind::Client, client);
        }
        if let Principal::Identified(identity) = principal {
            for (kind, value) in values(identity) {
                set(kind, &value);
            }
            mark.issued = issued(identity);
        }
        mark
    }

    // The bucket.

    /// Applies changes of the bucket, in their order. Returns the number of entries that did not
    /// fit into the table.
    pub fn apply(&self, changes: &[Change]) -> u64 {
        let now = unix_seconds();
        let mut not_stored = 0;
        {
            let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
            for change in changes.iter().filter(|change| change.kind != Kind::Kick) {
                let digest = Digest::of(change.kind, &change.value);
                match change.times.filter(|times| times.until > now) {
                    Some(times) => not_stored += u64::from(!table.insert(digest, times)),
                    None => table.remove(&digest),
                }
            }
            self.len.store(table.len(), Ordering::Relaxed);
        }
        if not_stored > 0 {
            self.source_mut(|source| source.is_incomplete = true);
        }
        {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            for change in changes {
                let hash = hash(&self.key, change.kind, &change.value);
                match change.times.filter(|times| times.until > now) {
                    Some(times) => ended.add(change.kind, hash, times),
                    None => ended.forget(change.kind, hash),
                }
            }
        }
        // After the table, and before the event streams are searched.
        self.generation.fetch_add(1, Ordering::SeqCst);
        not_stored
    }

    /// Returns the values of which open event streams must end, once.
    #[must_use]
    pub fn take_ended(&self) -> Ended {
        std::mem::take(&mut *self.ended.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the number of values that [`Self::take_ended`] would return.
    #[must_use]
    pub fn ended_len(&self) -> usize {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Removes expired entries, a part of the table at a time.
    pub fn sweep(&self) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        table.sweep(unix_seconds(), SWEEP_ENTRIES);
        self.len.store(table.len(), Ordering::Relaxed);
    }

    /// Returns the number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Returns whether there are no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that a complete read of the bucket begins. Entries that did not fit may fit now.
    pub fn read_begins(&self) {
        self.source_mut(|source| source.is_incomplete = false);
    }

    /// Records that every entry of the bucket is known, and that changes arrive.
    pub fn set_current(&self) {
        self.source_mut(|source| (source.was_read, source.lost) = (true, None));
    }

    /// Records that changes do not arrive, since now unless they did not before.
    pub fn set_lost(&self) {
        self.source_mut(|source| {
            source.lost.get_or_insert_with(Instant::now);
        });
    }

    /// Returns whether entries are missing, because the table is full.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.source(|source| source.is_incomplete)
    }

    /// Returns whether the bucket was read completely once.
    #[must_use]
    pub fn was_read(&self) -> bool {
        self.source(|source| source.was_read)
    }

    /// Returns whether all revocations are known, apart from the last [`UNAVAILABLE_AFTER`].
    #[must_use]
    pub fn is_available(&self) -> bool {
        self.source(|source| {
            let is_recent = |lost: Instant| lost.elapsed() < UNAVAILABLE_AFTER;
            source.was_read && !source.is_incomplete && source.lost.is_none_or(is_recent)
        })
    }

    fn source<T>(&self, read: impl FnOnce(&Source) -> T) -> T {
        read(&self.source.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn source_mut(&self, write: impl FnOnce(&mut Source)) {
        write(&mut self.source.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Returns the values of an identity that can be revoked.
fn values(identity: &Identity) -> Vec<(Kind, String)> {
    let mut values = vec![(Kind::Sub, identity.subject.to_string())];
    for kind in [Kind::Jti, Kind::Sid] {
        let value = match identity.claims.get(kind.as_str()) {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.to_string(),
            _ => continue,
        };
        values.push((kind, value));
    }
    values
}

/// Returns the time of issue in seconds since 1970; 0 if it is not known.
fn issued(identity: &Identity) -> u32 {
    let issued = identity.claims.get("iat").and_then(Value::as_f64);
    // A conversion from float saturates.
    issued.map_or(0, |seconds| seconds as u32)
}

/// Returns the time in seconds since 1970.
fn unix_seconds() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}
