//! The configuration as a type, and its defaults.

use crate::payload::schema::SchemasConfig;
use crate::subject::BucketName;
use crate::{admin, auth, feed, http, lifecycle, limit, nats, net, presence, telemetry};

/// The whole configuration, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Listeners for clients; at least one.
    pub listen: Vec<net::ListenConfig>,
    /// Admin port and control socket.
    pub admin: admin::Config,
    /// NATS servers and credentials.
    pub nats: nats::Config,
    /// Authentication providers.
    pub authentication: auth::Config,
    /// Routes, and the limits of HTTP.
    pub http: http::Config,
    /// JSON Schemas of payloads.
    pub schemas: SchemasConfig,
    /// Maximum memory of all windows and feeds, in bytes.
    pub window_bytes_max: usize,
    /// Maximum number of feeds.
    pub feeds_max: usize,
    /// Thresholds of open file descriptors.
    pub file_descriptors: limit::Thresholds,
    /// Limits of replays.
    pub replays: feed::replay::ReplayLimits,
    /// Graceful shutdown.
    pub drain: lifecycle::drain::Config,
    /// Presence: which client is connected to which pod.
    pub presence: presence::Config,
    /// Traces.
    pub tracing: telemetry::trace::Config,
    /// Format and filter of the log.
    pub log: telemetry::logs::Config,
}

/// The defaults, without routes, which a file must have.
/// Access to the bucket of revocations, as commands need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RevocationAccess {
    /// Connection to NATS.
    pub nats: nats::Config,
    /// The bucket. `None`: the file names none.
    pub bucket: Option<BucketName>,
}

impl Default for Config {
    fn default() -> Self {
        // 256 MiB: sixteen windows of the default size.
        let window_bytes_max = 256 << 20;
        let feeds_max = feed::budget::feeds_of(window_bytes_max);
        let per_client = limit::PerClient::among(feeds_max).into();
        Self {
            listen: vec![net::ListenConfig::default()],
            admin: admin::Config::default(),
            nats: nats::Config::default(),
            authentication: auth::Config::default(),
            http: http::Config {
                per_client,
                ..http::Config::default()
            },
            schemas: SchemasConfig::default(),
            window_bytes_max,
            feeds_max,
            file_descriptors: limit::Thresholds::default(),
            replays: feed::replay::ReplayLimits::default(),
            drain: lifecycle::drain::Config::default(),
            presence: presence::Config::default(),
            tracing: telemetry::trace::Config::default(),
            log: telemetry::logs::Config::default(),
        }
    }
}
