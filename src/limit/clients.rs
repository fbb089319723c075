//! Limits per client: open event streams, filter sets, and rates of connects and events.
//!
//! A client is identified by the route's `client` template or its address. [`ClientLimiter`] maps
//! ids to counters in 16 locked shards; a lock is held for one lookup. [`ClientLimiter::acquire`]
//! returns a [`ClientPermit`] that the event stream holds until it ends. Fixed limits can change at
//! any time and apply to open event streams too. Limits from claims come with a request: those of
//! the newest event stream apply to the client.
//!
//! A client that reaches a limit of connections, filter sets or connects gets a rejection; reaching
//! the rate of events delays its events (`http::stream::throttle`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::config::{PerClient, PerClientConfig, Rate};
use super::token_bucket::Bucket;
use crate::auth::Principal;

/// Table of the clients that opened an event stream recently, by id.
///
/// A client takes about 500 bytes. Clients without an open event stream are at most
/// 100,000; the least recently seen are evicted first. The table is empty while no limit is
/// configured.
#[derive(Debug)]
pub struct ClientLimiter {
    config: ArcSwap<PerClientConfig>,
    shards: [Mutex<Shard>; SHARDS],
    /// Rate of log lines about throttled clients.
    log_bucket: Bucket,
    began: Instant,
}

type Shard = HashMap<Box<str>, Arc<Client>>;

/// One client.
#[derive(Debug)]
struct Client {
    id: Box<str>,
    /// Open event streams.
    open: AtomicUsize,
    /// Hash of each filter set that is read, with the number of its readers.
    filter_sets: Mutex<HashMap<u64, usize>>,
    buckets: ArcSwap<Buckets>,
    /// Time of the last opened event stream, in seconds since the table began.
    seen: AtomicU64,
    /// Time of the last log line about throttling, in seconds since the table began plus one; 0:
    /// never.
    logged: AtomicU64,
}

#[derive(Debug, Default)]
struct Buckets {
    connects: Option<Bucket>,
    events: Option<Bucket>,
    /// A claim has set the rate of `connects`.
    has_claimed_connects: bool,
    /// A claim has set the rate of `events`.
    has_claimed_events: bool,
}

/// Permit of one event stream; dropping it returns what it counts.
#[derive(Debug)]
pub struct ClientPermit {
    client: Arc<Client>,
    clients: Arc<ClientLimiter>,
    /// Hashes of the filter sets that the event stream reads.
    filter_sets: SmallVec<[u64; 1]>,
    /// Highest number of filter sets of the client.
    filter_sets_max: Option<usize>,
}

/// Limit of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `limits.per_client.connections`.
    Connections,
    /// `limits.per_client.filter_sets`.
    FilterSets,
    /// `limits.per_client.connects`.
    Connects,
    /// `limits.per_client.events`.
    Events,
}

/// Rejection of an event stream because its client has reached a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// Limit that is reached.
    pub limit: Limit,
    /// Time until a retry can succeed. `None`: the client must end an event stream first.
    pub wait: Option<Duration>,
}

/// 100,000 clients without an open event stream, 50 MB at 500 bytes each. Limits per address do not
/// stop an attacker with more addresses.
const CLIENTS_MAX: usize = 100_000;

/// 16: more than the threads that open event streams.
const SHARDS: usize = 16;

/// 60 s: interval of log lines about one throttled client.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Ten log lines per second about all throttled clients.
const LOG_RATE: Rate = Rate::new(10, 10);

impl Limit {
    /// Every limit, in the order of the variants.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::FilterSets,
        Self::Connects,
        Self::Events,
    ];

    /// The `limit` label of `sidestream_throttled_total`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::FilterSets => "filter_sets",
            Self::Connects => "connects",
            Self::Events => "events",
        }
    }
}

impl ClientLimiter {
    /// Returns a table without limits.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            config: ArcSwap::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            log_bucket: Bucket::new(LOG_RATE),
            began: Instant::now(),
        })
    }

    /// Changes the limits, for open event streams too. Rates from claims stay.
    pub fn set(&self, config: PerClientConfig) {
        let fixed = config.fixed;
        let before = self.config.swap(Arc::new(config));
        if before.fixed == fixed {
            return;
        }
        for shard in &self.shards {
            for client in lock(shard).values() {
                client.set_rates(client.buckets.load().claimed(), fixed);
            }
        }
    }

    /// Counts a new event stream of a client that reads these filter sets, by hash. `None`: no
    /// limit applies to it.
    ///
    /// # Errors
    /// Returns [`Throttled`] if the client has reached a limit.
    pub fn acquire(
        self: &Arc<Self>,
        id: &str,
        principal: &Principal,
        filter_sets: impl IntoIterator<Item = u64>,
    ) -> Result<Option<ClientPermit>, Throttled> {
        let config = self.config.load();
        let claimed = config.claims.limits_of(principal);
        if claimed.or(config.fixed) == PerClient::default() {
            return Ok(None);
        }
        let (client, limits) = self.client(id, claimed);
        // Counted before the comparison, so that two concurrent requests cannot both be the last
        // permitted one.
        let before = client.open.fetch_add(1, Ordering::Relaxed);
        let mut permit = ClientPermit {
            client,
            clients: Arc::clone(self),
            filter_sets: SmallVec::new(),
            filter_sets_max: limits.filter_sets,
        };
        // The rate first: a client that retries in a loop at its limit of event streams gets
        // `connects` with a time to wait.
        if let Some(Err(wait)) = permit
            .client
            .buckets
            .load()
            .connects
            .as_ref()
            .map(|bucket| bucket.take(1))
        {
            return Err(permit.reject(Limit::Connects, Some(wait)));
        }
        if limits.connections.is_some_and(|most| before >= most) {
            return Err(permit.reject(Limit::Connections, None));
        }
        if !permit.add_filter_sets(filter_sets) {
            return Err(permit.reject(Limit::FilterSets, None));
        }
        Ok(Some(permit))
    }

    /// Returns the client with this id and its limits: those of its claims, then the fixed ones.
    fn client(&self, id: &str, claimed: PerClient) -> (Arc<Client>, PerClient) {
        let now = self.began.elapsed().as_secs();
        let mut shard = lock(&self.shards[shard_of(id)]);
        // With the lock held: `set` changes the clients of the table after this one.
        let fixed = self.config.load().fixed;
        let limits = claimed.or(fixed);
        if let Some(known) = shard.get(id) {
            known.seen.store(now, Ordering::Relaxed);
            known.set_rates(claimed, fixed);
            return (Arc::clone(known), limits);
        }
        if shard.len() >= CLIENTS_MAX / SHARDS {
            evict_idle(&mut shard);
        }
        let client = Arc::new(Client {
            id: id.into(),
            open: AtomicUsize::new(0),
            filter_sets: Mutex::default(),
            buckets: ArcSwap::from_pointee(Buckets::default().with_rates(claimed, fixed)),
            seen: AtomicU64::new(now),
            logged: AtomicU64::new(0),
        });
        shard.insert(id.into(), Arc::clone(&client));
        (client, limits)
    }

    /// Returns the number of clients in the table.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns whether the table is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Client {
    /// Returns whether no event stream is open.
    fn is_idle(&self) -> bool {
        self.open.load(Ordering::Relaxed) == 0
    }

    /// Replaces the buckets whose rate changes. Called with the lock of the table's shard held.
    fn set_rates(&self, claimed: PerClient, fixed: PerClient) {
        let buckets = self.buckets.load();
        if !buckets.have_rates(claimed, fixed) {
            self.buckets
                .store(Arc::new(buckets.with_rates(claimed, fixed)));
        }
    }
}

/// Evicts the least recently seen eighth of the clients without an open event stream. An evicted
/// client starts again with full buckets.
fn evict_idle(shard: &mut Shard) {
    let mut seen: Vec<u64> = shard
        .values()
        .filter(|client| client.is_idle())
        .map(|client| client.seen.load(Ordering::Relaxed))
        .collect();
    if seen.is_empty() {
        return;
    }
    let mut left = (seen.len() / 8).max(1);
    let (_, last, _) = seen.select_nth_unstable(left - 1);
    let last = *last;
    shard.retain(|_, client| {
        let is_evicted =
            left > 0 && client.is_idle() && client.seen.load(Ordering::Relaxed) <= last;
        left -= usize::from(is_evicted);
        !is_evicted
    });
}

fn shard_of(id: &str) -> usize {
    // FNV-1a: distributes well, and filling one shard gains an attacker nothing else.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % SHARDS as u64) as usize
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ClientPermit {
    /// Counts the filter sets that the event stream reads. Returns false if the client reads too
    /// many different ones.
    fn add_filter_sets(&mut self, filter_sets: impl IntoIterator<Item = u64>) -> bool {
        let mut held = self
            .client
            .filter_sets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let before = held.len();
        for filter_set in filter_sets {
            *held.entry(filter_set).or_default() += 1;
            self.filter_sets.push(filter_set);
        }
        // A set that the client already reads is free. The first event stream of a client is
        // served even if its route has more sources than the limit.
        let is_more = held.len() > before && before > 0;
        !(is_more && self.filter_sets_max.is_some_and(|most| held.len() > most))
    }

    /// Counts other filter sets in place of those that the event stream reads, as if it were opened
    /// again.
    ///
    /// # Errors
    /// Returns [`Throttled`] if the client has reached a limit. The filter sets are as before.
    pub fn change_filter_sets(
        &mut self,
        filter_sets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Throttled> {
        let taken = self
            .client
            .buckets
            .load()
            .connects
            .as_ref()
            .map(|bucket| bucket.take(1));
        if let Some(Err(wait)) = taken {
            return Err(self.reject(Limit::Connects, Some(wait)));
        }
        let before = self.release_filter_sets();
        if self.add_filter_sets(filter_sets) {
            return Ok(());
        }
        self.release_filter_sets();
        // They were within the limit.
        self.add_filter_sets(before);
        Err(self.reject(Limit::FilterSets, None))
    }

    /// Stops counting the filter sets, and returns them.
    fn release_filter_sets(&mut self) -> SmallVec<[u64; 1]> {
        let released = std::mem::take(&mut self.filter_sets);
        if released.is_empty() {
            return released;
        }
        let mut held = self
            .client
            .filter_sets
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for filter_set in &released {
            if let Entry::Occupied(mut readers) = held.entry(*filter_set) {
                *readers.get_mut() -= 1;
                if *readers.get() == 0 {
                    readers.remove();
                }
            }
        }
        // A client that had thousands of sets does not keep their memory.
        if held.capacity() > 4 * held.len() + 64 {
            held.shrink_to_fit();
        }
        released
    }

    /// Returns the bucket of the client's events, if they are limited.
    #[must_use]
    pub fn events(&self) -> Option<EventTokens<'_>> {
        let buckets = self.client.buckets.load_full();
        buckets.events.is_some().then_some(EventTokens {
            buckets,
            permit: self,
        })
    }

    fn reject(&self, limit: Limit, wait: Option<Duration>) -> Throttled {
        self.log_throttled(limit);
        Throttled { limit, wait }
    }

    /// Logs at most one line per client and minute, and ten per second in total.
    fn log_throttled(&self, limit: Limit) {
        let now = self.clients.began.elapsed().as_secs() + 1;
        let logged = self.client.logged.load(Ordering::Relaxed);
        if logged != 0 && now < logged + LOG_EVERY.as_secs() {
            return;
        }
        if self.clients.log_bucket.take(1).is_ok() {
            self.client.logged.store(now, Ordering::Relaxed);
            tracing::info!(
                client = &*self.client.id,
                limit = limit.as_str(),
                "client throttled"
            );
        }
    }
}

impl Drop for ClientPermit {
    fn drop(&mut self) {
        self.release_filter_sets();
        self.client.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Token bucket of one client's events, shared by its event streams.
#[derive(Debug)]
pub struct EventTokens<'v> {
    buckets: Arc<Buckets>,
    permit: &'v ClientPermit,
}

impl EventTokens<'_> {
    /// Takes the tokens of one event; `cost` is above 1 while the pod sheds load.
    ///
    /// # Errors
    /// Returns the time until the tokens are available.
    pub fn take(&self, cost: u32) -> Result<(), Duration> {
        let taken = self
            .buckets
            .events
            .as_ref()
            .map_or(Ok(()), |bucket| bucket.take(cost));
        if taken.is_err() {
            self.permit.log_throttled(Limit::Events);
        }
        taken
    }

    /// Takes a token that is not available yet; the debt is at most one burst.
    pub fn borrow(&self) {
        if let Some(bucket) = &self.buckets.events {
            bucket.borrow();
        }
    }
}

impl Buckets {
    /// Returns buckets with these rates. One whose rate changes is not fuller than before.
    fn with_rates(&self, claimed: PerClient, fixed: PerClient) -> Self {
        let bucket = |before: &Option<Bucket>, rate: Rate| match before {
            Some(before) => before.with_rate(rate),
            None => Bucket::new(rate),
        };
        let PerClient {
            connects, events, ..
        } = claimed.or(fixed);
        Self {
            connects: connects.map(|rate| bucket(&self.connects, rate)),
            events: events.map(|rate| bucket(&self.events, rate)),
            has_claimed_connects: claimed.connects.is_some(),
            has_claimed_events: claimed.events.is_some(),
        }
    }

    /// Returns whether the buckets have these rates.
    fn have_rates(&self, claimed: PerClient, fixed: PerClient) -> bool {
        let limits = claimed.or(fixed);
        self.connects.as_ref().map(Bucket::rate) == limits.connects
            && self.events.as_ref().map(Bucket::rate) == limits.events
            && self.has_claimed_connects == claimed.connects.is_some()
            && self.has_claimed_events == claimed.events.is_some()
    }

    /// Returns the rates that come from claims.
    fn claimed(&self) -> PerClient {
        let rate = |bucket: &Option<Bucket>, is_claimed: bool| {
            let bucket = bucket.as_ref().filter(|_| is_claimed);
            bucket.map(Bucket::rate)
        };
        PerClient {
            connects: rate(&self.connects, self.has_claimed_connects),
            events: rate(&self.events, self.has_claimed_events),
            ..PerClient::default()
        }
    }
}

#[cfg(test)]
mod tests;
