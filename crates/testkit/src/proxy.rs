//! A TCP proxy that fails on demand: cuts, swallows, stalls, delays and throttles what passes through it.

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

/// The bytes held per direction: a proxy that hoards would hide a stalled peer.
const BUFFER: usize = 16 * 1024;

/// What happens to the bytes of every connection, both ways, old connections and new.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// Bytes are read and go nowhere: the peer is gone and nobody was told (a half-open connection).
    pub swallow: bool,
    /// Nothing is read: buffers fill up to the sender.
    pub stall: bool,
    /// Each piece is held back this long.
    pub delay: Duration,
    /// At most this many bytes per second and direction; 0 is unlimited.
    pub bytes_per_second: u32,
    /// New connections are closed at once.
    pub refuse: bool,
}

/// A proxy on a free port of loopback, gone with everything in it when dropped.
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
    /// Connections of an older generation are cut.
    generation: u64,
}

// === impl Proxy ===

impl Proxy {
    /// Forwards to `upstream`, faultless until told otherwise.
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

    /// Forwards to a port of loopback.
    pub async fn to_port(port: u16) -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], port))).await
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on this happens to all bytes; `Fault::default()` heals.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| state.fault = fault);
    }

    /// New connections go here; those that are open stay.
    pub fn forward_to(&self, upstream: SocketAddr) {
        self.state.send_modify(|state| state.upstream = upstream);
    }

    /// Resets every open connection, on both sides. New ones are accepted.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// How many connections are open.
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
        // Dropped, a write half sends FIN first, and the peer would take that for an end in order.
        to_client.forget();
        to_server.forget();
    }
}

/// Copies until FIN, which is passed on, or an error.
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
            // While bytes are swallowed, the end of one peer stays unknown to the other, too.
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

/// Closing this socket now sends RST instead of FIN.
fn reset_on_close(socket: &TcpStream) {
    socket2::SockRef::from(socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}
