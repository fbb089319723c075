//! What one client may take: event streams and sets of filters at one time, and tokens for opening them and for events.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use super::config::{PerClient, Rate};
use super::token_bucket::Bucket;

/// Every client that opened an event stream lately, by its id.
///
/// Memory: some 500 bytes a client; those without an open event stream are at most 100,000, and the least
/// recently seen are forgotten first. Nothing is kept while no limit is configured.
#[derive(Debug)]
pub struct ClientLimiter {
    config: ArcSwap<PerClient>,
    shards: [Mutex<Shard>; SHARDS],
    /// Log lines about single clients, all together.
    log_bucket: Bucket,
    began: Instant,
}

type Shard = HashMap<Box<str>, Arc<Client>>;

/// One client.
#[derive(Debug)]
struct Client {
    id: Box<str>,
    /// Event streams that are open.
    open: AtomicUsize,
    /// Sets of filters that they read, by a hash of each, and how many read it.
    filter_sets: Mutex<HashMap<u64, usize>>,
    buckets: ArcSwap<Buckets>,
    /// Seconds since the table began at which it opened an event stream last.
    seen: AtomicU64,
    /// Seconds since the table began, plus one, at which it was last logged as throttled; 0: never.
    logged: AtomicU64,
}

#[derive(Debug, Default)]
struct Buckets {
    connects: Option<Bucket>,
    events: Option<Bucket>,
}

/// One event stream of a client, counted until it is dropped.
#[derive(Debug)]
pub struct ClientPermit {
    client: Arc<Client>,
    clients: Arc<ClientLimiter>,
    /// Sets of filters that it reads.
    filter_sets: SmallVec<[u64; 1]>,
}

/// Which limit a client has reached.
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

/// A client gets no event stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Throttled {
    /// Why.
    pub limit: Limit,
    /// When it is worth asking again; none: when it has ended one.
    pub wait: Option<Duration>,
}

/// 100,000 clients without an open event stream are remembered, at 500 bytes 50 MB: an attacker with more addresses
/// than that is not held by limits per address anyway.
const CLIENTS_MAX: usize = 100_000;

/// 16: more than the shards that open event streams.
const SHARDS: usize = 16;

/// 60 s: how often one client is logged as throttled.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// Ten lines a second about all clients together.
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
    /// A table without limits.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            config: ArcSwap::default(),
            shards: std::array::from_fn(|_| Mutex::default()),
            log_bucket: Bucket::new(LOG_RATE),
            began: Instant::now(),
        })
    }

    /// Changes the limits, for open event streams too. Buckets of a changed rate begin full.
    pub fn set(&self, config: PerClient) {
        let before = self.config.swap(Arc::new(config));
        if *before == config {
            return;
        }
        for shard in &self.shards {
            for client in lock(shard).values() {
                client.buckets.store(Arc::new(Buckets::new(config)));
            }
        }
    }

    /// Counts one event stream more of a client; none when there are no limits.
    ///
    /// # Errors
    /// [`Throttled`] when it has reached one.
    pub fn acquire(self: &Arc<Self>, id: &str) -> Result<Option<ClientPermit>, Throttled> {
        let config = **self.config.load();
        if config == PerClient::default() {
            return Ok(None);
        }
        let client = self.client(id, config);
        let most = config.connections.unwrap_or(usize::MAX);
        // Counted before it is compared: two that come at once are not both the last.
        let before = client.open.fetch_add(1, Ordering::Relaxed);
        let permit = ClientPermit {
            client,
            clients: Arc::clone(self),
            filter_sets: SmallVec::new(),
        };
        // The token first: who knocks too often with all its event streams open is logged of the rate.
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
        if before >= most {
            return Err(permit.reject(Limit::Connections, None));
        }
        Ok(Some(permit))
    }

    fn client(&self, id: &str, config: PerClient) -> Arc<Client> {
        let now = self.began.elapsed().as_secs();
        let mut shard = lock(&self.shards[shard_of(id)]);
        if let Some(known) = shard.get(id) {
            known.seen.store(now, Ordering::Relaxed);
            return Arc::clone(known);
        }
        if shard.len() >= CLIENTS_MAX / SHARDS {
            evict_idle(&mut shard);
        }
        let client = Arc::new(Client {
            id: id.into(),
            open: AtomicUsize::new(0),
            filter_sets: Mutex::default(),
            buckets: ArcSwap::from_pointee(Buckets::new(config)),
            seen: AtomicU64::new(now),
            logged: AtomicU64::new(0),
        });
        shard.insert(id.into(), Arc::clone(&client));
        client
    }

    /// How many are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Forgets the eighth that has been away longest of those without an open event stream: whoever is forgotten begins
/// with full buckets.
fn evict_idle(shard: &mut Shard) {
    let away = |client: &Client| client.open.load(Ordering::Relaxed) == 0;
    let mut seen: Vec<u64> = shard
        .values()
        .filter(|client| away(client))
        .map(|client| client.seen.load(Ordering::Relaxed))
        .collect();
    if seen.is_empty() {
        return;
    }
    let mut left = (seen.len() / 8).max(1);
    let (_, last, _) = seen.select_nth_unstable(left - 1);
    let last = *last;
    shard.retain(|_, client| {
        let goes = left > 0 && away(client) && client.seen.load(Ordering::Relaxed) <= last;
        left -= usize::from(goes);
        !goes
    });
}

fn shard_of(id: &str) -> usize {
    // FNV-1a: spreads, and an attacker gains nothing from one shard but a fuller one.
    let hash = id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash % SHARDS as u64) as usize
}

fn lock(shard: &Mutex<Shard>) -> MutexGuard<'_, Shard> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Visit ===

impl ClientPermit {
    /// Counts the sets of filters that the event stream reads, each by a hash. Called once, before they are opened.
    ///
    /// # Errors
    /// [`Throttled`] when its client reads too many different ones.
    pub fn add_filter_sets(
        &mut self,
        filter_sets: impl IntoIterator<Item = u64>,
    ) -> Result<(), Throttled> {
        let most = self.clients.config.load().filter_sets.unwrap_or(usize::MAX);
        let is_full = {
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
            // A set that the client reads already costs nothing more. A route of more sources than allowed sets is
            // served to one event stream.
            held.len() > most && held.len() > before && before > 0
        };
        if is_full {
            Err(self.reject(Limit::FilterSets, None))
        } else {
            Ok(())
        }
    }

    /// What its events cost, if they do.
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

    /// One line for a client in a minute, ten in a second for all.
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
        if !self.filter_sets.is_empty() {
            let mut held = self
                .client
                .filter_sets
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            for filter_set in &self.filter_sets {
                if let Entry::Occupied(mut readers) = held.entry(*filter_set) {
                    *readers.get_mut() -= 1;
                    if *readers.get() == 0 {
                        readers.remove();
                    }
                }
            }
            // The memory of thousands of them is not kept for a client that has a few.
            if held.capacity() > 4 * held.len() + 64 {
                held.shrink_to_fit();
            }
        }
        self.client.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The tokens of one client's events: all its event streams take from one bucket.
#[derive(Debug)]
pub struct EventTokens<'v> {
    buckets: Arc<Buckets>,
    permit: &'v ClientPermit,
}

impl EventTokens<'_> {
    /// Takes a token for one event, `cost` of them under pressure.
    ///
    /// # Errors
    /// How long until there is one.
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

    /// Takes a token that is not there: the bucket goes negative, by one burst at most.
    pub fn borrow(&self) {
        if let Some(bucket) = &self.buckets.events {
            bucket.borrow();
        }
    }
}

impl Buckets {
    fn new(config: PerClient) -> Self {
        Self {
            connects: config.connects.map(Bucket::new),
            events: config.events.map(Bucket::new),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(config: PerClient) -> Arc<ClientLimiter> {
        let clients = ClientLimiter::new();
        clients.set(config);
        clients
    }

    #[test]
    fn nobody_is_remembered_while_nothing_is_limited() {
        let clients = ClientLimiter::new();
        assert!(clients.acquire("a").unwrap().is_none());
        assert!(clients.is_empty());
    }

    #[test]
    fn a_client_has_so_many_event_streams_at_one_time_and_others_have_theirs() {
        let clients = clients(PerClient {
            connections: Some(2),
            ..PerClient::default()
        });
        let (one, _two) = (clients.acquire("a").unwrap(), clients.acquire("a").unwrap());
        for _ in 0..3 {
            assert_eq!(
                clients.acquire("a").unwrap_err(),
                Throttled {
                    limit: Limit::Connections,
                    wait: None
                }
            );
        }
        assert!(clients.acquire("b").is_ok());
        drop(one);
        assert!(
            clients.acquire("a").is_ok(),
            "who was refused is not counted"
        );
    }

    #[test]
    fn a_client_reads_a_number_of_different_filter_sets_at_one_time() {
        let clients = clients(PerClient {
            filter_sets: Some(2),
            ..PerClient::default()
        });
        let read = |id: &str, filter_sets: &[u64]| {
            let mut permit = clients.acquire(id).unwrap().unwrap();
            permit
                .add_filter_sets(filter_sets.iter().copied())
                .map(|()| permit)
        };
        let (one, _two) = (read("a", &[1]).unwrap(), read("a", &[2]).unwrap());
        let throttled = read("a", &[3]).unwrap_err();
        assert_eq!(
            throttled,
            Throttled {
                limit: Limit::FilterSets,
                wait: None
            }
        );
        let again: Vec<ClientPermit> = (0..100).map(|_| read("a", &[1]).unwrap()).collect();
        assert!(read("b", &[3]).is_ok(), "another client has its own");
        drop(one);
        assert!(read("a", &[3]).is_err(), "the set is still read");
        drop(again);
        assert!(
            read("a", &[3]).is_ok(),
            "a set that is not read any longer does not count"
        );
        assert!(
            read("c", &[4, 5, 6]).is_ok(),
            "one event stream is served however many sources its route has"
        );
    }

    #[test]
    fn a_client_opens_a_burst_and_then_waits_for_tokens() {
        let clients = clients(PerClient {
            connects: Some(Rate::new(1, 3)),
            ..PerClient::default()
        });
        for _ in 0..3 {
            assert!(clients.acquire("a").is_ok());
        }
        let throttled = clients.acquire("a").unwrap_err();
        assert_eq!(throttled.limit, Limit::Connects);
        assert!(throttled.wait.is_some_and(
            |wait| wait > Duration::from_millis(500) && wait <= Duration::from_secs(1)
        ));
        assert!(clients.acquire("b").is_ok());
    }

    #[test]
    fn changed_limits_hold_for_those_who_are_here_already() {
        let clients = clients(PerClient {
            connections: Some(5),
            ..PerClient::default()
        });
        let permit = clients.acquire("a").unwrap().unwrap();
        assert!(permit.events().is_none());
        clients.set(PerClient {
            connections: Some(1),
            events: Some(Rate::new(1, 1)),
            ..PerClient::default()
        });
        assert!(clients.acquire("a").is_err());
        let events = permit.events().unwrap();
        assert!(events.take(1).is_ok() && events.take(1).is_err());
    }

    #[test]
    fn any_number_of_clients_is_remembered_within_the_bound_and_who_is_here_stays() {
        let clients = clients(PerClient {
            connections: Some(1),
            ..PerClient::default()
        });
        let here: Vec<_> = (0..100)
            .map(|number| clients.acquire(&format!("here-{number}")).unwrap())
            .collect();
        for number in 0..CLIENTS_MAX * 2 {
            assert!(clients.acquire(&format!("gone-{number}")).is_ok());
        }
        assert!(clients.len() <= CLIENTS_MAX, "{}", clients.len());
        for number in 0..here.len() {
            assert!(clients.acquire(&format!("here-{number}")).is_err());
        }
    }
}
