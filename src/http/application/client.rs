//! Client of the application: a pool for each shard, a maximum of requests, timeouts, one retry.

use std::error::Error as _;
use std::fmt;
use std::io;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::http::uri::{self, Authority, PathAndQuery, Scheme, Uri};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus::{Histogram, IntCounter, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep_until, timeout};

use super::cache::Cache;
use super::config::{ApplicationConfig, ApplicationVersion};
use super::request_body::{BodyFault, Progress, RequestBody, RequestBytes};
use super::response_body::InProgress;
use crate::telemetry::Metrics;

/// Application that this sidecar passes requests to.
pub struct Application {
    config: ApplicationConfig,
    /// Host and port, parsed once.
    authority: Option<Authority>,
    /// One client for each shard. The task of a connection runs on the shard that opened it: a
    /// request of another shard would wake that thread, and be woken by it.
    clients: Mutex<Vec<(ThreadId, PooledClient)>>,
    permits: Arc<Semaphore>,
    cache: Option<Arc<Cache>>,
    metrics: ApplicationMetrics,
}

type PooledClient = Client<HttpConnector, RequestBody>;

struct ApplicationMetrics {
    in_progress: IntGauge,
    head_seconds: Histogram,
    /// By the first digit of the status: 1 to 5.
    responses: [IntCounter; 5],
}

/// Reason why the application has not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// Too many requests are in progress.
    Busy,
    /// There is no connection.
    Unreachable,
    /// The connection was closed before the head of a response was complete.
    Closed,
    /// The response is not HTTP, or too large.
    Invalid,
    /// The head of the response took too long.
    Slow,
    /// The client has not sent its body.
    ClientBody,
    /// The body of the client is not HTTP.
    MalformedBody,
}

/// 1 s: wait for another request to end. A longer one would only hide that the application is too
/// slow.
const PERMIT_WAIT: Duration = Duration::from_secs(1);

impl Application {
    /// Returns the application of a configuration. It is connected by the first request.
    #[must_use]
    pub fn new(config: ApplicationConfig, metrics: &Metrics) -> Self {
        Self {
            // The configuration has checked it.
            authority: config.authority.parse().ok(),
            clients: Mutex::default(),
            cache: Cache::new(config.cache, metrics),
            permits: Arc::new(Semaphore::new(config.connections)),
            metrics: ApplicationMetrics {
                in_progress: metrics.application_requests_in_progress.clone(),
                head_seconds: metrics.application_response_seconds.clone(),
                responses: ["1xx", "2xx", "3xx", "4xx", "5xx"].map(|class| {
                    metrics
                        .application_responses_total
                        .with_label_values(&[class])
                }),
            },
            config,
        }
    }

    /// Returns its settings.
    #[must_use]
    pub fn config(&self) -> &ApplicationConfig {
        &self.config
    }

    /// Returns the bytes of the responses in the cache.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        self.cache.as_ref().map_or(0, |cache| cache.bytes())
    }

    /// Returns the cache, unless it is off.
    pub(super) fn cache(&self) -> Option<&Arc<Cache>> {
        self.cache.as_ref()
    }

    /// Returns the address of a path for the client.
    pub(super) fn uri(&self, path: &PathAndQuery) -> Uri {
        let mut parts = uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority.clone_from(&self.authority);
        parts.path_and_query = Some(path.clone());
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// Sends a request and returns the head of the response. `head` returns the head of the
    /// request.
    pub(super) async fn send(
        &self,
        head: impl Fn() -> Parts,
        body: RequestBody,
    ) -> Result<(Response<Incoming>, InProgress), Failure> {
        let in_progress = InProgress::new(&self.metrics.in_progress, self.permit().await?);
        let began = Instant::now();
        let first = head();
        // The application may close an idle connection while the request is on its way.
        let can_repeat = body.is_empty() && first.method.is_idempotent();
        let progress = body.progress();
        let mut sent = self
            .exchange(Request::from_parts(first, body), &progress)
            .await;
        if can_repeat && matches!(sent, Err(Failure::Closed)) {
            let body = RequestBody::new(RequestBytes::Empty);
            let progress = body.progress();
            sent = self
                .exchange(Request::from_parts(head(), body), &progress)
                .await;
        }
        let response = sent?;
        let metrics = &self.metrics;
        metrics.head_seconds.observe(began.elapsed().as_secs_f64());
        let class = usize::from(response.status().as_u16() / 100).clamp(1, 5) - 1;
        metrics.responses[class].inc();
        Ok((response, in_progress))
    }

    async fn permit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        // No timer for a request that does not wait. The semaphore is fair: this fails while others
        // wait.
        if let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() {
            return Ok(permit);
        }
        let permit = timeout(PERMIT_WAIT, Arc::clone(&self.permits).acquire_owned());
        match permit.await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Failure::Busy),
        }
    }

    /// Returns the client of this thread.
    fn client(&self) -> PooledClient {
        let thread = std::thread::current().id();
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, client)) = clients.iter().find(|(owner, _)| *owner == thread) {
            return client.clone();
        }
        let client = new_client(&self.config);
        clients.push((thread, client.clone()));
        client
    }

    /// Sends a request once. The time counts from the last bytes of its body.
    async fn exchange(
        &self,
        request: Request<RequestBody>,
        progress: &Progress,
    ) -> Result<Response<Incoming>, Failure> {
        let mut response = pin!(self.client().request(request));
        loop {
            let deadline = progress.last() + self.config.response_timeout;
            tokio::select! {
                biased;
                response = &mut response => {
                    return response.map_err(|error| Failure::of(&error, progress));
                }
                () = sleep_until(deadline.into()) => {}
            }
            if progress.last() + self.config.response_timeout <= Instant::now() {
                return Err(if progress.is_complete() {
                    Failure::Slow
                } else {
                    Failure::ClientBody
                });
            }
        }
    }
}

fn new_client(config: &ApplicationConfig) -> PooledClient {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(config.connect_timeout));
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(config.idle_timeout)
        .pool_max_idle_per_host(config.connections)
        .http2_only(config.version == ApplicationVersion::H2c)
        .build(connector)
}

impl Failure {
    /// `progress`: of the body that was sent.
    fn of(error: &hyper_util::client::legacy::Error, progress: &Progress) -> Self {
        tracing::debug!(
            error = error as &dyn std::error::Error,
            "request to the application failed"
        );
        match progress.fault() {
            Some(BodyFault::Cut) => return Self::ClientBody,
            Some(BodyFault::Malformed) => return Self::MalformedBody,
            None => {}
        }
        if error.is_connect() {
            return Self::Unreachable;
        }
        let Some(error) = error
            .source()
            .and_then(|source| source.downcast_ref::<hyper::Error>())
        else {
            return Self::Closed;
        };
        let is_closed = |error: &hyper::Error| {
            let cause = error
                .source()
                .and_then(|cause| cause.downcast_ref::<io::Error>());
            error.is_incomplete_message()
                || error.is_canceled()
                || error.is_closed()
                || cause.is_some()
        };
        if error.is_user() || error.is_body_write_aborted() {
            Self::ClientBody
        } else if is_closed(error) {
            Self::Closed
        } else {
            Self::Invalid
        }
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
