//! Calls to an endpoint: kept connections, and bounds of concurrency, time and size.
//!
//! ```text
//! call -> permit (at most 1 s) -> connection -> head of the response -> body    within `timeout`
//! ```
//!
//! Redirects are not followed: they could lead to an address that only this pod reaches. The
//! certificate authorities are read before the first call, and again after a failed connection.

use std::error::Error as _;
use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::RootCertStore;
use tokio::sync::{OnceCell, Semaphore};
use tokio::time::timeout;

use super::answer::{Allowed, Answer, is_json, rejection};
use super::question::EndpointRequest;
use super::report::Reports;
use crate::auth::client_tls::{NoRoots, client_config, without_client_certificate};
use crate::auth::config::ForwardConfig;

/// 64 calls at once to one endpoint: more would overload an application that answers in
/// milliseconds, and 64 calls of 10 ms are 6,400 per second.
const CALLS_MAX: usize = 64;

/// 1 s in the queue for a call. With more, clients give up and return while they are in it.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(1);

/// 64 KiB each for the head and the body of a response.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// 4 s: Node closes an idle connection after 5 s, and a request at that moment would fail.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// 10 s between two loads of the certificate authorities.
const ROOTS_PAUSE: Duration = Duration::from_secs(10);

type Client = legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// Endpoint with its connections.
#[derive(Debug)]
pub(super) struct Endpoint {
    config: ForwardConfig,
    client: Mutex<Arc<OnceCell<Connected>>>,
    permits: Semaphore,
    reports: Arc<Reports>,
}

#[derive(Debug)]
struct Connected {
    client: Client,
    since: Instant,
}

/// Reason why a call has no answer. No secret and no query is part of it.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("it does not answer within {} s", .0.as_secs_f64())]
    Timeout(Duration),
    #[error("{0}")]
    Http(String),
    #[error("it answers {0}, which is neither a success nor 401 nor 403")]
    Status(StatusCode),
    #[error("its answer is larger than 64 KiB, or is cut off")]
    Body,
    #[error("its answer has {0}")]
    Content(&'static str),
    #[error(transparent)]
    Roots(#[from] NoRoots),
}

impl Endpoint {
    pub(super) fn new(config: &ForwardConfig, reports: Arc<Reports>) -> Self {
        Self {
            config: config.clone(),
            client: Mutex::default(),
            permits: Semaphore::new(CALLS_MAX),
            reports,
        }
    }

    /// Asks the endpoint once.
    pub(super) async fn call(&self, request: EndpointRequest) -> Answer {
        let Ok(Ok(_permit)) = timeout(QUEUE_TIMEOUT, self.permits.acquire()).await else {
            return Answer::Busy;
        };
        let begin = Instant::now();
        let called = timeout(self.config.timeout, self.exchange(request))
            .await
            .unwrap_or(Err(CallError::Timeout(self.config.timeout)));
        let fault = called.as_ref().err();
        let fault = fault.map(|fault| fault as &dyn Display);
        self.reports.report(fault, begin.elapsed());
        called.unwrap_or(Answer::Failed)
    }

    async fn exchange(&self, request: EndpointRequest) -> Result<Answer, CallError> {
        let cell = Arc::clone(&self.client.lock().unwrap_or_else(PoisonError::into_inner));
        let connected = cell.get_or_try_init(|| self.connected()).await?;
        let response = match connected.client.request(request).await {
            Ok(response) => response,
            Err(error) => {
                if error.is_connect() && connected.since.elapsed() >= ROOTS_PAUSE {
                    self.forget(&cell);
                }
                return Err(CallError::Http(chain(&error)));
            }
        };
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            return rejection(head.status, &head.headers)
                .map(Answer::Rejected)
                .ok_or(CallError::Status(head.status));
        }
        let body = if is_json(&head.headers) {
            read(body).await?
        } else {
            Bytes::new()
        };
        // A clock before 1970 makes every expiry one of the future.
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        let allowed = Allowed::new(&head.headers, &body, now).map_err(CallError::Content)?;
        Ok(match allowed {
            Some(allowed) => Answer::Allowed(Arc::new(allowed)),
            // It has expired.
            None => Answer::Rejected(Default::default()),
        })
    }

    async fn connected(&self) -> Result<Connected, NoRoots> {
        let tls = if self.config.url.scheme_str() == Some("https") {
            client_config(self.config.ca.as_deref()).await?
        } else {
            without_client_certificate(RootCertStore::empty())
        };
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        connector.set_nodelay(true);
        let client: Client = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(CALLS_MAX)
            .http1_max_buf_size(RESPONSE_BYTES_MAX)
            .build(HttpsConnector::from((connector, tls)));
        Ok(Connected {
            client,
            since: Instant::now(),
        })
    }

    /// Makes the next call read the certificate authorities again.
    fn forget(&self, cell: &Arc<OnceCell<Connected>>) {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if Arc::ptr_eq(&client, cell) {
            *client = Arc::default();
        }
    }
}

async fn read(body: Incoming) -> Result<Bytes, CallError> {
    let body = Limited::new(body, RESPONSE_BYTES_MAX).collect().await;
    Ok(body.map_err(|_| CallError::Body)?.to_bytes())
}

/// Returns the text of an error with its sources: the error itself does not name the system's.
fn chain(error: &legacy::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Writing to a String cannot fail.
        write!(text, ": {error}").unwrap_or_default();
        source = error.source();
    }
    text
}
