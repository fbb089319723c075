//! The four connections to NATS: options, identity and limits.
//!
//! [`connect`] opens the connections `data`, `replay`, `core` and `control`. They are separate so
//! that a burst on one does not delay another (decision record 0006). The client library reconnects
//! by itself; one task, the supervisor, watches all four:
//!
//! ```text
//! nats_connection  handle: current client, up or down, generation, denied subjects
//! supervisor       client events and a poll every second -> state, health check, log, metrics
//! probe            a request every 10 s: detects a connection that is up but does not answer
//! flush            waits until the server has processed what was sent
//! credentials      connection options for each kind of credentials
//! transport        TLS options, explanations of handshake errors, clear-text warning
//! ```

mod credentials;
pub(in crate::nats) mod flush;
mod identity;
mod nats_connection;
mod probe;
mod supervisor;
mod transport;

use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

pub use identity::Identity;
pub(crate) use identity::token;
use identity::{CONTROL, CORE, INBOX};
pub(crate) use nats_connection::{ConnectionEnd, ConnectionState, NatsConnection};
pub(crate) use supervisor::Supervisor;
use transport::Transport;

use super::config::Config;
use crate::event::PAYLOAD_BYTES_MAX;
use crate::lifecycle::backoff::{Backoff, Jitter};
use crate::lifecycle::health::Health;
use crate::telemetry::Metrics;

/// A server address that cannot be parsed.
#[derive(Debug, thiserror::Error)]
#[error("invalid NATS server address `{server}`: {why}")]
pub struct InvalidServer {
    server: String,
    why: String,
}

/// The four connections. Core messages, replays, live JetStream messages and responses to requests
/// do not wait for each other.
#[derive(Clone, Debug)]
pub(crate) struct NatsConnections {
    /// Live messages of JetStream consumers.
    pub(crate) data: NatsConnection,
    /// Messages of replays.
    pub(crate) replay: NatsConnection,
    /// Messages of core subjects, republished ones included.
    pub(crate) core: NatsConnection,
    /// Requests and their responses.
    pub(crate) control: NatsConnection,
}

/// Starts connecting and retries for as long as the process runs.
///
/// # Errors
/// [`InvalidServer`] if an address cannot be parsed. Every other failure is retried.
pub(crate) async fn connect(
    config: &Config,
    identity: &Identity,
    health: &Health,
    metrics: &Arc<Metrics>,
) -> Result<(NatsConnections, Supervisor), InvalidServer> {
    let servers = servers(config)?;
    let mut builder = supervisor::Builder::new(health, metrics, Transport::new(config, &servers));
    let mut open = async |role: &'static str| {
        let options = options(config, &servers, identity, role);
        builder
            .open(role, options, &servers)
            .await
            .map_err(|why| InvalidServer {
                server: config.servers.join(","),
                why,
            })
    };
    let connections = NatsConnections {
        data: open("data").await?,
        replay: open("replay").await?,
        core: open(CORE).await?,
        control: open(CONTROL).await?,
    };
    let probe = tokio::spawn(probe::run(
        connections.control.clone(),
        builder.unanswered.clone(),
    ));
    Ok((connections, builder.start(probe)))
}

fn servers(config: &Config) -> Result<Vec<ServerAddr>, InvalidServer> {
    config
        .servers
        .iter()
        .map(|server| parse_server(server))
        .collect()
}

fn parse_server(server: &str) -> Result<ServerAddr, InvalidServer> {
    let parsed: Result<ServerAddr, _> = server.parse();
    parsed.map_err(|error| InvalidServer {
        server: without_secrets(server),
        why: error.to_string(),
    })
}

/// Removes the user name and password from an address.
fn without_secrets(server: &str) -> String {
    match server.rsplit_once('@') {
        None => server.to_owned(),
        Some((before, host)) => {
            let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
            format!("{scheme}{host}")
        }
    }
}

/// Delay before a reconnect attempt: 50 ms, doubled up to 10 s, with full jitter so that pods do
/// not reconnect in step.
const RECONNECT: Backoff = Backoff::new(
    Duration::from_millis(50),
    Duration::from_secs(10),
    Jitter::Full,
);

/// 8192 queued messages: a pull request asks for at most 2048, and two are open at a time.
const PENDING_MESSAGES_MAX: usize = 8192;

/// 262,144 queued messages for all core subscriptions of a task: a burst arrives without a request,
/// and the connection reads all that its socket holds before the task runs. The limit in bytes is
/// reached first.
const CORE_PENDING_MESSAGES_MAX: usize = 262_144;

/// 32 MiB of queued core messages over all subscriptions: four messages of the largest size, and
/// half a second of a saturated link of 1 Gbit/s. A message over the limit is dropped and counted,
/// and clients receive a gap.
const CORE_PENDING_BYTES_MAX: u64 = 32 << 20;

/// The largest payload that becomes an event, plus 1 MiB for headers. Of a larger message the
/// client library keeps only the subject.
const MESSAGE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + (1 << 20);

/// 96 MiB: a stored message of 64 MiB, the largest that nats-server accepts, in the base64 of a
/// JetStream response.
const ANSWER_BYTES_MAX: usize = 96 << 20;

fn options(
    config: &Config,
    servers: &[ServerAddr],
    identity: &Identity,
    role: &str,
) -> ConnectOptions {
    let mut options = credentials::options(&config.credentials, servers)
        .name(format!("sidestream-{}-{role}", identity.pod))
        .custom_inbox_prefix(format!("{INBOX}{}", identity.boot))
        // 10 s, two unanswered pings: a dead server is detected within 30 s. The default takes two
        // minutes or more.
        .ping_interval(Duration::from_secs(10))
        .connection_timeout(Duration::from_secs(5))
        .request_timeout(Some(Duration::from_secs(5)))
        .retry_on_initial_connect()
        .max_reconnects(None)
        .reconnect_delay_callback(reconnect_delay)
        .subscription_capacity(PENDING_MESSAGES_MAX)
        .max_message_bytes(if role == CONTROL {
            ANSWER_BYTES_MAX
        } else {
            MESSAGE_BYTES_MAX
        });
    if role == CORE {
        options = options
            .subscription_capacity(CORE_PENDING_MESSAGES_MAX)
            .max_pending_bytes(CORE_PENDING_BYTES_MAX);
    }
    transport::apply(options, config, servers)
}

/// Delay before a reconnect attempt.
fn reconnect_delay(attempt: usize) -> Duration {
    RECONNECT.delay(u32::try_from(attempt).unwrap_or(u32::MAX), fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconnect_delay_grows_up_to_ten_seconds() {
        for attempt in [0, 1, 2, 8, 9, 1000, usize::MAX] {
            for _ in 0..100 {
                assert!(reconnect_delay(attempt) <= Duration::from_secs(10));
            }
        }
        assert!((0..100).all(|_| reconnect_delay(1) <= Duration::from_millis(100)));
        assert!((0..1000).any(|_| reconnect_delay(20) > Duration::from_secs(5)));
    }

    #[test]
    fn invalid_address_is_reported_without_its_password() {
        let config = Config {
            servers: vec!["nats://me:secret@:x".into()],
            ..Config::default()
        };
        let problem = servers(&config).unwrap_err().to_string();
        assert!(!problem.contains("secret"), "{problem}");
        assert_eq!(without_secrets("tls://a:b@c:4222"), "tls://c:4222");
        assert_eq!(without_secrets("c:4222"), "c:4222");
    }
}
