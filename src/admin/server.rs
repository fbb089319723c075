//! The admin's thread: starts first, stops last, and answers however busy the rest of the process is.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use super::answer::Asker;
use super::control::{self, Command};
use super::socket::Socket;
use super::{Config, answer, sample};
use crate::lifecycle::health::{Check, Health, Status};
use crate::lifecycle::phase::Progress;
use crate::net::listener::{self, Listener, Sharing};
use crate::net::request_head::Scanned;
use crate::net::slots::{self, Bounds, Slots};
use crate::presence::StreamTable;
use crate::telemetry::Metrics;

/// 64 silent and 64 connected: probes, scrapers and people are a dozen, and 128 descriptors are half of the least limit
/// that is usual (256). 16 of them busy: a list or the metrics, held in memory until they are read.
const BOUNDS: Bounds = Bounds {
    silent_max: 64,
    connected_max: 64,
    busy_max: 16,
    first_byte_max: Duration::from_secs(2),
};

/// 3 s: the head of a request of a probe is one packet.
const HEAD_DEADLINE: Duration = Duration::from_secs(3);

/// 15 s: for the whole connection, which is one request; long enough to carry every list there is.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(15);

/// 500 ms: what is being answered when the admin stops is answered.
const LAST_ANSWERS: Duration = Duration::from_millis(500);

/// 4 turns of tasks, and sockets are asked again. With the default of 61, a storm of new connections evicts a probe before
/// its request, which came with it, is seen.
const EVENT_INTERVAL: u32 = 4;

/// 8 KiB: the least that hyper reads into.
const HEAD_BYTES_MAX: usize = 8 * 1024;

/// 16 KiB: pieces of a list are made when those before are written.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

/// What the admin shows, and where it sends what it is told.
pub struct Parts {
    /// The checks.
    pub health: Health,
    /// The metrics; the admin adds samplers of its own.
    pub metrics: Arc<Metrics>,
    /// Who is connected.
    pub registry: StreamTable,
    /// Where a drain stands.
    pub drain: watch::Receiver<Progress>,
    /// What `/config` shows: the effective configuration with its secrets masked, and how the last reload went.
    pub config: Box<dyn Fn() -> serde_json::Value + Send + Sync>,
    /// Where commands of the control socket go.
    pub commands: mpsc::Sender<Command>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts")
    }
}

/// The running admin. Dropping it ends it as well, without waiting.
#[derive(Debug)]
pub struct Admin {
    address: SocketAddr,
    control: Option<Box<Path>>,
    stop: oneshot::Sender<Infallible>,
    thread: JoinHandle<()>,
}

/// Binds both addresses, begins to answer on a thread of its own, and says where. `beside` runs on that thread too: what
/// has to go on however busy the other threads are.
///
/// # Errors
/// When the address cannot be listened at, or the control socket that was asked for cannot be made; the message names
/// the key of the configuration. With the control socket `auto` and no place for it, the admin runs without one and
/// warns.
pub fn start(
    config: &Config,
    parts: Parts,
    beside: impl Future<Output = ()> + Send + 'static,
) -> io::Result<Admin> {
    let bound = listener::bind(config.address, Sharing::Alone)
        .and_then(|bound| Ok((bound.local_addr()?, bound)))
        .map_err(|error| named(&format!("admin.address {}", config.address), &error))?;
    let (address, bound) = bound;
    let (socket, check) = open_control(config, address.port(), &parts.health)?;
    let control: Option<Box<Path>> = socket.as_ref().map(|socket| socket.path().into());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .build()?;
    let (stop, stopped) = oneshot::channel();
    let hosts = config.hosts.clone().into();
    let thread = std::thread::Builder::new()
        .name("admin".into())
        .spawn(move || {
            let beside = runtime.spawn(beside);
            serve(
                &runtime,
                Sockets {
                    bound,
                    socket,
                    hosts,
                },
                parts,
                stopped,
                check,
            );
            beside.abort();
        })?;
    let shown = control.as_ref().map(|path| path.display().to_string());
    tracing::info!(%address, control = shown, "admin listening");
    Ok(Admin {
        address,
        control,
        stop,
        thread,
    })
}

impl Admin {
    /// Where it answers; the real port, when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the control socket is, if there is one.
    #[must_use]
    pub fn control(&self) -> Option<&Path> {
        self.control.as_deref()
    }

    /// Answers what is being asked, then ends the thread and takes the control socket away. Blocks, half a second at
    /// most: the last act of the process.
    pub fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            tracing::error!("the admin's thread had panicked");
        }
    }
}

/// The control socket, or the check that says that there is none; to be kept as long as the admin runs.
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
                "no control socket; name a path as admin.control: {error}"
            )));
            Ok((None, Some(check)))
        }
        Err(error) => Err(named("admin.control", &error)),
    }
}

fn named(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

/// Everything that is listened at.
struct Sockets {
    bound: std::net::TcpListener,
    socket: Option<Socket>,
    /// Names under which the port may be asked.
    hosts: Arc<[String]>,
}

/// The thread.
fn serve(
    runtime: &Runtime,
    Sockets {
        bound,
        socket,
        hosts,
    }: Sockets,
    parts: Parts,
    stopped: oneshot::Receiver<Infallible>,
    _check: Option<Check>,
) {
    sample::install(&parts.metrics, parts.registry.clone(), parts.drain.clone());
    let parts = Arc::new(parts);
    let slots = Slots::new("admin", BOUNDS, &parts.metrics.admin_refusals_total);
    let controls = control::slots(&parts.metrics);
    runtime.block_on(async {
        tokio::select! {
            _ = stopped => {}
            () = accept(bound, &parts, &hosts, &slots) => {}
            () = control::serve(socket.as_ref(), &parts, &controls) => {}
        }
        // Late answers are cut by the end of the runtime.
        let answered = async { tokio::join!(slots.unused(), controls.unused()) };
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            tracing::debug!("the admin's last connections were cut");
        }
    });
    // Takes the file away, after the last answer.
    drop(socket);
}

async fn accept(
    bound: std::net::TcpListener,
    parts: &Arc<Parts>,
    hosts: &Arc<[String]>,
    slots: &Slots,
) {
    let listener = match Listener::new(bound) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "the admin cannot listen"),
    };
    let lists = Arc::new(Semaphore::new(answer::LISTS_MAX));
    let (parts, hosts) = (parts.clone(), hosts.clone());
    let converse = move |connection, slot| {
        let asker = Asker {
            parts: parts.clone(),
            hosts: hosts.clone(),
            has_bare_line_feed: Arc::default(),
            lists: lists.clone(),
            slot,
            busy: OnceLock::new(),
        };
        async move {
            if tokio::time::timeout(CONNECTION_DEADLINE, converse(connection, &asker))
                .await
                .is_err()
            {
                tracing::debug!("a connection to the admin was cut at its deadline");
            }
        }
    };
    match slots::serve(listener, slots, converse).await {}
}

/// One connection, one request: a slot is never held for a request that may come later.
async fn converse(connection: TcpStream, asker: &Asker) {
    let connection = Scanned::new(connection, asker.has_bare_line_feed.clone());
    let service =
        service_fn(
            |request| async move { Ok::<_, Infallible>(answer::answer(asker, &request).await) },
        );
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_header_size(HEAD_BYTES_MAX)
        .max_buf_size(ANSWER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(connection), service);
    tokio::select! {
        () = asker.slot.evicted() => {}
        served = served => if let Err(error) = served {
            tracing::debug!(%error, "a connection to the admin ended early");
        },
    }
}
