//! The webhook server: admission reviews over HTTPS, and a port of its own for probes and metrics.
//!
//! ```text
//! slots::serve ---> serve_admin     HTTP/1.1 in clear text, one request per connection
//!              \--> serve_webhook   TLS, then HTTP/1.1 or HTTP/2 by ALPN ---> respond::review
//! ```
//!
//! Any pod can connect to both ports, so everything is bounded: connections and requests per port
//! and per peer address (`slots`), the time of a TLS handshake, of a request head and of a body,
//! the size of a body, and the reviews in memory (`reviews`). Idle connections are evicted for new
//! ones. A slow or idle peer cannot delay the API server, whose requests would otherwise time out
//! and whose pods would start without a sidecar.
//!
//! Graceful shutdown: after SIGTERM readiness fails and reviews are still answered for
//! [`NOT_READY`], until API servers have removed the endpoint. Then the listeners close and the
//! requests in progress get [`LAST_RESPONSES`] to complete. A second signal skips the wait.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use governor::{Quota, RateLimiter};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sidestream_common::listener::{self, Listener, Sharing};
use sidestream_common::request_head::Scanned;
use sidestream_common::slots::{self, Bounds, Slot, Slots};
use sidestream_common::tls::{self, Purpose, Tls, TlsConfig, TlsError};
use sidestream_inject::Defaults;
use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::metrics::Metrics;

mod respond;
mod reviews;
mod shared;

use respond::AdminConnection;
use reviews::ReviewPermits;
use shared::Shared;

/// 256 silent and 256 connected: API servers keep a few connections each, and any pod can connect.
/// 128 busy: one peer address has at most 64 of them, more than an API server opens.
const WEBHOOK: Bounds = Bounds {
    silent_max: 256,
    connected_max: 256,
    busy_max: 128,
    first_byte_max: Duration::from_secs(2),
};

/// For probes, scrapers and people, as on the admin port of the sidecar.
const ADMIN: Bounds = Bounds {
    silent_max: 64,
    connected_max: 64,
    busy_max: 16,
    first_byte_max: Duration::from_secs(2),
};

/// 16 evicted connections shut down gracefully at the same time; beyond, they are closed at once.
const GRACEFUL_EVICTIONS_MAX: usize = 16;

/// 250 ms for the graceful shutdown of an evicted connection.
const EVICTION_GRACE: Duration = Duration::from_millis(250);

/// 100 streams of an HTTP/2 connection: the concurrent requests of an API server while many pods
/// are created.
const H2_STREAMS_MAX: u32 = 100;

/// 5 s for the TLS handshake, and for the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// 15 s for a connection to the admin port, which has one request.
const ADMIN_TIMEOUT: Duration = Duration::from_secs(15);

/// 30 s between HTTP/2 pings, and 10 s for the response: a vanished peer does not keep its slot.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// 5 s of reviews after readiness fails: API servers learn of it within this time.
const NOT_READY: Duration = Duration::from_secs(5);

/// 5 s for the requests in progress after the listeners are closed.
const LAST_RESPONSES: Duration = Duration::from_secs(5);

/// 1 log line per second about invalid annotations, and 20 at once: a rollout with a mistake shows
/// each of its workloads.
const PROBLEM_LINES_PER_SECOND: NonZeroU32 = NonZeroU32::MIN;
const PROBLEM_LINES_BURST: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

/// Configuration of the webhook.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// Address for API servers, over TLS.
    pub(crate) listen: SocketAddr,
    /// Address for probes and metrics, in clear text.
    pub(crate) admin: SocketAddr,
    /// Host names that requests to the admin port may have, besides addresses and `localhost`.
    pub(crate) admin_hosts: Vec<String>,
    /// Files of the certificate.
    pub(crate) certificate: TlsConfig,
    /// Values that apply where a pod has no annotation.
    pub(crate) defaults: Defaults,
}

/// Error at the start of the webhook.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The files are not a certificate with its key.
    #[error(transparent)]
    Certificate(#[from] TlsError),
    /// An address cannot be used.
    #[error("{option} {address}: {error}")]
    Bind {
        option: &'static str,
        address: SocketAddr,
        error: io::Error,
    },
    #[error("signals cannot be handled: {0}")]
    Signals(#[from] io::Error),
    #[error(transparent)]
    Metrics(#[from] prometheus::Error),
}

/// Signals that end the process: SIGTERM and SIGINT.
#[derive(Debug)]
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Installed so that SIGHUP does not end the process: the certificate is reloaded without it.
    _hangup: Signal,
}

impl Signals {
    /// Installs the handlers.
    ///
    /// # Errors
    /// If the system rejects a handler.
    pub(crate) fn listen() -> Result<Self, ServerError> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            _hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal that ends the process.
    async fn terminated(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves until a signal ends the process.
///
/// # Errors
/// [`ServerError`] if the webhook cannot start.
pub(crate) async fn run(config: Config, mut signals: Signals) -> Result<(), ServerError> {
    let tls = Tls::load(config.certificate, Purpose::Clients)?;
    let quota = Quota::per_second(PROBLEM_LINES_PER_SECOND).allow_burst(PROBLEM_LINES_BURST);
    let shared = Arc::new(Shared {
        defaults: config.defaults,
        admin_hosts: config.admin_hosts,
        metrics: Metrics::new()?,
        is_shutting_down: AtomicBool::new(false),
        reload_error: Mutex::default(),
        reviews: ReviewPermits::default(),
        graceful_evictions: Semaphore::new(GRACEFUL_EVICTIONS_MAX),
        problem_lines: RateLimiter::direct(quota),
        suppressed_lines: AtomicU64::new(0),
        shutdown: CancellationToken::new(),
        connections: TaskTracker::new(),
    });
    let webhook = bind("--listen", config.listen)?;
    let admin = bind("--admin", config.admin)?;
    tracing::info!(webhook = %webhook.address(), admin = %admin.address(), "injector listening");

    let reloads = shared.clone();
    let follow = tls
        .clone()
        .follow(move |reload| reloads.record_reload(reload));
    let rejections = &shared.metrics.refusals_total;
    let admin_slots = Slots::new("admin", ADMIN, rejections);
    let webhook_slots = Slots::new("webhook", WEBHOOK, rejections);
    let tasks = [
        tokio::spawn(follow),
        tokio::spawn(accept_admin(admin, admin_slots, shared.clone())),
        tokio::spawn(accept_webhook(webhook, webhook_slots, shared.clone(), tls)),
    ];
    signals.terminated().await;
    shared.is_shutting_down.store(true, Ordering::Relaxed);
    tracing::info!("shutting down; readiness fails");
    tokio::select! {
        () = tokio::time::sleep(NOT_READY) => {}
        () = signals.terminated() => {}
    }
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    shared.shutdown.cancel();
    shared.connections.close();
    tokio::select! {
        () = shared.connections.wait() => {}
        () = tokio::time::sleep(LAST_RESPONSES) => {}
        () = signals.terminated() => {}
    }
    tracing::info!("shutdown complete");
    Ok(())
}

fn bind(option: &'static str, address: SocketAddr) -> Result<Listener, ServerError> {
    listener::bind(address, Sharing::Alone)
        .and_then(Listener::new)
        .map_err(|error| ServerError::Bind {
            option,
            address,
            error,
        })
}

async fn accept_admin(listener: Listener, slots: Slots, shared: Arc<Shared>) {
    let connection = move |socket, slot| {
        let shared = shared.clone();
        async move {
            let _open = shared.connections.token();
            log_error(serve_admin(socket, &shared, Arc::new(slot)).await);
        }
    };
    match slots::serve(listener, &slots, connection).await {}
}

async fn accept_webhook(listener: Listener, slots: Slots, shared: Arc<Shared>, tls: Tls) {
    let connection = move |socket, slot| {
        let (shared, tls) = (shared.clone(), tls.clone());
        async move {
            let _open = shared.connections.token();
            log_error(serve_webhook(socket, &shared, Arc::new(slot), tls).await);
        }
    };
    match slots::serve(listener, &slots, connection).await {}
}

type ConnectionError = Box<dyn std::error::Error + Send + Sync>;

fn log_error(result: Result<(), ConnectionError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "connection failed");
    }
}

/// Serves one request for probes or metrics.
async fn serve_admin(
    socket: TcpStream,
    shared: &Shared,
    slot: Arc<Slot>,
) -> Result<(), ConnectionError> {
    let connection = AdminConnection {
        slot,
        busy: OnceLock::new(),
        has_bare_line_feed: Arc::default(),
    };
    let socket = Scanned::new(socket, connection.has_bare_line_feed.clone());
    let service = service_fn(|request| {
        let response = respond::admin(shared, &connection, &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(socket), service);
    tokio::select! {
        () = connection.slot.evicted() => Ok(()),
        served = tokio::time::timeout(ADMIN_TIMEOUT, served) => Ok(served??),
    }
}

/// Serves the reviews of one connection of an API server.
async fn serve_webhook(
    socket: TcpStream,
    shared: &Arc<Shared>,
    slot: Arc<Slot>,
    tls: Tls,
) -> Result<(), ConnectionError> {
    let peer = socket.peer_addr()?.ip().to_canonical();
    let acceptor = tls.acceptor();
    let handshake = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(socket));
    let mut socket = tokio::select! {
        () = slot.evicted() => return Ok(()),
        socket = handshake => socket??,
    };
    tls::bound_buffers(&mut socket);
    let is_h2 = socket.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(socket);
    let (of_service, of_connection) = (shared.clone(), slot.clone());
    let service = service_fn(move |request| {
        let (shared, slot) = (of_service.clone(), of_connection.clone());
        async move { Ok::<_, Infallible>(respond::review(&shared, &slot, peer, request).await) }
    });
    if is_h2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(io, service);
        let shut_down = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
        return drive(connection, shut_down, shared, &slot).await;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(io, service);
    let shut_down = |connection: Pin<&mut _>| http1::Connection::graceful_shutdown(connection);
    drive(connection, shut_down, shared, &slot).await
}

/// Drives a connection to its end; shuts it down gracefully when the process ends or the slot is
/// needed.
async fn drive<C>(
    connection: C,
    shut_down: fn(Pin<&mut C>),
    shared: &Shared,
    slot: &Slot,
) -> Result<(), ConnectionError>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = shared.shutdown.cancelled() => shut_down(connection.as_mut()),
        () = slot.evicted() => {
            // A request that an API server sends meanwhile gets an error, and it repeats it on
            // another connection.
            let Ok(_permit) = shared.graceful_evictions.try_acquire() else { return Ok(()) };
            shut_down(connection.as_mut());
            return Ok(tokio::time::timeout(EVICTION_GRACE, connection).await??);
        }
    }
    Ok(connection.await?)
}
