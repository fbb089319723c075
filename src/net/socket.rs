//! The options of client sockets.

use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// 60 s: a peer that vanished behind a quiet network is noticed within two minutes (60 + 4 x 15 s). Busy or
/// heartbeating connections are covered sooner, by [`USER_TIMEOUT`].
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 4;

/// 25 s: what was sent and not acknowledged for so long ends the connection, a window that stays shut included
/// (tcp(7)): longer than any pause of a mobile network that a client survives, shorter than two heartbeats.
const USER_TIMEOUT: Duration = Duration::from_secs(25);

/// 16 KiB: as much as is written at once. Without it a client that never reads hides 4 MB in the kernel, and its lag
/// would look like none.
const NOTSENT_LOWAT_BYTES: u32 = 16 * 1024;

/// Sets everything that client connections need on the listener that they come from: Linux gives accepted sockets what
/// their listener has, and a storm of reconnects is spared seven system calls for each.
///
/// # Errors
/// When the system refuses an option.
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

/// Makes the close of this socket a reset that frees its memory at once (`SO_LINGER` 0). For peers that are dead or
/// stuck only: whatever they have not read is lost.
///
/// # Errors
/// When the system refuses it; the close is then an ordinary one.
pub fn abort(socket: &impl AsFd) -> io::Result<()> {
    SockRef::from(socket).set_linger(Some(Duration::ZERO))
}

/// Ends our side of a connection; the other may go on.
///
/// # Errors
/// When the system refuses it: the connection has ended already.
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
    fn an_accepted_socket_has_every_option() {
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
            "an ordinary close delivers what was written"
        );
    }

    #[test]
    fn an_aborted_socket_is_reset_and_an_ordinary_one_is_not() {
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
