//! Send queues: bytes of a port's connections that the peers have not acknowledged.
//!
//! The end of a drain waits until the kernel has delivered everything, closed sockets included:
//! they disappear with the network namespace of the pod. `SIOCOUTQ` works for open sockets only,
//! and no safe interface to it was found. `/proc/net/tcp` has all sockets of the namespace in one
//! read.

use std::fs::File;
use std::io::{self, BufReader};

use super::table::{self, Entry, LISTEN, TABLES};

/// Returns the number of connections of these local ports with bytes, or an end, that the peer has
/// not acknowledged.
///
/// # Errors
/// Fails if `/proc` cannot be read.
pub fn unsent(ports: &[u16]) -> io::Result<usize> {
    let mut count = 0;
    for name in TABLES {
        match File::open(name) {
            Ok(file) => {
                table::read(BufReader::new(file), |entry| {
                    count += usize::from(holds_unsent(entry, ports))
                })?;
            }
            // A kernel without IPv6 has no second table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

fn holds_unsent(entry: Entry<'_>, ports: &[u16]) -> bool {
    entry.state != LISTEN && ports.contains(&entry.local_port) && entry.unsent > 0
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn line_is_parsed_as_described_in_proc_5() {
        let holds_unsent = |line: &str, ports: &[u16]| {
            table::entry(line).is_some_and(|entry| holds_unsent(entry, ports))
        };
        let line = |port: &str, state: &str, unsent: &str| {
            format!(
                "   3: 0100007F:{port} 0100007F:D2A4 {state} {unsent}:00000007 01:00000014 00000000  1000        0 17"
            )
        };
        assert!(holds_unsent(&line("1F90", "04", "00000001"), &[80, 8080]));
        assert!(!holds_unsent(&line("1F90", "04", "00000000"), &[8080]));
        assert!(!holds_unsent(&line("1F91", "04", "00000001"), &[8080]));
        assert!(!holds_unsent(&line("1F90", "0A", "00000001"), &[8080]));
        assert!(!holds_unsent(
            "  sl  local_address rem_address   st tx_queue rx_queue",
            &[8080]
        ));
        assert!(!holds_unsent("", &[8080]));
    }

    #[test]
    fn closed_socket_counts_until_its_peer_has_read_everything() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = listener.accept().unwrap().0;
        assert_eq!(unsent(&[port]).unwrap(), 0);
        server.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = server.write(&[0; 65_536]) {
            sent += count;
        }
        drop(server);
        assert_eq!(unsent(&[port]).unwrap(), 1);
        let mut taken = Vec::new();
        client.read_to_end(&mut taken).unwrap();
        assert_eq!(taken.len(), sent);
        let begun = Instant::now();
        while unsent(&[port]).unwrap() > 0 {
            assert!(
                begun.elapsed() < Duration::from_secs(5),
                "the queue is empty after the peer has read everything"
            );
            std::thread::yield_now();
        }
    }
}
