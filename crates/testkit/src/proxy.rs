//! TCP proxy that injects faults: it resets, discards, stalls, delays and throttles.
//!
//! Faults are set with [`Proxy::set`] and apply to open and new connections, in both directions.
//! Each direction buffers little, so that a stalled peer exerts backpressure through the proxy.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::wait::{DEADLINE, eventually};

/// Bytes that are buffered per direction; more would hide a stalled peer.
const BUFFER: usize = 16 * 1024;

/// Faults of all connections, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Discards bytes: a half-open connection, with a peer that disappeared.
    pub swallow: bool,
    /// Does not read: buffers fill up to the sender.
    pub stall: bool,
    /// Delay of each read.
    pub delay: Duration,
    /// Bytes per second and direction; 0 is unlimited.
    pub bytes_per_second: u32,
    /// Resets new connections at once.
    pub refuse: bool,
}

/// Proxy on a free port of loopback. Dropping it closes all its connections.
pub struct Proxy {
    address: SocketAddr,
    state: watch::Sender<State>,
    open: Arc<AtomicUsize>,
    accepting: JoinHandle<()>,
}

#[derive(Clone, Copy)]
struct State {
    upstream: SocketAddr,
    fault: Fault,
    /// Connections of an older generation are reset.
    generation: u64,
}

// === impl Proxy ===

impl Proxy {
    /// Starts a proxy to `upstream`, without faults.
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (state, watching) = watch::channel(State {
            upstream,
            fault: Fault::default(),
            generation: 0,
        });
        let open = Arc::new(AtomicUsize::new(0));
        let accepting = tokio::spawn(accept(listener, watching, Arc::clone(&open)));
        Self {
            address,
            state,
            open,
            accepting,
        }
    }

    /// Starts a proxy to a port of loopback.
    pub async fn to_port(port: u16) -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    /// Address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sets the faults; `Fault::default()` ends them.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// Changes the upstream of new connections; open ones remain.
    pub fn forward_to(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Resets every open connection on both sides. New connections work.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Number of open connections.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Acquire)
    }

    /// Waits until `count` connections are open.
    pub async fn until_open(&self, count: usize) {
        eventually(
            DEADLINE,
            "as many connections as wanted pass through the proxy",
            || async { self.open() == count },
        )
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort(); // the tasks of connections end when `state` is dropped
    }
}

async fn accept(listener: TcpListener, state: watch::Receiver<State>, open: Arc<AtomicUsize>) {
    while let Ok((client, _)) = listener.accept().await {
        let now = *state.borrow();
        if now.fault.refuse {
            reset_on_close(&client);
            continue;
        }
        let (state, open) = (state.clone(), Arc::clone(&open));
        tokio::spawn(async move {
            if let Ok(server) = TcpStream::connect(now.upstream).await {
                open.fetch_add(1, Ordering::AcqRel);
                forward(client, server, now.generation, state).await;
                open.fetch_sub(1, Ordering::AcqRel);
            }
        });
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    generation: u64,
    state: watch::Receiver<State>,
) {
    for socket in [&client, &server] {
        if socket.set_nodelay(true).is_err() {
            return;
        }
    }
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut cut = state.clone();
    let in_order = tokio::select! {
        biased;
        _ = cut.wait_for(|state| state.generation > generation) => false,
        ended = async {
            tokio::try_join!(
                copy(&mut from_client, &mut to_server, state.clone()),
                copy(&mut from_server, &mut to_client, state),
            )
        } => ended.is_ok(),
    };
    if !in_order {
        reset_on_close(from_client.as_ref());
        reset_on_close(from_server.as_ref());
        // Dropping a write half sends FIN first, which the peer would read as a regular end.
        to_client.forget();
        to_server.forget();
    }
}

/// Copies until an error or FIN, which is forwarded.
async fn copy(
    from: &mut OwnedReadHalf,
    to: &mut OwnedWriteHalf,
    mut state: watch::Receiver<State>,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        if state.wait_for(|state| !state.fault.stall).await.is_err() {
            return Ok(());
        }
        let read = tokio::select! {
            read = from.read(&mut buffer) => read?,
            changed = state.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(()),
            },
        };
        let fault = state.borrow().fault;
        if fault.swallow && read > 0 {
            continue;
        }
        if read == 0 {
            // While bytes are discarded, a FIN is not forwarded either.
            drop(state.wait_for(|state| !state.fault.swallow).await);
            return to.shutdown().await;
        }
        tokio::time::sleep(fault.delay + pause_for(read, fault.bytes_per_second)).await;
        to.write_all(&buffer[..read]).await?;
    }
}

fn pause_for(bytes: usize, per_second: u32) -> Duration {
    match per_second {
        0 => Duration::ZERO,
        rate => Duration::from_secs_f64(bytes as f64 / f64::from(rate)),
    }
}

/// Makes the close of this socket send RST instead of FIN.
fn reset_on_close(socket: &TcpStream) {
    socket2::SockRef::from(socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
