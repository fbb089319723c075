//! The webhook: reviews over HTTPS, probes and metrics on a port of its own, both bounded in number, size and time.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use super::options::Defaults;
use crate::lifecycle::health::Health;
use crate::lifecycle::shutdown::{self, Token};
use crate::lifecycle::signals::Request;
use crate::limit::Rate;
use crate::limit::token_bucket::Bucket;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::request_head::Scanned;
use crate::net::slots::{self, Bounds, Slot, Slots};
use crate::net::{Tls, TlsConfig, tls};
use crate::telemetry::InjectorMetrics;

mod answer;
mod reviews;

use answer::Asker;
use reviews::Reviews;

/// 256 silent and 256 connected: API servers keep a few connections each, and any pod can connect. 128 of them busy, so
/// that one peer address has 64, more than an API server opens.
const WEBHOOK: Bounds = Bounds {
    silent_max: 256,
    connected_max: 256,
    busy_max: 128,
    first_byte_max: Duration::from_secs(2),
};

/// Probes, scrapers and people, as on the sidecar's admin port.
const ADMIN: Bounds = Bounds {
    silent_max: 64,
    connected_max: 64,
    busy_max: 16,
    first_byte_max: Duration::from_secs(2),
};

/// 16 connections that are evicted end in good order; beyond, they are closed at once.
const FAREWELLS_MAX: usize = 16;

/// 250 ms: for the end in good order of an evicted connection.
const FAREWELL: Duration = Duration::from_millis(250);

/// 100: what an API server asks for at the same time on one connection, in a storm of new pods.
const H2_STREAMS_MAX: u32 = 100;

/// 5 s: for the handshake, and for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// 15 s: for a whole connection to the admin port, which is one request.
const ADMIN_DEADLINE: Duration = Duration::from_secs(15);

/// 30 s without an answer to a ping and 10 s more: a peer that is gone does not keep its place.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// 5 s: how long reviews are taken after readiness has failed, until API servers have heard of it.
const LEAVING: Duration = Duration::from_secs(5);

/// 5 s: for the reviews that are being answered then.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// 1 line a second about objects with problems, and 20 at once: a roll-out with a mistake shows each of its workloads.
const PROBLEM_LINES: (u32, u32) = (1, 20);

/// How the webhook is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API server calls, over TLS.
    pub listen: SocketAddr,
    /// Where probes and metrics are, in clear text.
    pub admin: SocketAddr,
    /// Names under which the admin port is asked, besides addresses and `localhost`.
    pub admin_hosts: Vec<String>,
    /// The certificate's files.
    pub certificate: TlsConfig,
    /// What applies where no annotation says otherwise.
    pub defaults: Defaults,
}

/// Why the webhook could not start.
#[derive(Debug)]
pub enum ServerError {
    /// The certificate's files do not make one.
    Certificate(String),
    /// The system refuses: an address in use.
    System(String),
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate(why) | Self::System(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ServerError {}

/// What all connections share.
struct Shared {
    defaults: Defaults,
    admin_hosts: Vec<String>,
    metrics: InjectorMetrics,
    health: Health,
    leaving: AtomicBool,
    /// Permits for reviews whose bodies are in memory.
    reviews: Reviews,
    /// Permits for evicted connections to end in good order.
    farewells: Semaphore,
    /// Lines of the log about objects with problems.
    problem_lines: Bucket,
    /// Such lines that were left out since the last one.
    lines_left_out: AtomicU64,
}

/// Answers reviews until a signal ends it.
///
/// # Errors
/// [`ServerError`] when it could not start.
pub async fn run(config: Config, mut signals: mpsc::Receiver<Request>) -> Result<(), ServerError> {
    let system = |error: &dyn fmt::Display| ServerError::System(error.to_string());
    let tls = Tls::load(config.certificate)
        .map_err(|error| ServerError::Certificate(error.to_string()))?;
    let shared = Arc::new(Shared {
        defaults: config.defaults,
        admin_hosts: config.admin_hosts,
        metrics: InjectorMetrics::new().map_err(|error| system(&error))?,
        health: Health::default(),
        leaving: AtomicBool::new(false),
        reviews: Reviews::default(),
        farewells: Semaphore::new(FAREWELLS_MAX),
        problem_lines: Bucket::new(Rate::new(PROBLEM_LINES.0, PROBLEM_LINES.1)),
        lines_left_out: AtomicU64::new(0),
    });
    let bind = |name: &str, address: SocketAddr| -> Result<Listener, ServerError> {
        let listener = listener::bind(address, Sharing::Alone).and_then(Listener::new);
        listener
            .map_err(|error: io::Error| ServerError::System(format!("{name} {address}: {error}")))
    };
    let (webhook, admin) = (
        bind("--listen", config.listen)?,
        bind("--admin", config.admin)?,
    );
    tracing::info!(webhook = %webhook.address(), admin = %admin.address(), "injector listening");

    let (signal, watch) = shutdown::channel();
    let following = tokio::spawn(
        tls.clone()
            .follow(shared.health.check("certificate", "not read yet")),
    );
    let slots = |port, bounds| Slots::new(port, bounds, &shared.metrics.refusals_total);
    let (admin_slots, webhook_slots) = (slots("admin", ADMIN), slots("webhook", WEBHOOK));
    let accepting = [
        tokio::spawn(accept(
            admin,
            admin_slots,
            shared.clone(),
            watch.clone(),
            None,
        )),
        tokio::spawn(accept(
            webhook,
            webhook_slots,
            shared.clone(),
            watch,
            Some(tls),
        )),
    ];
    until_end(&mut signals).await;
    shared.leaving.store(true, Ordering::Relaxed);
    tracing::info!("leaving");
    // A second signal shortens both.
    tokio::select! {
        () = tokio::time::sleep(LEAVING) => {}
        () = until_end(&mut signals) => {}
    }
    accepting.iter().for_each(tokio::task::JoinHandle::abort);
    following.abort();
    tokio::select! {
        () = signal.shut_down() => {}
        () = tokio::time::sleep(LAST_ANSWERS) => {}
        () = until_end(&mut signals) => {}
    }
    tracing::info!("ended");
    Ok(())
}

/// Returns at the next signal that ends the process; the certificate is looked at anyway, so a reload has nothing to do.
async fn until_end(signals: &mut mpsc::Receiver<Request>) {
    while let Some(request) = signals.recv().await {
        if request == Request::End {
            return;
        }
    }
}

async fn accept(
    listener: Listener,
    slots: Slots,
    shared: Arc<Shared>,
    watch: Token,
    tls: Option<Tls>,
) {
    let converse = move |connection: TcpStream, slot| {
        let (shared, watch, tls) = (shared.clone(), watch.clone(), tls.clone());
        async move {
            let slot = Arc::new(slot);
            let served = async {
                match tls {
                    None => converse_clear(connection, &shared, &slot).await,
                    Some(tls) => converse(connection, &shared, &slot, watch, tls).await,
                }
            };
            if let Err(error) = served.await {
                tracing::debug!(%error, "a connection ended early");
            }
        }
    };
    match slots::serve(listener, &slots, converse).await {}
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Probes and metrics. One request a connection.
async fn converse_clear(
    connection: TcpStream,
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
) -> Result<(), Failure> {
    let asker = Asker {
        slot: slot.clone(),
        busy: OnceLock::new(),
        has_bare_line_feed: Arc::default(),
    };
    let connection = Scanned::new(connection, asker.has_bare_line_feed.clone());
    let service = service_fn(|request| {
        let answer = answer::probe(shared, &asker, &request);
        async move { Ok::<_, Infallible>(answer) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        () = slot.evicted() => Ok(()),
        served = tokio::time::timeout(ADMIN_DEADLINE, served) => Ok(served??),
    }
}

/// Reviews.
async fn converse(
    connection: TcpStream,
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    watch: Token,
    tls: Tls,
) -> Result<(), Failure> {
    let peer = connection.peer_addr()?.ip().to_canonical();
    let acceptor = tls.acceptor();
    let handshake = tokio::time::timeout(HEAD_DEADLINE, acceptor.accept(connection));
    let mut connection = tokio::select! {
        () = slot.evicted() => return Ok(()),
        connection = handshake => connection??,
    };
    tls::bound_buffers(&mut connection);
    let is_h2 = connection.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(connection);
    let (for_all, of_connection) = (shared.clone(), slot.clone());
    let service = service_fn(move |request| {
        let (shared, slot) = (for_all.clone(), of_connection.clone());
        async move { Ok::<_, Infallible>(answer::review(&shared, &slot, peer, request).await) }
    });
    if is_h2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .serve_connection(io, service);
        return until_asked(
            connection,
            |connection| connection.graceful_shutdown(),
            shared,
            slot,
            watch,
        )
        .await;
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(io, service);
    until_asked(
        connection,
        |connection| connection.graceful_shutdown(),
        shared,
        slot,
        watch,
    )
    .await
}

/// Serves a connection until its end. When the process leaves, or the slot is needed, it ends in good order.
async fn until_asked<C>(
    connection: C,
    end: fn(Pin<&mut C>),
    shared: &Shared,
    slot: &Slot,
    mut watch: Token,
) -> Result<(), Failure>
where
    C: Future<Output = hyper::Result<()>>,
{
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = watch.requested() => end(connection.as_mut()),
        () = slot.evicted() => {
            // An API server is not one of a crowd: its requests meanwhile are rejected, and it repeats them elsewhere.
            let Ok(_permit) = shared.farewells.try_acquire() else { return Ok(()) };
            end(connection.as_mut());
            return Ok(tokio::time::timeout(FAREWELL, connection).await??);
        }
    }
    Ok(connection.await?)
}
