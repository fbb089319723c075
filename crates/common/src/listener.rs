//! TCP listener that survives a shortage of file descriptors and closes without losing connections.
//!
//! `accept` fails with EMFILE, ENFILE, ENOBUFS or ENOMEM when the system runs out of descriptors or
//! memory. [`Listener::accept`] logs that at a bounded rate, pauses, and tries again; errors of a
//! single connection are skipped. [`Listener::accept_queued`] ends a listener: it accepts what
//! waits in the kernel's queue, because closing the listener would reset those clients.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// 4096: connections that wait in the kernel's queue, because a storm of reconnects arrives faster
/// than it is accepted. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// 100 ms: pause after a failed `accept`. A shortage ends when descriptors are closed; retrying
/// more often only costs CPU.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// 10 s: interval of log lines about a shortage.
const SHORTAGE_LOG_EVERY: Duration = Duration::from_secs(10);

/// 10, together one second: pauses for a shortage while the listener closes.
const LAST_TRIES_MAX: u32 = 10;

/// Sharing of a port by several listeners of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Binding the port twice fails.
    Alone,
    /// The kernel distributes connections over all listeners (`SO_REUSEPORT`). Another process of
    /// the same user can join them.
    Shared,
}

/// Open listener.
#[derive(Debug)]
pub struct Listener {
    sockets: TcpListener,
    address: SocketAddr,
    shortage: Shortage,
}

/// Binds an address and listens, without a runtime. `::` accepts IPv4 as well.
///
/// # Errors
/// Fails if the address is in use, not of this machine, or not permitted.
pub fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Without it a restart fails while connections of the previous process are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    if sharing == Sharing::Shared {
        socket.set_reuse_port(true)?;
    }
    super::socket::prepare(&socket)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

impl Listener {
    /// Registers a listener from [`bind`] with the current runtime.
    ///
    /// # Errors
    /// Fails if the runtime cannot register it.
    pub fn new(bound: StdListener) -> io::Result<Self> {
        let address = bound.local_addr()?;
        Ok(Self {
            sockets: TcpListener::from_std(bound)?,
            address,
            shortage: Shortage::default(),
        })
    }

    /// Returns the address, with the real port if 0 was configured.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the next connection. Dropping the future loses none.
    ///
    /// It never fails: it waits during a shortage, and skips connections that ended in the queue.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.sockets.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    /// Accepts all connections in the kernel's queue, then closes. The close would reset them.
    pub async fn accept_queued(mut self, mut take: impl FnMut(TcpStream, SocketAddr)) {
        let mut tries = 0;
        // At most as many as the queue can hold. Clients that connect as fast as this accepts would
        // keep it from ending.
        let mut left = BACKLOG;
        let Ok(sockets) = self.sockets.into_std() else {
            return;
        };
        // A system call instead of the runtime, which may not know the latest connections yet.
        while left > 0 && tries < LAST_TRIES_MAX {
            left -= 1;
            match sockets.accept() {
                Ok((socket, peer)) => match socket
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(socket))
                {
                    Ok(socket) => take(socket, peer),
                    Err(error) => {
                        tracing::debug!(%error, client.addr = %peer, "accepted connection could not be registered")
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if concerns_one_connection(&error) => {}
                Err(error) => {
                    tries += 1;
                    self.shortage.log(self.address, &error);
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }

    async fn wait_after(&mut self, error: &io::Error) {
        if !concerns_one_connection(error) {
            self.shortage.log(self.address, error);
            tokio::time::sleep(SHORTAGE_PAUSE).await;
        }
    }
}

/// Returns whether an error of `accept` concerns a single connection that has left the queue
/// (accept(2), "Error handling"). The next `accept` follows at once then; after any other error it
/// waits, or the loop would spin.
fn concerns_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    let kind = error.kind();
    matches!(
        kind,
        Kind::ConnectionAborted | Kind::ConnectionReset | Kind::Interrupted
    ) || matches!(
        kind,
        Kind::HostUnreachable | Kind::NetworkUnreachable | Kind::NetworkDown
    )
}

/// Logs a shortage (EMFILE, ENFILE, ENOBUFS, ENOMEM, ...) at a bounded rate.
#[derive(Debug, Default)]
struct Shortage {
    logged: Option<Instant>,
    /// Failures since the last log line.
    failures: u64,
}

impl Shortage {
    fn log(&mut self, address: SocketAddr, error: &io::Error) {
        self.failures += 1;
        let now = Instant::now();
        if self
            .logged
            .is_none_or(|logged| now.duration_since(logged) >= SHORTAGE_LOG_EVERY)
        {
            tracing::warn!(%address, %error, failures = self.failures, "accepting connections failed; retrying");
            *self = Self {
                logged: Some(now),
                failures: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream as StdStream;

    use super::*;

    const LOOPBACK: &str = "127.0.0.1:0";

    fn listen(address: &str) -> Listener {
        Listener::new(bind(address.parse().unwrap(), Sharing::Alone).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn port_0_becomes_a_real_one_that_accepts() {
        let mut listener = listen(LOOPBACK);
        assert_ne!(listener.address().port(), 0);
        let client = StdStream::connect(listener.address()).unwrap();
        let (_accepted, peer) = listener.accept().await;
        assert_eq!(peer, client.local_addr().unwrap());
    }

    #[tokio::test]
    async fn unspecified_ipv6_address_accepts_ipv4_as_well() {
        let Ok(bound) = bind("[::]:0".parse().unwrap(), Sharing::Alone) else {
            return;
        };
        let mut listener = Listener::new(bound).unwrap();
        let port = listener.address().port();
        let client = StdStream::connect(("127.0.0.1", port)).unwrap();
        let (_accepted, peer) = listener.accept().await;
        assert_eq!(peer.port(), client.local_addr().unwrap().port());
    }

    #[tokio::test]
    async fn port_is_bound_once_unless_it_is_shared() {
        let alone = listen(LOOPBACK);
        let refused = bind(alone.address(), Sharing::Alone).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);

        let first = bind(LOOPBACK.parse().unwrap(), Sharing::Shared).unwrap();
        bind(first.local_addr().unwrap(), Sharing::Shared).unwrap();
    }

    #[tokio::test]
    async fn closing_listener_accepts_all_connections_in_the_queue() {
        let listener = listen(LOOPBACK);
        let address = listener.address();
        // No await in between, so the runtime has seen none of them.
        let clients: Vec<_> = (0..200)
            .map(|_| StdStream::connect(address).unwrap())
            .collect();
        let mut accepted = Vec::new();
        listener
            .accept_queued(|socket, peer| accepted.push((socket, peer)))
            .await;
        let expected: Vec<_> = clients
            .iter()
            .map(|client| client.local_addr().unwrap())
            .collect();
        assert_eq!(
            accepted.iter().map(|(_, peer)| *peer).collect::<Vec<_>>(),
            expected
        );
        let refused = StdStream::connect(address).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn only_errors_of_a_single_connection_are_skipped_without_a_pause() {
        // Linux: ECONNABORTED, EINTR; EMFILE, ENFILE, ENOBUFS, ENOMEM, EINVAL.
        for (code, passed) in [
            (103, true),
            (4, true),
            (24, false),
            (23, false),
            (105, false),
            (12, false),
            (22, false),
        ] {
            assert_eq!(
                concerns_one_connection(&io::Error::from_raw_os_error(code)),
                passed,
                "{code}"
            );
        }
    }

    #[test]
    fn lasting_shortage_is_logged_at_a_bounded_rate() {
        let mut shortage = Shortage::default();
        let address = LOOPBACK.parse().unwrap();
        for _ in 0..50 {
            shortage.log(address, &io::Error::from_raw_os_error(24));
        }
        assert_eq!(
            shortage.failures, 49,
            "one line; the other failures are counted for the next one"
        );
    }
}
