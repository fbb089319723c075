//! Counts of all resources that must return to their earlier values.
//!
//! They are read from outside the sidecar: `/proc`, its metrics, and the monitoring of NATS.

use std::fmt;

use testkit::http1;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;

/// Counts of all resources at one time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Census {
    resident_bytes: u64,
    open_files: usize,
    threads: usize,
    connections: u64,
    event_streams: u64,
    feeds: u64,
    replays: u64,
    nats_connections: usize,
    subscriptions: u64,
    consumers: usize,
}

impl Census {
    /// Counts all resources. `monitor` is the monitoring port of NATS.
    pub(crate) async fn take(sidestream: &Sidestream, monitor: u16, nats: &Nats) -> Self {
        let metric = async |name| sidestream.metric(name, &[]).await as u64;
        let consumers = nats.jetstream().await.get_stream("SOAK").await.unwrap();
        let (nats_connections, subscriptions) = subscriptions(monitor).await;
        Self {
            connections: metric("sidestream_connections").await,
            event_streams: metric("sidestream_streams").await,
            feeds: metric("sidestream_feeds").await,
            replays: metric("sidestream_replays_running").await
                + metric("sidestream_replays_queued").await,
            nats_connections,
            subscriptions,
            consumers: consumers.cached_info().state.consumer_count,
            // Last, because the requests above open connections.
            open_files: sidestream.open_files(),
            threads: std::fs::read_dir(format!("/proc/{}/task", sidestream.pid()))
                .unwrap()
                .count(),
            resident_bytes: sidestream.resident_bytes(),
        }
    }

    /// Returns an error unless all clients are disconnected.
    pub(crate) fn at_rest(&self) -> Result<(), String> {
        let left = [
            ("connections", self.connections),
            ("event streams", self.event_streams),
            ("replays", self.replays),
        ];
        match left.iter().find(|(_, count)| *count > 0) {
            None => Ok(()),
            Some((what, count)) => Err(format!(
                "{count} {what} remain after all clients disconnected"
            )),
        }
    }

    /// Returns an error if a count is higher than before.
    pub(crate) fn counts_as(&self, before: &Self) -> Result<(), String> {
        let counts = [
            (
                "file descriptors",
                self.open_files as u64,
                before.open_files as u64,
            ),
            ("threads", self.threads as u64, before.threads as u64),
            // Feeds of the warm-up may still linger: for half a minute after their last reader,
            // each with its subscription.
            ("feeds", self.feeds, 0),
            (
                "connections to NATS",
                self.nats_connections as u64,
                before.nats_connections as u64,
            ),
            (
                "NATS subscriptions",
                self.subscriptions,
                before.subscriptions.saturating_sub(before.feeds),
            ),
            (
                "JetStream consumers",
                self.consumers as u64,
                before.consumers as u64,
            ),
        ];
        match counts.iter().find(|(_, now, then)| now > then) {
            None => Ok(()),
            Some((what, now, then)) => Err(format!("{now} {what}, {then} before")),
        }
    }

    /// Returns an error if resident memory is more than `most` times that of before.
    pub(crate) fn memory_as(&self, before: &Self, most: f64) -> Result<(), String> {
        match self.resident_bytes as f64 / before.resident_bytes as f64 {
            growth if growth <= most => Ok(()),
            growth => Err(format!(
                "resident memory grew by {:.1} %",
                (growth - 1.0) * 100.0
            )),
        }
    }
}

/// Returns the sidecar's connections to NATS and their subscriptions. They are found by their name.
async fn subscriptions(monitor: u16) -> (usize, u64) {
    let answer = http1::get(&format!("http://127.0.0.1:{monitor}/connz?limit=1000"))
        .await
        .unwrap()
        .json();
    let own = |connection: &&serde_json::Value| {
        connection["name"]
            .as_str()
            .is_some_and(|name| name.contains("sidestream"))
    };
    let connections: Vec<_> = answer["connections"]
        .as_array()
        .unwrap()
        .iter()
        .filter(own)
        .collect();
    (
        connections.len(),
        connections
            .iter()
            .filter_map(|connection| connection["subscriptions"].as_u64())
            .sum(),
    )
}

impl fmt::Display for Census {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "{:.1} MiB, {} file descriptors, {} threads, {} connections, {} event streams, {} feeds, {} replays, \
             {} connections to NATS with {} subscriptions, {} consumers",
            self.resident_bytes as f64 / f64::from(1 << 20),
            self.open_files,
            self.threads,
            self.connections,
            self.event_streams,
            self.feeds,
            self.replays,
            self.nats_connections,
            self.subscriptions,
            self.consumers,
        )
    }
}
