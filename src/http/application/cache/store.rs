//! Objects of the cache within a bound of bytes, and requests in flight.
//!
//! An object is the responses of one URI; `Vary` distinguishes them. Three rules hold:
//!
//! - A response is stored under the lock of its [`Shard`], and only if no unsafe method has
//!   invalidated the object since its request: the generation of the shard is the same.
//! - A waiting request never receives the response of the one in flight: it looks into the cache
//!   once more ([`Landing`]). A response that is not stored is therefore not shared.
//! - Memory has two bounds: `cache.bytes` for stored objects, and a quarter of it for bodies that are
//!   read for the cache ([`Reservation`]).

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::header::{HOST, HeaderMap, HeaderName};
use hyper::http::request::Parts;
use prometheus::IntCounter;
use quick_cache::sync::{Cache as Bounded, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};
use tokio::sync::watch;
use tokio::time::timeout_at;

use super::stored::Stored;
use crate::http::application::config::CacheConfig;
use crate::telemetry::Metrics;

/// 8: responses of one object. The oldest ones are removed.
const VARIANTS_MAX: usize = 8;
/// 10,000: objects that are known as not cacheable. Their requests do not wait for each other.
const NOT_CACHEABLE_MAX: usize = 10_000;
/// 256: shards of the flights. An invalidation ends the recordings of its shard.
const SHARDS: usize = 256;
/// 16 KiB: size of a usual object, for the number of entries that the table expects.
const OBJECT_USUAL: usize = 16 * 1024;
/// 5 s: maximum wait for another request. A longer one would only hide that the application is slow.
const FLIGHT_WAIT: Duration = Duration::from_secs(5);

/// Cache of one application.
pub(in crate::http::application) struct Cache {
    objects: Bounded<Key, Object, ByBytes>,
    not_cacheable: Bounded<FlightKey, ()>,
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    /// Maximum of bytes of one object.
    object_max: usize,
    /// Maximum of `reserved`.
    reserved_max: usize,
    /// Bytes of bodies that are read for the cache.
    reserved: AtomicUsize,
    pub(super) metrics: CacheMetrics,
}

/// Handles of `sidestream_application_cache_requests_total`.
pub(super) struct CacheMetrics {
    pub(super) hit: IntCounter,
    pub(super) revalidated: IntCounter,
    pub(super) miss: IntCounter,
    pub(super) bypass: IntCounter,
}

/// Key of an object: scheme, host, path and query.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(Arc<[u8]>);

/// Responses of one URI, the newest first.
#[derive(Clone, Debug)]
pub(super) struct Object(Arc<[Arc<Stored>]>);

/// Hash of an object and of the fields that select one of its responses.
type FlightKey = u64;

#[derive(Debug, Default)]
struct Shard {
    /// Number of invalidations.
    generation: u64,
    flights: HashMap<FlightKey, Flight>,
}

/// Request in flight, for those that wait.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    end: Instant,
    verdict: watch::Receiver<Verdict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    /// Its response is not stored: each waiting request is sent by itself.
    NotStored,
}

/// Own request in flight. Its end wakes the requests that wait; without a verdict they look into the
/// cache, and one of them is the next in flight.
struct Landing {
    cache: Arc<Cache>,
    key: Key,
    flight: FlightKey,
    verdict: watch::Sender<Verdict>,
}

/// Result of [`Cache::begin`].
pub(super) enum Begun {
    /// This request is sent.
    Recording(Recording),
    /// Another one is in flight.
    Wait(Flight),
}

/// Request whose response may be stored.
pub(super) struct Recording {
    cache: Arc<Cache>,
    key: Key,
    flight: FlightKey,
    generation: u64,
    /// `None`: no other request waits for it.
    landing: Option<Landing>,
}

/// Bytes of a body that is read for the cache; dropping it releases them.
pub(in crate::http::application) struct Reservation {
    cache: Arc<Cache>,
    bytes: usize,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Key, Object> for ByBytes {
    fn weight(&self, key: &Key, object: &Object) -> u64 {
        (key.0.len() + object.bytes()) as u64
    }
}

impl Key {
    /// Returns the key of a request as the application receives it. Each part of the head that
    /// names the origin counts, because an application may use any of them.
    pub(super) fn of(head: &Parts) -> Self {
        const ORIGIN: [HeaderName; 3] = [
            HOST,
            HeaderName::from_static("x-forwarded-host"),
            HeaderName::from_static("x-forwarded-proto"),
        ];
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut key = Vec::with_capacity(64 + path.len());
        for name in ORIGIN {
            let value = head.headers.get(name);
            key.extend_from_slice(value.map_or(&[], |value| value.as_bytes()));
            // No value has it.
            key.push(b'\n');
        }
        key.extend_from_slice(path.as_bytes());
        Self(key.into())
    }
}

impl Object {
    /// Returns the newest response that a request selects, fresh or stale.
    pub(super) fn select(&self, request: &HeaderMap) -> Option<&Arc<Stored>> {
        self.0.iter().find(|stored| stored.is_selected_by(request))
    }

    /// Returns the object with a new response in place of the one that the same requests select.
    fn with(before: Option<&Self>, stored: &Arc<Stored>, bytes_max: usize) -> Self {
        let others = before.iter().flat_map(|before| before.0.iter());
        let others = others.filter(|other| !other.has_selection_of(stored));
        let mut bytes = 0;
        let all = [stored].into_iter().chain(others).take(VARIANTS_MAX);
        let kept = all.take_while(|stored| {
            bytes += stored.bytes();
            bytes <= bytes_max
        });
        Self(kept.cloned().collect())
    }

    fn bytes(&self) -> usize {
        self.0.iter().map(|stored| stored.bytes()).sum()
    }
}

impl Cache {
    /// Returns an empty cache, or none if it is off.
    pub(in crate::http::application) fn new(
        config: CacheConfig,
        metrics: &Metrics,
    ) -> Option<Arc<Self>> {
        if config.bytes == 0 {
            return None;
        }
        // Each shard of the table has a part of the bound, which must have room for large objects.
        let shards = (config.bytes / config.object_bytes.saturating_mul(4)).clamp(1, 16);
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity(config.bytes / OBJECT_USUAL + 1)
            .weight_capacity(config.bytes as u64)
            .build()
            .ok()?;
        let objects = Bounded::with_options(
            options,
            ByBytes,
            DefaultHashBuilder::default(),
            DefaultLifecycle::default(),
        );
        // An object above 97 % of a shard is not accepted.
        let shard = usize::try_from(objects.shard_capacity()).unwrap_or(usize::MAX);
        let result = |result| {
            metrics
                .application_cache_requests_total
                .with_label_values(&[result])
        };
        let object_max = config.object_bytes.min(shard / 10 * 9);
        Some(Arc::new(Self {
            objects,
            not_cacheable: Bounded::new(NOT_CACHEABLE_MAX),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            object_max,
            // The application is on the same host: its bodies are here for milliseconds.
            reserved_max: object_max.max(config.bytes / 4),
            reserved: AtomicUsize::new(0),
            metrics: CacheMetrics {
                hit: result("hit"),
                revalidated: result("revalidated"),
                miss: result("miss"),
                bypass: result("bypass"),
            },
        }))
    }

    /// Returns the responses of a URI.
    pub(super) fn get(&self, key: &Key) -> Option<Object> {
        self.objects.get(key)
    }

    /// Begins a request, unless it has to wait for another one for the same response. `object`: the
    /// responses that are stored. `alone`: it neither waits nor is waited for.
    pub(super) fn begin(
        self: &Arc<Self>,
        key: &Key,
        object: Option<&Object>,
        request: &HeaderMap,
        alone: bool,
    ) -> Begun {
        let flight = self.flight_key(key, object, request);
        let alone = alone || self.not_cacheable.get(&flight).is_some();
        let now = Instant::now();
        let mut shard = self.shard(key);
        let other = shard.flights.get(&flight);
        if let Some(other) = other.filter(|other| !alone && now < other.end) {
            return Begun::Wait(other.clone());
        }
        let is_first = !alone && other.is_none();
        let landing = is_first.then(|| {
            let (verdict, receiver) = watch::channel(Verdict::Open);
            let waited = Flight {
                end: now + FLIGHT_WAIT,
                verdict: receiver,
            };
            shard.flights.insert(flight, waited);
            Landing {
                cache: Arc::clone(self),
                key: key.clone(),
                flight,
                verdict,
            }
        });
        Begun::Recording(Recording {
            cache: Arc::clone(self),
            key: key.clone(),
            flight,
            generation: shard.generation,
            landing,
        })
    }

    /// Removes an object, and what is being recorded of it.
    pub(super) fn invalidate(&self, key: &Key) {
        let mut shard = self.shard(key);
        shard.generation += 1;
        self.objects.remove(key);
    }

    /// Returns the bytes of all objects.
    pub(in crate::http::application) fn bytes(&self) -> u64 {
        self.objects.weight()
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let index = self.hasher.hash_one(key) as usize % SHARDS;
        let shard = self.shards[index].lock();
        shard.unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest response has the names of the fields that select.
    fn flight_key(&self, key: &Key, object: Option<&Object>, request: &HeaderMap) -> FlightKey {
        let newest = object.and_then(|object| object.0.first());
        let names = newest.iter().flat_map(|stored| stored.selecting_names());
        let lines = names.map(|name| request.get_all(name).iter().collect::<Vec<_>>());
        self.hasher.hash_one((key, lines.collect::<Vec<_>>()))
    }
}

impl Flight {
    /// Waits for the end of the request. Returns whether its response may be in the cache.
    pub(super) async fn landed(mut self) -> bool {
        let is_not_stored = |verdict: &Verdict| *verdict == Verdict::NotStored;
        let landed = self.verdict.wait_for(is_not_stored);
        let landed = timeout_at(self.end.into(), landed).await;
        // The end of the sender is an error.
        matches!(landed, Ok(Err(_)))
    }
}

impl Recording {
    pub(super) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Stores a response, unless it is too large or the object was invalidated since the request.
    pub(super) fn store(&self, stored: &Arc<Stored>) -> bool {
        let Self { cache, key, .. } = self;
        let max = cache.object_max.saturating_sub(key.0.len());
        if stored.bytes() > max {
            self.set_not_cacheable();
            return false;
        }
        let shard = cache.shard(key);
        if shard.generation != self.generation {
            return false;
        }
        let before = cache.objects.peek(key);
        let object = Object::with(before.as_ref(), stored, max);
        cache.objects.insert(key.clone(), object);
        drop(shard);
        cache.not_cacheable.remove(&self.flight);
        true
    }

    /// Removes the object that the application does not permit to store.
    pub(super) fn remove(&self) {
        let _shard = self.cache.shard(&self.key);
        self.cache.objects.remove(&self.key);
    }

    /// Sends each waiting request by itself, and later ones too until a response is stored.
    pub(super) fn set_not_cacheable(&self) {
        // The response to a condition or to HEAD is no sign.
        if self.landing.is_some() {
            self.cache.not_cacheable.insert(self.flight, ());
        }
        self.release();
    }

    /// Sends each waiting request by itself.
    pub(super) fn release(&self) {
        if let Some(landing) = &self.landing {
            landing.verdict.send_replace(Verdict::NotStored);
        }
    }
}

impl Reservation {
    pub(super) fn new(cache: &Arc<Cache>) -> Self {
        Self {
            cache: Arc::clone(cache),
            bytes: 0,
        }
    }

    /// Reserves bytes up to this number. Returns false above a bound.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        let Self { cache, .. } = self;
        let more = bytes.saturating_sub(self.bytes);
        if bytes > cache.object_max {
            return false;
        }
        let before = cache.reserved.fetch_add(more, Ordering::Relaxed);
        if before + more > cache.reserved_max {
            cache.reserved.fetch_sub(more, Ordering::Relaxed);
            return false;
        }
        self.bytes += more;
        true
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.cache.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.shard(&self.key).flights.remove(&self.flight);
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}
