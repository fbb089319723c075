//! A listener that is never in anybody's way: it outlives a shortage of descriptors and leaves nobody in the kernel's queue.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// How many connections wait in the kernel at most: a storm of reconnects arrives faster than it is accepted. The
/// kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// 100 ms: a shortage ends when somebody closes something; until then to ask more often only costs time.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// 10 s: how often a shortage that lasts is told.
const SHORTAGE_LOG_EVERY: Duration = Duration::from_secs(10);

/// 10, a second together: how often a shortage is waited for when the listener is to be closed.
const LAST_TRIES_MAX: u32 = 10;

/// Whether several listeners of one process share a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// A second one is refused.
    Alone,
    /// The kernel spreads connections over all of them (`SO_REUSEPORT`); so could another process of the same user.
    Shared,
}

/// An open listener.
#[derive(Debug)]
pub struct Listener {
    sockets: TcpListener,
    address: SocketAddr,
    shortage: Shortage,
}

/// Binds and listens, without needing a runtime; `::` takes IPv4 as well.
///
/// # Errors
/// When the address is taken, not of this machine, or not allowed.
pub fn bind(address: SocketAddr, sharing: Sharing) -> io::Result<StdListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    // Or a restart would wait for the connections of the previous run to leave TIME_WAIT.
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
    /// Takes what [`bind`] made to the runtime that it is called on.
    ///
    /// # Errors
    /// When the runtime cannot take it.
    pub fn new(bound: StdListener) -> io::Result<Self> {
        let address = bound.local_addr()?;
        Ok(Self {
            sockets: TcpListener::from_std(bound)?,
            address,
            shortage: Shortage::default(),
        })
    }

    /// Where it listens; the real port, when 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection. It is not lost when the future is dropped.
    ///
    /// It never fails: a shortage is waited for, and a connection that ended in the queue is passed over.
    pub async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.sockets.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    /// Hands over what waits in the kernel's queue, then closes: those in it would be reset by the close.
    pub async fn accept_queued(mut self, mut take: impl FnMut(TcpStream, SocketAddr)) {
        let mut tries = 0;
        // As many as the queue can hold: with more, somebody connects as fast as this accepts, and it would never end.
        let mut left = BACKLOG;
        let Ok(sockets) = self.sockets.into_std() else {
            return;
        };
        // The system is asked directly: the runtime may not have heard yet of those that came last.
        while left > 0 && tries < LAST_TRIES_MAX {
            left -= 1;
            match sockets.accept() {
                Ok((socket, peer)) => match socket
                    .set_nonblocking(true)
                    .and_then(|()| TcpStream::from_std(socket))
                {
                    Ok(socket) => take(socket, peer),
                    Err(error) => {
                        tracing::debug!(%error, client.addr = %peer, "connection could not be taken over")
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_of_the_connection(&error) => {}
                Err(error) => {
                    tries += 1;
                    self.shortage.tell(self.address, &error);
                    tokio::time::sleep(SHORTAGE_PAUSE).await;
                }
            }
        }
    }

    async fn wait_after(&mut self, error: &io::Error) {
        if !is_of_the_connection(error) {
            self.shortage.tell(self.address, error);
            tokio::time::sleep(SHORTAGE_PAUSE).await;
        }
    }
}

/// Whether an error of `accept` is that of one connection, already taken out of the queue (accept(2), "Error handling"),
/// and the next can be had at once. Every other is waited for, or the loop would spin on it.
fn is_of_the_connection(error: &io::Error) -> bool {
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

/// Tells of a shortage (EMFILE, ENFILE, ENOBUFS, ENOMEM, ...) at a bounded rate.
#[derive(Debug, Default)]
struct Shortage {
    told: Option<Instant>,
    since: u64,
}

impl Shortage {
    fn tell(&mut self, address: SocketAddr, error: &io::Error) {
        self.since += 1;
        let now = Instant::now();
        if self
            .told
            .is_none_or(|told| now.duration_since(told) >= SHORTAGE_LOG_EVERY)
        {
            tracing::warn!(%address, %error, times = self.since, "connections cannot be accepted");
            *self = Self {
                told: Some(now),
                since: 0,
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
    async fn the_unspecified_ipv6_address_takes_ipv4_as_well() {
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
    async fn a_port_is_taken_once_unless_it_is_shared() {
        let alone = listen(LOOPBACK);
        let refused = bind(alone.address(), Sharing::Alone).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::AddrInUse);

        let first = bind(LOOPBACK.parse().unwrap(), Sharing::Shared).unwrap();
        bind(first.local_addr().unwrap(), Sharing::Shared).unwrap();
    }

    #[tokio::test]
    async fn a_listener_that_closes_hands_over_everyone_who_was_already_connected() {
        let listener = listen(LOOPBACK);
        let address = listener.address();
        // Connected without any await between: the runtime has not seen one of them.
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
    fn only_errors_of_one_connection_are_passed_over_without_a_pause() {
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
                is_of_the_connection(&io::Error::from_raw_os_error(code)),
                passed,
                "{code}"
            );
        }
    }

    #[test]
    fn a_shortage_that_lasts_is_told_once_in_a_while() {
        let mut shortage = Shortage::default();
        let address = LOOPBACK.parse().unwrap();
        for _ in 0..50 {
            shortage.tell(address, &io::Error::from_raw_os_error(24));
        }
        assert_eq!(
            shortage.since, 49,
            "one line, the others counted for the next"
        );
    }
}
