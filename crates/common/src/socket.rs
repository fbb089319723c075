//! Options of client sockets: keepalive, user timeout, unsent bytes, and reset.
//!
//! Together they bound how long a dead peer is unnoticed (25 s with traffic, two minutes without)
//! and how much a slow peer hides in the kernel (16 KiB).

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// 60 s: a peer that vanished without a FIN is detected within two minutes (60 + 4 x 15 s).
/// Connections with unacknowledged bytes, heartbeats included, are covered sooner by
/// [`USER_TIMEOUT`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// 25 s: bytes that are not acknowledged for this time end the connection, also if the peer's
/// window stays closed (tcp(7)). Longer than a pause of a mobile network that a client survives,
/// shorter than two heartbeats.
const USER_TIMEOUT: Duration = Duration::from_secs(25);

/// 16 KiB: about one write. Without the limit, the kernel buffers 4 MB for a client that never
/// reads, and the client's lag stays hidden.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// Sets the options of client connections on their listener. Linux copies them to accepted sockets,
/// which saves seven system calls per connection in a storm of reconnects.
///
/// # Errors
/// Fails if the system rejects an option.
pub fn prepare(listener: &impl AsFd) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_RETRIES))?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT_BYTES)
}

/// Makes the close of a socket a reset that frees its memory at once (`SO_LINGER` 0). Only for dead
/// or stuck peers: unread bytes are lost.
///
/// # Errors
/// Fails if the system rejects the option; the close is then a regular one.
pub fn abort(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Ends our side of a connection (FIN); the peer can still send.
///
/// # Errors
/// Fails if the connection has ended already.
pub fn shut_down(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).shutdown(Shutdown::Write)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        prepare(&listener).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (client, listener.accept().unwrap().0)
    }

    #[test]
    fn accepted_socket_has_every_option() {
        let (_client, server) = pair();
        let socket = SockRef::from(&server);
        assert!(socket.tcp_nodelay().unwrap());
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE_IDLE);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE_INTERVAL);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), KEEPALIVE_RETRIES);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT_BYTES);
        assert_eq!(
            socket.linger().unwrap(),
            None,
            "a regular close delivers written bytes"
        );
    }

    #[test]
    fn aborted_socket_is_reset_and_a_regular_one_is_not() {
        let (mut client, server) = pair();
        drop(server);
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);

        let (mut client, server) = pair();
        abort(&server).unwrap();
        drop(server);
        assert_eq!(
            client.read(&mut [0; 8]).unwrap_err().kind(),
            io::ErrorKind::ConnectionReset
        );
    }
}
