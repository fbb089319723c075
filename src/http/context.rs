//! Context: the state that all connections of the process share.
//!
//! One [`Context`] exists per process, in an `Arc` that every shard clones. It holds the limiters,
//! the table of open event streams, the routes (replaced by a reload) and counters with resolved
//! labels. Nothing in it is locked on the path of an event.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};
use tokio::sync::Semaphore;

use crate::auth::Revocations;
use crate::feed::{Begin, Outcome};
use crate::http::request::rejection_code::RejectionCode;
use crate::http::route::Routes;
use crate::http::stream::ages::StreamAges;
use crate::limit::clients::Limit;
use crate::limit::load_level::SharedLevel;
use crate::limit::token_bucket::Bucket;
use crate::limit::{
    AddressLimiter, ClientLimiter, ConnectionLimiter, ConnectionPermit, Rate, TicketLimiter,
};
use crate::presence::{Protocol, StreamTable};
use crate::telemetry::{Metrics, Tracer};

/// State shared by every listener, connection and event stream.
#[derive(Debug)]
pub struct Context {
    /// Metrics of the process.
    pub metrics: Arc<Metrics>,
    /// Traces of event streams.
    pub tracer: Tracer,
    /// Table of open event streams.
    pub streams: StreamTable,
    /// Limiter of connections and file descriptors.
    pub connection_limiter: Arc<ConnectionLimiter>,
    /// Current load level.
    pub load_level: SharedLevel,
    /// Limits per client.
    pub client_limiter: Arc<ClientLimiter>,
    /// Limits of failed authentications.
    pub(super) failure_limiter: AddressLimiter,
    /// Limits of calls to authentication endpoints.
    pub(super) call_limiter: AddressLimiter,
    /// Limit of tickets per principal.
    pub(super) ticket_limiter: TicketLimiter,
    /// By protocol ([`Protocol::Http11`], [`Protocol::H2`]), then clear text and TLS.
    connections: [[ConnectionMetrics; 2]; 2],
    /// Full, then resumed.
    tls_handshakes: [IntCounter; 2],
    /// By [`RejectionCode`].
    rejections: [IntCounter; RejectionCode::COUNT],
    /// Revocations; unset without a bucket.
    revocations: OnceLock<Arc<Revocations>>,
    routes: ArcSwap<Routes>,
    /// Limits the log lines about single gaps.
    pub(super) gap_log_limiter: Bucket,
    /// Limits the log lines about subscriptions of the application that are not possible.
    pub(super) application_log_limiter: Bucket,
    /// Ages at which event streams end.
    pub stream_ages: StreamAges,
    /// Limits the log lines about ends of event streams.
    pub(super) close_log_limiter: Bucket,
    /// Permits of probes that are answered at the same time.
    pub(super) probes: Arc<Semaphore>,
    draining: Arc<AtomicBool>,
    drain_retry: OnceLock<(Duration, Duration)>,
}

/// 100 lines per second about single gaps, with the same burst: enough to find a client, and little
/// work if one loss concerns thousands of them.
const GAP_LOG_RATE: Rate = Rate::new(100, 100);

/// 1,000 lines per second about ends of event streams, and 5,000 at once: all of a pod's clients may
/// leave at the same time.
const CLOSE_LOG_RATE: Rate = Rate::new(1000, 5000);

/// One line per second, ten at once: the reason is the same for every request of a page.
const APPLICATION_LOG_RATE: Rate = Rate::new(1, 10);

/// 32 probes at the same time: three runs of `sidestream doctor`.
const PROBES_MAX: usize = 32;

impl Context {
    /// Returns a context without routes.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        tracer: Tracer,
        streams: StreamTable,
        connection_limiter: Arc<ConnectionLimiter>,
        load_level: SharedLevel,
    ) -> Arc<Self> {
        let connections = [Protocol::Http11, Protocol::H2].map(|protocol| {
            ["false", "true"].map(|tls| ConnectionMetrics::new(&metrics, protocol, tls))
        });
        let rejections = RejectionCode::ALL
            .map(|code| metrics.refusals_total.with_label_values(&[code.row().code]));
        let tls_handshakes =
            ["full", "resumed"].map(|kind| metrics.tls_handshakes_total.with_label_values(&[kind]));
        // Closed labels start at 0, so that `increase` sees the first event.
        for outcome in Outcome::LABELS {
            metrics.resumes_total.with_label_values(&[outcome]);
        }
        for begin in Begin::LABELS {
            metrics.begins_total.with_label_values(&[begin]);
        }
        for outcome in ["subscribed", "unsubscribed", "rejected"] {
            metrics.subject_changes_total.with_label_values(&[outcome]);
        }
        for limit in Limit::ALL {
            metrics.throttled_total.with_label_values(&[limit.as_str()]);
        }
        let stream_ages = StreamAges::new(&metrics);
        Arc::new(Self {
            connections,
            tls_handshakes,
            rejections,
            metrics,
            tracer,
            streams,
            connection_limiter,
            load_level,
            client_limiter: ClientLimiter::new(),
            failure_limiter: AddressLimiter::of_failures(),
            call_limiter: AddressLimiter::of_calls(),
            revocations: OnceLock::new(),
            ticket_limiter: TicketLimiter::default(),
            routes: ArcSwap::default(),
            gap_log_limiter: Bucket::new(GAP_LOG_RATE),
            application_log_limiter: Bucket::new(APPLICATION_LOG_RATE),
            stream_ages,
            close_log_limiter: Bucket::new(CLOSE_LOG_RATE),
            probes: Arc::new(Semaphore::new(PROBES_MAX)),
            draining: Arc::default(),
            drain_retry: OnceLock::new(),
        })
    }

    /// Replaces the routes for new requests; open event streams keep theirs.
    pub fn set_routes(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// Returns the routes in force. A request holds them until it is answered.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }

    /// Sets the revocations. Only the first call counts.
    pub fn set_revocations(&self, revocations: Arc<Revocations>) {
        self.revocations.get_or_init(|| revocations);
    }

    /// Returns the revocations, if there is a bucket of them.
    pub fn revocations(&self) -> Option<&Arc<Revocations>> {
        self.revocations.get()
    }

    /// Starts to reject new event streams with `draining`.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Sets the range of the `retry:` that clients receive when the pod drains.
    pub fn set_drain_retry(&self, min: Duration, max: Duration) {
        // The first call wins: a second drain continues the first.
        self.drain_retry.get_or_init(|| (min, max));
    }

    /// Returns a random time within that range, for one client.
    pub(super) fn draw_drain_retry(&self) -> Option<Duration> {
        let (min, max) = *self.drain_retry.get()?;
        Some(min + max.saturating_sub(min).mul_f64(fastrand::f64()))
    }

    /// Counts a rejection.
    pub(super) fn count_rejection(&self, code: RejectionCode) {
        self.rejections[code as usize].inc();
    }

    /// Counts a TLS handshake.
    pub(super) fn count_tls_handshake(&self, is_resumed: bool) {
        self.tls_handshakes[usize::from(is_resumed)].inc();
    }

    /// Returns what is true once the pod drains.
    pub(super) fn drain_flag(&self) -> Arc<AtomicBool> {
        self.draining.clone()
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Metrics of one kind of connection with their labels resolved.
#[derive(Debug)]
struct ConnectionMetrics {
    open: IntGauge,
    total: IntCounter,
}

impl ConnectionMetrics {
    fn new(metrics: &Metrics, protocol: Protocol, tls: &str) -> Self {
        let labels = [protocol.as_str(), tls];
        let (open, total) = (&metrics.connections, &metrics.connections_total);
        Self {
            open: open.with_label_values(&labels),
            total: total.with_label_values(&labels),
        }
    }
}

/// Guard of a connection: dropping it ends its permit and decreases the gauge.
#[derive(Debug)]
pub(super) struct ConnectionGuard {
    /// Gauge of the protocol, once it is known.
    gauge: Option<IntGauge>,
    permit: ConnectionPermit,
}

impl ConnectionGuard {
    pub(super) fn new(permit: ConnectionPermit) -> Self {
        Self {
            gauge: None,
            permit,
        }
    }

    /// Returns whether the connection exceeds `limits.connections`: its requests are rejected.
    pub(super) fn over_limit(&self) -> bool {
        self.permit.over_limit
    }

    /// Counts the connection by its protocol.
    pub(super) fn set_protocol(&mut self, context: &Context, protocol: Protocol, tls: bool) {
        let metrics = &context.connections[usize::from(protocol == Protocol::H2)][usize::from(tls)];
        metrics.open.inc();
        metrics.total.inc();
        self.gauge = Some(metrics.open.clone());
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        if let Some(gauge) = &self.gauge {
            gauge.dec();
        }
    }
}
