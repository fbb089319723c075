//! What is still unsent in the sockets of a port, those that are closed already included: read from `/proc/net/tcp`.
//!
//! `SIOCOUTQ` would say it of one open socket, and no safe interface to it was found. This says it of all at once, and of
//! those that nobody holds any more, which end with the network namespace of a pod.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader};

/// How many connections from these local ports hold bytes, or an end, that the other side has not acknowledged.
///
/// # Errors
/// When the system does not tell.
pub fn unsent(ports: &[u16]) -> io::Result<usize> {
    let mut count = 0;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match File::open(table) {
            Ok(file) => {
                for line in BufReader::new(file).lines() {
                    count += usize::from(holds_unsent(&line?, ports));
                }
            }
            // Without IPv6 there is no such table.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// One line: `  0: 0100007F:1F90 0100007F:D2A4 01 00000000:00000000 ...`, which is the number, the local and the remote
/// address, the state, the bytes to be sent and to be read (proc(5)). The heading is no such line.
fn holds_unsent(line: &str, ports: &[u16]) -> bool {
    /// `TCP_LISTEN`: its queues count connections.
    const LISTEN: &str = "0A";
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (Some(local), Some(_), Some(state), Some(queues)) =
        (fields.next(), fields.next(), fields.next(), fields.next())
    else {
        return false;
    };
    let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
    let unsent = queues.split_once(':').and_then(|(unsent, _)| u64::from_str_radix(unsent, 16).ok());
    state != LISTEN && port.is_some_and(|port| ports.contains(&port)) && unsent.is_some_and(|bytes| bytes > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_line_of_the_table_is_read_as_proc_5_has_it() {
        let line = |port: &str, state: &str, unsent: &str| {
            format!(
                "   3: 0100007F:{port} 0100007F:D2A4 {state} {unsent}:00000007 01:00000014 00000000  1000        0 17"
            )
        };
        assert!(holds_unsent(&line("1F90", "04", "00000001"), &[80, 8080]));
        assert!(!holds_unsent(&line("1F90", "04", "00000000"), &[8080]));
        assert!(!holds_unsent(&line("1F91", "04", "00000001"), &[8080]));
        assert!(!holds_unsent(&line("1F90", "0A", "00000001"), &[8080]));
        assert!(!holds_unsent("  sl  local_address rem_address   st tx_queue rx_queue", &[8080]));
        assert!(!holds_unsent("", &[8080]));
    }

    #[test]
    fn a_closed_socket_holds_what_its_peer_has_not_taken_until_it_has() {
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
            assert!(begun.elapsed() < Duration::from_secs(5), "all of it was taken");
            std::thread::yield_now();
        }
    }
}
