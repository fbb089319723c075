//! The webhook: reviews over HTTPS, probes and metrics on a port of its own, both bounded in number, size and time.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};

use super::options::Defaults;
use crate::lifecycle::drain::{self, Watch};
use crate::lifecycle::health::Health;
use crate::lifecycle::signals::Request;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::{Tls, TlsConfig, socket, tls};
use crate::telemetry::InjectorMetrics;

mod answer;

/// 256: API servers keep a few connections each; those beyond wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;

/// 100: what an API server asks for at the same time on one connection, in a storm of new pods.
const H2_STREAMS_MAX: u32 = 100;

/// 5 s: for the handshake, and for the head of a request.
const HEAD_DEADLINE: Duration = Duration::from_secs(5);

/// 30 s without an answer to a ping and 10 s more: a peer that is gone does not keep its place.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));

/// 5 s: how long reviews are taken after readiness has failed, until API servers have heard of it.
const LEAVING: Duration = Duration::from_secs(5);

/// 5 s: for the reviews that are being answered then.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// How the webhook is to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the API server calls, over TLS.
    pub listen: SocketAddr,
    /// Where probes and metrics are, in clear text.
    pub admin: SocketAddr,
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
    metrics: InjectorMetrics,
    health: Health,
    leaving: AtomicBool,
    /// Places for reviews whose bodies are in memory.
    reviews: Semaphore,
}

/// Answers reviews until a signal ends it.
///
/// # Errors
/// [`ServerError`] when it could not start.
pub async fn run(config: Config, mut signals: mpsc::Receiver<Request>) -> Result<(), ServerError> {
    let system = |error: &dyn fmt::Display| ServerError::System(error.to_string());
    let tls = Tls::load(config.certificate).map_err(|error| ServerError::Certificate(error.to_string()))?;
    let shared = Arc::new(Shared {
        defaults: config.defaults,
        metrics: InjectorMetrics::new().map_err(|error| system(&error))?,
        health: Health::default(),
        leaving: AtomicBool::new(false),
        reviews: Semaphore::new(answer::REVIEWS_MAX),
    });
    let bind = |name: &str, address: SocketAddr| -> Result<Listener, ServerError> {
        let listener = listener::bind(address, Sharing::Alone).and_then(Listener::new);
        listener.map_err(|error: io::Error| ServerError::System(format!("{name} {address}: {error}")))
    };
    let (webhook, admin) = (bind("--listen", config.listen)?, bind("--admin", config.admin)?);
    tracing::info!(webhook = %webhook.address(), admin = %admin.address(), "injector listening");

    let (signal, watch) = drain::channel();
    let following = tokio::spawn(tls.clone().follow(shared.health.check("certificate", "not read yet")));
    let accepting = [
        tokio::spawn(accept(admin, shared.clone(), watch.clone(), None)),
        tokio::spawn(accept(webhook, shared.clone(), watch, Some(tls))),
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
        () = signal.drain() => {}
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

async fn accept(mut listener: Listener, shared: Arc<Shared>, watch: Watch, tls: Option<Tls>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        // A place first, or the bound would count only those who already have one.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (connection, _) = listener.accept().await;
        let (shared, watch, tls) = (shared.clone(), watch.clone(), tls.clone());
        tokio::spawn(async move {
            if let Err(error) = converse(connection, &shared, watch, tls).await {
                tracing::debug!(%error, "a connection ended early");
            }
            drop(place);
        });
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn converse(connection: TcpStream, shared: &Arc<Shared>, watch: Watch, tls: Option<Tls>) -> Result<(), Failure> {
    socket::prepare(&connection)?;
    let Some(tls) = tls else {
        let service = service_fn(|request| {
            let answer = answer::probe(shared, &request);
            async move { Ok::<_, Infallible>(answer) }
        });
        // One request a connection: whoever asks again comes again.
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE)
            .keep_alive(false)
            .serve_connection(TokioIo::new(connection), service);
        return Ok(served.await?);
    };
    let mut connection = tokio::time::timeout(HEAD_DEADLINE, tls.acceptor().accept(connection)).await??;
    tls::bound_buffers(&mut connection);
    let is_h2 = connection.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = TokioIo::new(connection);
    let for_all = shared.clone();
    let service = service_fn(move |request| {
        let shared = for_all.clone();
        async move { Ok::<_, Infallible>(answer::review(&shared, request).await) }
    });
    let mut watch = watch;
    if is_h2 {
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .keep_alive_interval(PING.0)
            .keep_alive_timeout(PING.1)
            .serve_connection(io, service);
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = watch.signaled() => connection.as_mut().graceful_shutdown(),
        }
        return Ok(connection.await?);
    }
    let connection =
        http1::Builder::new().timer(TokioTimer::new()).header_read_timeout(HEAD_DEADLINE).serve_connection(io, service);
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = watch.signaled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
