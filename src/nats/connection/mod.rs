//! The four connections to NATS: their settings, and who they say we are.

mod credentials;
pub(in crate::nats) mod flush;
mod nats_connection;
mod probe;
mod supervisor;
mod transport;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{ConnectOptions, ServerAddr};

pub(crate) use nats_connection::{ConnectionState, Ended, NatsConnection};
pub(crate) use supervisor::Supervisor;
use transport::Transport;

use super::config::Config;
use crate::lifecycle::health::Health;
use crate::nats::decode::message::PAYLOAD_BYTES_MAX;
use crate::telemetry::Metrics;

/// What our inboxes begin with: one permission, `_INBOX_sse.>`, covers every pod and nobody else's inboxes.
const INBOX: &str = "_INBOX_sse.";

/// Role of the connection of core subjects.
const CORE: &str = "core";
/// Role of the connection of requests.
const CONTROL: &str = "control";

/// The name under which one process is known to NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The pod, as it shows in connection and consumer names.
    pub pod: String,
    /// Tells this process from every other and from its own past.
    pub boot: String,
}

impl Identity {
    /// An identity of this pod with a boot id that was never used before.
    #[must_use]
    pub fn new(pod: &str) -> Self {
        // 60 bits from the clock and a generator seeded by the system: enough that two restarts never meet.
        Self {
            pod: token(pod, 64),
            boot: format!("{:012x}", fastrand::u64(..) >> 16),
        }
    }
}

/// The text as it may stand in a name or a subject of NATS: other characters become `_`.
pub(crate) fn token(text: &str, length_max: usize) -> String {
    let sound = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    let name: String = text
        .chars()
        .take(length_max)
        .map(|char| if sound(char) { char } else { '_' })
        .collect();
    if name.is_empty() {
        "_".to_owned()
    } else {
        name
    }
}

/// Why the connections cannot even be tried.
#[derive(Debug)]
pub struct InvalidServer {
    server: String,
    why: String,
}

impl fmt::Display for InvalidServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no address of a NATS server: {}",
            self.server, self.why
        )
    }
}

impl std::error::Error for InvalidServer {}

/// The connections. They are four so that none waits for what another carries: a burst of core messages, a replay of the
/// past, what is new in a stream, the answers to requests.
#[derive(Clone, Debug)]
pub(crate) struct NatsConnections {
    /// What JetStream delivers.
    pub(crate) data: NatsConnection,
    /// What JetStream delivers of the past.
    pub(crate) replay: NatsConnection,
    /// Core subjects.
    pub(crate) core: NatsConnection,
    /// Requests.
    pub(crate) control: NatsConnection,
}

/// Begins to connect, and goes on by itself for ever.
///
/// # Errors
/// [`InvalidServer`] when an address is none; everything else is waited for.
pub(crate) async fn connect(
    config: &Config,
    identity: &Identity,
    health: &Health,
    metrics: &Arc<Metrics>,
) -> Result<(NatsConnections, Supervisor), InvalidServer> {
    let servers = servers(config)?;
    let mut monitor = supervisor::Builder::new(health, metrics, Transport::new(config, &servers));
    let mut open = async |role: &'static str| {
        let options = options(config, &servers, identity, role);
        monitor
            .open(role, options, &servers)
            .await
            .map_err(|why| InvalidServer {
                server: config.servers.join(","),
                why,
            })
    };
    let links = NatsConnections {
        data: open("data").await?,
        replay: open("replay").await?,
        core: open(CORE).await?,
        control: open(CONTROL).await?,
    };
    let probe = tokio::spawn(probe::run(
        links.control.clone(),
        monitor.unanswered.clone(),
    ));
    Ok((links, monitor.start(probe)))
}

fn servers(config: &Config) -> Result<Vec<ServerAddr>, InvalidServer> {
    let parse = |server: &String| {
        let parsed: Result<ServerAddr, _> = server.parse();
        parsed.map_err(|error| InvalidServer {
            server: without_secrets(server),
            why: error.to_string(),
        })
    };
    config.servers.iter().map(parse).collect()
}

/// The address without a name and password that may stand in it.
fn without_secrets(server: &str) -> String {
    match server.rsplit_once('@') {
        None => server.to_owned(),
        Some((before, host)) => {
            let scheme = before.find("://").map_or("", |end| &before[..end + 3]);
            format!("{scheme}{host}")
        }
    }
}

/// 8192: a pull request asks for 512 messages at most, and two are open at a time.
const PENDING_MESSAGES_MAX: usize = 8192;

/// 65,536 for each core subscription, as other NATS clients: a burst arrives unasked, and the connection hands over all
/// that its socket holds before a subscription runs.
const CORE_PENDING_MESSAGES_MAX: usize = 65_536;

/// 32 MiB for all core subscriptions together: four messages of the largest size, and half a second of a saturated link
/// of 1 Gbit/s. What exceeds it is dropped, counted, and a gap for the clients.
const CORE_PENDING_BYTES_MAX: u64 = 32 << 20;

/// The largest payload that becomes an event, with 1 MiB for headers. Of a larger message only the subject is kept.
const MESSAGE_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + (1 << 20);

/// 96 MiB: a stored message of 64 MiB, the largest that nats-server accepts, as JetStream returns it in base64.
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
        // 10 s, twice unanswered: a dead server is noticed in half a minute; the default takes two minutes and more.
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

/// How long to wait before the attempt of this number: full jitter, so that a fleet does not come back in step.
fn reconnect_delay(attempt: usize) -> Duration {
    // 50 ms doubled up to 10 s.
    let exponent = u32::try_from(attempt.min(8)).unwrap_or(8);
    let longest = Duration::from_millis(50 << exponent).min(Duration::from_secs(10));
    longest.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_before_a_reconnect_grows_to_ten_seconds_and_no_further() {
        for attempt in [0, 1, 2, 8, 9, 1000, usize::MAX] {
            for _ in 0..100 {
                assert!(reconnect_delay(attempt) <= Duration::from_secs(10));
            }
        }
        assert!((0..100).all(|_| reconnect_delay(1) <= Duration::from_millis(100)));
        assert!((0..1000).any(|_| reconnect_delay(20) > Duration::from_secs(5)));
    }

    #[test]
    fn names_hold_only_what_nats_takes() {
        assert_eq!(token("api-7f.x y>*", 64), "api-7f_x_y__");
        assert_eq!(token("", 64), "_");
        assert_eq!(token(&"x".repeat(300), 64).len(), 64);
        assert_ne!(Identity::new("a").boot, Identity::new("a").boot);
    }

    #[test]
    fn a_bad_address_is_named_without_its_password() {
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
