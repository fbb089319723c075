//! File descriptors: the limit, raised as far as it goes, how many are open, and how many of them clients may have.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::telemetry::Metrics;

/// Where the kernel lists what this process has open.
const OPEN: &str = "/proc/self/fd";

/// 1,048,576: `fs.nr_open` of Linux, which no limit exceeds unless it was raised; stands in for "no limit".
const UNLIMITED: u64 = 1 << 20;

/// 64: the least that is kept back for listeners, NATS, the admin's 64 connections when few are in use, files and
/// refusals.
const RESERVE_MIN: u64 = 64;

/// Raises the soft limit to the hard one and returns what holds now. To be called once, at start.
///
/// Container runtimes start processes with 1,024, of which a sidecar would be full with 920 clients.
pub fn raise() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, "the limit of file descriptors could not be raised");
    }
    let limit = limit();
    let before = before.current.unwrap_or(UNLIMITED);
    tracing::info!(
        limit,
        before,
        connections_max = connections_max(limit),
        "file descriptors"
    );
    limit
}

/// The limit that holds now.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// How many are open now.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn open() -> io::Result<u64> {
    // Since Linux 6.2 the size of the directory is the number: one call whatever the number is.
    match fs::metadata(OPEN)?.len() {
        // Older kernels say 0.
        0 => listed(),
        open => Ok(open),
    }
}

fn listed() -> io::Result<u64> {
    // The listing counts the descriptor that it is read through.
    Ok((fs::read_dir(OPEN)?.count() as u64).saturating_sub(1))
}

/// How many connections clients may have under a limit, when the configuration says `auto`.
///
/// A tenth of the limit is kept back, at least 64: `limit - max(limit / 10, 64)`, and never less than 1: 922 of 1,024,
/// 58,983 of 65,536.
#[must_use]
pub fn connections_max(limit: u64) -> usize {
    let reserve = (limit / 10).max(RESERVE_MIN);
    usize::try_from(limit.saturating_sub(reserve).max(1)).unwrap_or(usize::MAX)
}

/// Brings the two gauges up to date before each reading.
pub fn sample_with(metrics: &Metrics) {
    metrics.sample_with(|metrics| {
        if let Ok(open) = open() {
            metrics.file_descriptors.set(gauge(open));
        }
        metrics.file_descriptors_limit.set(gauge(limit()));
    });
}

fn gauge(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_may_have_the_limit_less_a_tenth_and_at_least_64() {
        for (limit, connections) in [
            (0, 1),
            (64, 1),
            (100, 36),
            (640, 576),
            (1_024, 922),
            (65_536, 58_983),
            (1 << 20, 943_719),
        ] {
            assert_eq!(connections_max(limit), connections, "{limit}");
        }
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(UNLIMITED);
        assert_eq!(raise(), hard);
        assert_eq!(limit(), hard);
    }

    #[test]
    fn what_is_opened_is_counted() {
        // Other tests of this process open and close as well: only many of our own can be told from theirs.
        let files: Vec<_> = (0..400)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(open().unwrap() >= files.len() as u64);
        assert!(listed().unwrap() >= files.len() as u64);
        let metrics = Metrics::new().unwrap();
        sample_with(&metrics);
        assert!(!metrics.render().contains("sidestream_file_descriptors 0\n"));
    }
}
