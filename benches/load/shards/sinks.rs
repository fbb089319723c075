//! Clients whose bytes the kernel discards.

use std::io::{ErrorKind, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::Fallible;

/// Open event streams and the thread that discards their bytes. Dropping it closes them.
pub(super) struct Sinks {
    closed: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Sinks {
    /// Opens event streams one after another.
    pub(super) fn open(address: SocketAddr, path: &str, clients: usize) -> Fallible<Self> {
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n");
        let sockets: Fallible<Vec<Socket>> =
            (0..clients).map(|_| connect(address, &request)).collect();
        let sockets = sockets?;
        let closed = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&closed);
        let thread = std::thread::Builder::new()
            .name("sinks".to_owned())
            .spawn(move || discard(&sockets, &until))?;
        Ok(Self {
            closed,
            thread: Some(thread),
        })
    }
}

impl Drop for Sinks {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::Relaxed);
        // A panic of the thread was printed by it.
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn connect(address: SocketAddr, request: &str) -> Fallible<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.connect(&address.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(request.as_bytes())?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    if !status.ends_with(b" 200") {
        return Err(format!(
            "an event stream was not opened: {}",
            String::from_utf8_lossy(&status)
        )
        .into());
    }
    stream.set_nonblocking(true)?;
    Ok(stream.into())
}

/// Discards what has arrived on all sockets, until they are closed.
#[expect(clippy::disallowed_methods, reason = "no runtime runs on this thread")]
fn discard(sockets: &[Socket], closed: &AtomicBool) {
    // Nothing is written to it: the length alone counts.
    let mut unused = vec![MaybeUninit::uninit(); BUFFER];
    while !closed.load(Ordering::Relaxed) {
        for socket in sockets {
            match socket.recv_with_flags(&mut unused, MSG_TRUNC) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("a sink: {error}"),
            }
        }
        std::thread::sleep(INTERVAL);
    }
}

/// `MSG_TRUNC` of Linux: discards bytes instead of copying them (tcp(7)).
const MSG_TRUNC: i32 = 0x20;
/// 4 MiB, more than a socket holds.
const BUFFER: usize = 4 << 20;
/// 20 ms: a socket then holds 100 KB at five million deliveries per second to a thousand clients.
const INTERVAL: Duration = Duration::from_millis(20);
