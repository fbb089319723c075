//! The kernel's tables of the TCP sockets in this network namespace, line by line.

use std::io::{self, BufRead};

/// IPv4 and IPv6; a kernel without IPv6 has no second one.
pub(super) const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// `TCP_LISTEN`: the queues of such a socket count connections.
pub(super) const LISTEN: &str = "0A";

/// What a line says of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'l> {
    /// Ours.
    pub(super) local_port: u16,
    /// Two hex digits (`include/net/tcp_states.h`).
    pub(super) state: &'l str,
    /// Bytes, or an end, that the other side has not acknowledged.
    pub(super) unsent: u64,
}

/// Hands over every socket of a table.
pub(super) fn read(mut table: impl BufRead, mut take: impl FnMut(Entry<'_>)) -> io::Result<()> {
    let mut line = String::new();
    while table.read_line(&mut line)? > 0 {
        entry(&line).into_iter().for_each(&mut take);
        line.clear();
    }
    Ok(())
}

/// One line: `  0: 0100007F:1F90 0100007F:D2A4 01 00000000:00000000 ...`, which is the number, the local and the remote
/// address, the state, the bytes to be sent and to be read (proc(5)). The heading is no such line.
pub(super) fn entry(line: &str) -> Option<Entry<'_>> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, _, state, queues) = (
        fields.next()?,
        fields.next()?,
        fields.next()?,
        fields.next()?,
    );
    let local_port = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
    let unsent = u64::from_str_radix(queues.split_once(':')?.0, 16).ok()?;
    Some(Entry {
        local_port,
        state,
        unsent,
    })
}
