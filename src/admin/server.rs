//! Thread of the admin port and the control socket.
//!
//! [`start`] binds both and spawns the thread, which runs until [`Admin::stop`]. A connection is
//! one task and has one request; keep-alive is off, so no slot is held for a later request. The
//! task `beside` (the load monitor of `app`) shares the thread because it must run while others are
//! busy.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};

use super::access::{self, Access};
use super::answer::{Port, RequestContext};
use super::config::Config;
use super::parts::Parts;
use super::snapshot::snapshot;
use super::socket::Socket;
use super::stream::Watch;
use super::viewers::{Snapshot, Viewers};
use super::{answer, control, sample, tap};
use crate::auth::Secret;
use crate::lifecycle::health::{Check, Health, Status};
use crate::net::listener::{self, Listener, Sharing};
use crate::net::request_head::Scanned;
use crate::net::slots::{self, Bounds, Slots};
use crate::net::tls::{self, Acceptor, Purpose, Tls};

/// 64 silent and 64 connected: probes, scrapers and people need a dozen, and 128 descriptors are
/// half of the smallest usual limit (256). 16 busy: lists and metrics stay in memory until the
/// client has read them.
const BOUNDS: Bounds = Bounds {
    silent_max: 64,
    connected_max: 64,
    busy_max: 16,
    first_byte_max: Duration::from_secs(2),
};

/// 3 s: the request head of a probe is one packet, and a TLS handshake takes two round trips.
const HEAD_DEADLINE: Duration = Duration::from_secs(3);

/// 15 s for the whole connection, which has one request: enough for the longest list. An event
/// stream goes on while its client reads.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);

/// 500 ms for responses that are in progress when the admin stops.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// Polls sockets after every 4 task polls. With the default of 61, a storm of new connections
/// evicts a probe before its request is read.
const EVENT_INTERVAL: u32 = 4;

/// 8 KiB: the minimum of hyper.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// 16 KiB: the next chunk of a list is made when the one before is written.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// Handle of the running admin. Dropping it stops the admin without waiting.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    control: Option<Box<Path>>,
    stop: oneshot::Sender<Infallible>,
    thread: JoinHandle<()>,
}

/// Binds both addresses and serves them on a thread of its own. `beside` runs on the same thread.
///
/// # Errors
/// If the admin address or the configured control socket cannot be bound, or a file of `admin.tls` or
/// `admin.token_file` cannot be used; the message names the key of the configuration. If `admin.control` is `auto` and no directory is writable, the admin runs
/// without a control socket and a check is degraded.
pub fn start(
    config: &Config,
    parts: Parts,
    beside: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Admin> {
    let bound = listener::bind(config.address, Sharing::Alone)
        .and_then(|bound| Ok((bound.local_addr()?, bound)))
        .map_err(|error| named(&format!("admin.address {}", config.address), &error))?;
    let (address, bound) = bound;
    let tls = config.tls.clone();
    let tls = tls
        .map(|files| Tls::load(files, Purpose::Admin))
        .transpose();
    let tls = tls.map_err(|error| io::Error::other(format!("admin.tls: {error}")))?;
    let access = open_access(config, &parts)?;
    let (socket, check) = open_control(config, address.port(), &parts.health)?;
    let control: Option<Box<Path>> = socket.as_ref().map(|socket| socket.path().into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let is_tls = tls.is_some();
    if let Some(tls) = &tls {
        let check = parts.health.check(format!("tls:{address}"), "not read yet");
        let report = move |reload: Result<(), tls::ReloadError>| check.set(status_of(&reload));
        runtime.spawn(tls.clone().follow(report));
    }
    if let Some((file, first)) = access.file {
        let check = parts.health.check("admin_token", "not read yet");
        let report = move |read: Result<(), &io::Error>| check.set(status_of(&read));
        let token = parts.token.clone();
        runtime.spawn(access::follow(token, file, first, report));
    }
    let port = Arc::new(Port {
        parts: Arc::new(parts),
        hosts: config.hosts.clone(),
        access: access.rules,
        lists: Arc::new(Semaphore::new(answer::LISTS_MAX)),
        viewers: Viewers::new(),
        taps: Arc::new(Semaphore::new(tap::TAPS_MAX)),
        is_tap_on: config.tap,
        is_tls,
    });
    let listening = Listening { bound, tls };
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            let beside = runtime.spawn(beside);
            serve(&runtime, listening, socket, &port, stopped, check);
            beside.abort();
            // Does not wait for a blocking read of a certificate or a token.
            runtime.shutdown_background();
        })?;
    let shown = control.as_ref().map(|path| path.display().to_string());
    tracing::info!(%address, tls = is_tls, control = shown, "admin listening");
    Ok(Admin {
        address,
        control,
        stop,
        thread,
    })
}

impl Admin {
    /// Returns the bound address, with the actual port if 0 was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the path of the control socket, if there is one.
    #[must_use]
    pub fn control(&self) -> Option<&Path> {
        self.control.as_deref()
    }

    /// Finishes responses in progress, ends the thread and removes the control socket. Blocks for
    /// at most half a second.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the admin thread panicked");
        }
    }
}

/// Opens the control socket. Without one, returns the degraded check, which lasts as long as the
/// admin.
fn open_control(
    config: &Config,
    port: u16,
    health: &Health,
) -> io::Result<(Option<Socket>, Option<Check>)> {
    match Socket::open(config.control.as_deref(), port) {
        Ok(socket) => Ok((Some(socket), None)),
        Err(error) if config.control.is_none() && error.kind() != io::ErrorKind::AddrInUse => {
            let check = health.check("control", "not opened yet");
            check.set(Status::Degraded(format!(
                "no control socket: {error}; set `admin.control` to a writable path"
            )));
            Ok((None, Some(check)))
        }
        Err(error) => Err(named("admin.control", &error)),
    }
}

/// Rules of the protected pages, and the file of the token with its first content.
struct OpenAccess {
    rules: Access,
    file: Option<(PathBuf, Secret)>,
}

/// Sets the token before the first request is answered.
fn open_access(config: &Config, parts: &Parts) -> io::Result<OpenAccess> {
    let mut file = None;
    let mut token = config.token.clone();
    if let Some(path) = &config.token_file {
        let first = access::read(path)
            .map_err(|error| named(&format!("admin.token_file {}", path.display()), &error))?;
        token = Some(first.clone());
        file = Some((path.clone(), first));
    }
    parts.token.set(token.as_ref())?;
    let accepts_certificates = config
        .tls
        .as_ref()
        .is_some_and(|tls| tls.client_ca.is_some());
    Ok(OpenAccess {
        rules: Access::new(parts.token.clone(), accepts_certificates),
        file,
    })
}

/// Status of a file that is read again: a failed read leaves the pod ready.
fn status_of<E: std::fmt::Display>(read: &Result<(), E>) -> Status {
    match read {
        Ok(()) => Status::Ok,
        Err(error) => Status::Degraded(error.to_string()),
    }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Admin port before it accepts connections.
struct Listening {
    bound: std::net::TcpListener,
    tls: Option<Tls>,
}

/// Runs the thread of the admin.
fn serve(
    runtime: &Runtime,
    listening: Listening,
    socket: Option<Socket>,
    port: &Arc<Port>,
    stopped: oneshot::Receiver<Infallible>,
    _check: Option<Check>,
) {
    let parts = &port.parts;
    sample::install(&parts.metrics, parts);
    let slots = Slots::new("admin", BOUNDS, &parts.metrics.admin_refusals_total);
    let controls = control::slots(&parts.metrics);
    let snapshot: Snapshot = Arc::new({
        let (parts, started) = (parts.clone(), SystemTime::now());
        move || snapshot(&parts, started)
    });
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = accept(listening, port, &slots) => {}
            () = control::serve(socket.as_ref(), parts, &controls) => {}
            never = port.viewers.publish(snapshot.clone()) => match never {},
        }
        port.viewers.end(&snapshot);
        // The end of the runtime cuts later responses.
        let answered = async { tokio::join!(slots.unused(), controls.unused()) };
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            tracing::debug!("admin connections cut at shutdown");
        }
    });
    // Removes the file, after the last response.
    drop(socket);
}

async fn accept(listening: Listening, port: &Arc<Port>, slots: &Slots) {
    let Listening { bound, tls } = listening;
    let listener = match Listener::new(bound) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "cannot listen on the admin port"),
    };
    let port = port.clone();
    let serve = move |connection: TcpStream, slot| {
        // An address is missing only if the client has already disconnected.
        let peer = connection.peer_addr().map(|peer| peer.ip().to_canonical());
        let watch = Watch::default();
        let context = RequestContext {
            port: port.clone(),
            peer: peer.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            has_certificate: false,
            has_bare_line_feed: Arc::default(),
            slot,
            busy: OnceLock::new(),
            watch: watch.clone(),
        };
        let acceptor = tls.as_ref().map(Tls::acceptor);
        async move {
            let served = async {
                match acceptor {
                    Some(acceptor) => serve_tls(connection, &acceptor, context).await,
                    None => serve_connection(connection, &context).await,
                }
            };
            tokio::select! {
                () = served => {}
                () = watch.deadline(CONNECTION_DEADLINE) => {
                    let is_event_stream = watch.is_event_stream();
                    tracing::debug!(is_event_stream, "admin connection cut at its deadline");
                }
            }
        }
    };
    match slots::serve(listener, slots, serve).await {}
}

/// Performs the TLS handshake, then serves the connection.
async fn serve_tls(connection: TcpStream, acceptor: &Acceptor, mut context: RequestContext) {
    let handshake = tokio::time::timeout(HEAD_DEADLINE, acceptor.accept(connection));
    let handshake = tokio::select! {
        () = context.slot.evicted() => return,
        handshake = handshake => handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
    };
    match handshake {
        Ok(mut connection) => {
            tls::bound_buffers(&mut connection);
            // rustls has verified them.
            context.has_certificate = connection.get_ref().1.peer_certificates().is_some();
            serve_connection(connection, &context).await;
        }
        Err(error) => {
            context.count_handshake();
            tracing::debug!(client.addr = %context.peer, %error, "TLS handshake on the admin port failed");
        }
    }
}

/// Serves one connection with one request.
async fn serve_connection<S>(connection: S, context: &RequestContext)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let connection = Scanned::new(connection, context.has_bare_line_feed.clone());
    let service = service_fn(|request| async move {
        Ok::<_, Infallible>(answer::respond(context, request).await)
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(ANSWER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        () = context.slot.evicted() => {}
        served = served => if let Err(error) = served {
            tracing::debug!(%error, "admin connection failed");
        },
    }
}
