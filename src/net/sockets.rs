//! Gauges of TCP sockets by state (`sidestream_sockets`), from the kernel's tables.
//!
//! [`sample_with`] registers a function that runs before each scrape, on the admin thread. It
//! counts the sockets of the whole network namespace, because sockets in TIME_WAIT belong to no
//! process. A growing number of `close_wait` means that connections are not closed; many
//! `time_wait` are left after a reconnect storm.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::table;
use crate::telemetry::Metrics;

/// 5 s: listing takes the kernel about a microsecond per socket, and there may be several scrapers.
const LISTED_EVERY: Duration = Duration::from_secs(5);

/// Number of sockets by state. Sockets in TIME_WAIT belong to no process, so these are all sockets
/// of the network namespace, which is the pod's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sockets {
    established: i64,
    time_wait: i64,
    close_wait: i64,
}

/// Updates the gauges before a scrape, at most every 5 s.
pub fn sample_with(metrics: &Metrics) {
    let listed = Mutex::new(None::<Instant>);
    metrics.sample_with(move |metrics| {
        let mut listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if listed.is_some_and(|listed| now.duration_since(listed) < LISTED_EVERY) {
            return;
        }
        *listed = Some(now);
        let mut sockets = Sockets::default();
        for table in table::TABLES {
            // A kernel without IPv6 has no second table.
            if let Err(error) =
                File::open(table).and_then(|file| sockets.count(BufReader::new(file)))
            {
                tracing::debug!(table, %error, "sockets cannot be listed");
            }
        }
        let states = [
            ("established", sockets.established),
            ("time_wait", sockets.time_wait),
            ("close_wait", sockets.close_wait),
        ];
        for (state, count) in states {
            metrics.sockets.with_label_values(&[state]).set(count);
        }
    });
}

impl Sockets {
    /// Counts the sockets of a table.
    fn count(&mut self, table: impl BufRead) -> io::Result<()> {
        table::read(table, |entry| match entry.state {
            "01" => self.established += 1,
            "06" => self.time_wait += 1,
            "08" => self.close_wait += 1,
            _ => {}
        })
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Shutdown, TcpListener, TcpStream};

    use super::*;

    #[test]
    fn sockets_are_counted_by_state() {
        let table =
            "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 2 1
 999: 0100007F:1F90 0100007F:D432 01 00000000:00000000 00:00000000 00000000     0        0 3 1
1000: 0100007F:1F90 0100007F:D433 08 00000000:00000000 00:00000000 00000000     0        0 4 1
   4: 0100007F:1F90 0100007F:D434 06 00000000:00000000 03:00000AD3 00000000     0        0 0 3
";
        let mut sockets = Sockets::default();
        sockets.count(table.as_bytes()).unwrap();
        assert_eq!(
            sockets,
            Sockets {
                established: 2,
                time_wait: 1,
                close_wait: 1
            }
        );
    }

    #[test]
    fn gauges_count_the_sockets_of_this_machine() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (_waits, _) = listener.accept().unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let metrics = Metrics::new().unwrap();
        sample_with(&metrics);
        assert!(metrics.render().contains("sidestream_sockets"));
        assert!(metrics.sockets.with_label_values(&["close_wait"]).get() >= 1);
    }
}
