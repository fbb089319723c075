//! What all connections of the process share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::{IntCounter, IntGauge};

use crate::feed::Outcome;
use crate::http::request::rejection::RejectionCode;
use crate::http::request::route::Routes;
use crate::http::stream::event_stream::GAP_LOG_RATE;
use crate::limit::clients::Limit;
use crate::limit::load_level::SharedLevel;
use crate::limit::token_bucket::Bucket;
use crate::limit::{ClientLimiter, ConnectionLimiter, ConnectionPermit};
use crate::presence::{Protocol, StreamTable};
use crate::telemetry::Metrics;

/// Shared by every listener, connection and event stream.
#[derive(Debug)]
pub struct Context {
    /// Every metric.
    pub metrics: Arc<Metrics>,
    /// Every open event stream.
    pub streams: StreamTable,
    /// Who may come in.
    pub connection_limiter: Arc<ConnectionLimiter>,
    /// How hard the pod is pressed.
    pub load_level: SharedLevel,
    /// What each client may take.
    pub client_limiter: Arc<ClientLimiter>,
    /// Of [`Protocol::Http11`] and [`Protocol::H2`]; in clear text, over TLS.
    connections: [[ConnectionMetrics; 2]; 2],
    /// By [`RejectionCode`].
    rejections: [IntCounter; RejectionCode::ALL.len()],
    routes: ArcSwap<Routes>,
    /// Limits the log lines about single gaps.
    pub(super) gap_log_limiter: Bucket,
    draining: AtomicBool,
    drain_retry: OnceLock<(Duration, Duration)>,
}

impl Context {
    /// A context without routes.
    #[must_use]
    pub fn new(
        metrics: Arc<Metrics>,
        streams: StreamTable,
        connection_limiter: Arc<ConnectionLimiter>,
        load_level: SharedLevel,
    ) -> Arc<Self> {
        let connections = [Protocol::Http11, Protocol::H2].map(|protocol| {
            ["false", "true"].map(|tls| ConnectionMetrics::new(&metrics, protocol, tls))
        });
        let rejections = RejectionCode::ALL
            .map(|code| metrics.refusals_total.with_label_values(&[code.row().code]));
        // Closed labels start at 0, so that `increase` sees the first event.
        for outcome in Outcome::LABELS {
            metrics.resumes_total.with_label_values(&[outcome]);
        }
        for limit in Limit::ALL {
            metrics.throttled_total.with_label_values(&[limit.as_str()]);
        }
        Arc::new(Self {
            connections,
            rejections,
            metrics,
            streams,
            connection_limiter,
            load_level,
            client_limiter: ClientLimiter::new(),
            routes: ArcSwap::default(),
            gap_log_limiter: Bucket::new(GAP_LOG_RATE),
            draining: AtomicBool::new(false),
            drain_retry: OnceLock::new(),
        })
    }

    /// Replaces the routes for what is asked from now on; open event streams keep theirs.
    pub fn set_routes(&self, routes: Routes) {
        self.routes.store(Arc::new(routes));
    }

    /// From now on every request is told that the pod is about to end.
    pub fn set_draining(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// How long drained clients are told to wait: a time drawn between these two for each.
    pub fn set_drain_retry(&self, min: Duration, max: Duration) {
        // A second drain is the first one.
        self.drain_retry.get_or_init(|| (min, max));
    }

    /// A time drawn for one drained client.
    pub(super) fn draw_drain_retry(&self) -> Option<Duration> {
        let (min, max) = *self.drain_retry.get()?;
        Some(min + max.saturating_sub(min).mul_f64(fastrand::f64()))
    }

    /// Counts a rejection.
    pub(super) fn count_rejection(&self, code: RejectionCode) {
        self.rejections[code as usize].inc();
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(super) fn routes(&self) -> Arc<Routes> {
        self.routes.load_full()
    }
}

/// The metrics of one kind of connection, their labels resolved.
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

/// A connection that is counted; dropping it counts it out.
#[derive(Debug)]
pub(super) struct Counted {
    /// Among those that speak its protocol, once that is known.
    among: Option<IntGauge>,
    entered: ConnectionPermit,
}

impl Counted {
    pub(super) fn new(entered: ConnectionPermit) -> Self {
        Self {
            among: None,
            entered,
        }
    }

    /// It is one more than are served: it is answered, but gets no event stream.
    pub(super) fn over_limit(&self) -> bool {
        self.entered.over_limit
    }

    /// Its protocol is known now.
    pub(super) fn speaks(&mut self, context: &Context, protocol: Protocol, tls: bool) {
        let metrics = &context.connections[usize::from(protocol == Protocol::H2)][usize::from(tls)];
        metrics.open.inc();
        metrics.total.inc();
        self.among = Some(metrics.open.clone());
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.among.iter().for_each(IntGauge::dec);
    }
}
