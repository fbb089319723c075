//! Kernel tables of TCP sockets in this network namespace (`/proc/net/tcp`), read line by line.
//!
//! Parsed here rather than with the `procfs` crate, which takes three to five times the CPU and
//! allocates every entry; a pod can have 100,000 sockets (decision 24).

use std::io::{self, BufRead};

/// Tables of IPv4 and IPv6; a kernel without IPv6 has no second one.
pub(super) const TABLES: [&str; 2] = ["/proc/self/net/tcp", "/proc/self/net/tcp6"];

/// `TCP_LISTEN`: the queues of a listening socket count connections.
pub(super) const LISTEN: &str = "0A";

/// Fields of one socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'l> {
    /// Local port.
    pub(super) local_port: u16,
    /// State as two hex digits (`include/net/tcp_states.h`).
    pub(super) state: &'l str,
    /// Bytes, or an end, that the peer has not acknowledged.
    pub(super) unsent: u64,
}

/// Calls `take` for every socket of a table.
pub(super) fn read(mut table: impl BufRead, mut take: impl FnMut(Entry<'_>)) -> io::Result<()> {
    let mut line = String::new();
    while table.read_line(&mut line)? > 0 {
        entry(&line).into_iter().for_each(&mut take);
        line.clear();
    }
    Ok(())
}

/// Parses a line: `  0: 0100007F:1F90 0100007F:D2A4 01 00000000:00000000 ...`, which is the number,
/// the local and the remote address, the state, and the bytes to be sent and to be read (proc(5)).
/// Returns `None` for the heading.
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
