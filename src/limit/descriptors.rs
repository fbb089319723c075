//! File descriptors: raising the limit, counting open ones, and the share for clients.
//!
//! Every connection is a descriptor, so their limit is the first that a large pod reaches.
//! [`raise`] runs once at start; [`open`] is called by `app::load` a few times a second and reads
//! `/proc/self/fd`; [`connections_max`] derives `limits.connections: auto`.

use std::fs;
use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::telemetry::Metrics;

/// Directory of the open file descriptors of this process.
const OPEN: &str = "/proc/self/fd";

/// 1,048,576: the default of `fs.nr_open`, which no limit exceeds unless it was raised. Used for
/// "no limit".
const UNLIMITED: u64 = 1 << 20;

/// 64: minimum reserve for listeners, NATS, the admin port's connections, files and rejections.
const RESERVE_MIN: u64 = 64;

/// Raises the soft limit to the hard limit and returns the result. Called once, at start.
///
/// Container runtimes start processes with a soft limit of 1,024, which 920 clients would exhaust.
pub fn raise() -> u64 {
    let before = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: before.maximum,
        maximum: before.maximum,
    };
    if before.current != before.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, "raising the limit of file descriptors failed");
    }
    let limit = limit();
    let before = before.current.unwrap_or(UNLIMITED);
    tracing::info!(
        limit,
        before,
        connections_max = connections_max(limit),
        "limit of file descriptors"
    );
    limit
}

/// Returns the current soft limit.
#[must_use]
pub fn limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// Returns the number of open file descriptors.
///
/// # Errors
/// Fails if `/proc` cannot be read.
pub fn open() -> io::Result<u64> {
    // Since Linux 6.2 the size of the directory is the number of descriptors: one call.
    match fs::metadata(OPEN)?.len() {
        // Older kernels return 0.
        0 => listed(),
        open => Ok(open),
    }
}

fn listed() -> io::Result<u64> {
    // The listing includes its own descriptor.
    Ok((fs::read_dir(OPEN)?.count() as u64).saturating_sub(1))
}

/// Returns the limit of client connections for a limit of descriptors (`limits.connections: auto`).
///
/// A tenth of the limit is reserved, at least 64: `limit - max(limit / 10, 64)`, at least 1. That
/// is 922 of 1,024 and 58,983 of 65,536.
#[must_use]
pub fn connections_max(limit: u64) -> usize {
    let reserve = (limit / 10).max(RESERVE_MIN);
    usize::try_from(limit.saturating_sub(reserve).max(1)).unwrap_or(usize::MAX)
}

/// Updates both gauges before each scrape.
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
    fn a_tenth_of_the_limit_and_at_least_64_are_reserved() {
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
    fn soft_limit_is_raised_to_the_hard_limit() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(UNLIMITED);
        assert_eq!(raise(), hard);
        assert_eq!(limit(), hard);
    }

    #[test]
    fn open_files_are_counted() {
        // Other tests of this process open and close files too, so this one opens many.
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
