//! Supervisor of the four connections: their state, the health check, logs and metrics.
//!
//! The client library reports events (connected, disconnected, lame duck, permission violations)
//! through a callback that must not block. The callback puts them into a bounded queue; one task
//! reads the queue and also polls every connection once a second, so a dropped event is caught up
//! within a second.
//!
//! - Lame duck mode: the connection moves to another server after a random delay of up to 8 s.
//! - A client whose own task has ended is replaced by a new client.
//! - Dropped messages (slow consumer) are counted once per poll and increase
//!   [`ConnectionState::overflows`].
//! - Permission violations are recorded by subject; waiting requests end with an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectOptions, Event, ServerAddr, ServerError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::identity::{CORE, INBOX};
use super::nats_connection::{ClientSlot, ConnectionState, NatsConnection};
use super::probe::{self, Unanswered};
use super::transport::Transport;
use crate::lifecycle::health::{Check, Health, Status};
use crate::telemetry::Metrics;

/// Handle to the supervisor tasks. Dropping it stops them and releases the connections.
#[derive(Debug)]
pub(crate) struct Supervisor([JoinHandle<()>; 2]);

impl Drop for Supervisor {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// 256 queued events. More are not needed: the state is also polled every second.
const EVENTS_MAX: usize = 256;

/// 1024 denied subjects are remembered per connection.
const DENIED_MAX: usize = 1024;

/// 30 s before the same failure is logged again.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Opens the connections and then supervises them.
pub(super) struct Builder {
    connections: Vec<SupervisedConnection>,
    events: mpsc::Sender<(usize, Event)>,
    events_received: mpsc::Receiver<(usize, Event)>,
    check: Check,
    metrics: Arc<Metrics>,
    transport: Arc<Transport>,
    /// Set while requests on the control connection are unanswered.
    pub(super) unanswered: Unanswered,
}

impl Builder {
    pub(super) fn new(health: &Health, metrics: &Arc<Metrics>, transport: Transport) -> Self {
        let (events, events_received) = mpsc::channel(EVENTS_MAX);
        let check = health.check("nats", "not connected to NATS yet");
        let (metrics, transport) = (Arc::clone(metrics), Arc::new(transport));
        Self {
            connections: Vec::new(),
            events,
            events_received,
            check,
            metrics,
            transport,
            unanswered: Unanswered::default(),
        }
    }

    /// Opens one connection.
    pub(super) async fn open(
        &mut self,
        role: &'static str,
        options: ConnectOptions,
        servers: &[ServerAddr],
    ) -> Result<NatsConnection, String> {
        let index = self.connections.len();
        let connector = Connector {
            index,
            options,
            servers: servers.to_vec(),
            events: self.events.clone(),
            transport: Arc::clone(&self.transport),
        };
        let failure = Arc::new(Mutex::new(None));
        let (client, ended) = connector.open(&failure).await?;
        let clients = Arc::new(ClientSlot::new(client));
        let (state, state_receiver) = watch::channel(ConnectionState::default());
        self.connections.push(SupervisedConnection {
            role,
            connector,
            clients: Arc::clone(&clients),
            ended,
            state,
            failure,
            leave_at: None,
            dropped: 0,
            last_logged: None,
        });
        Ok(NatsConnection {
            clients,
            state: state_receiver,
        })
    }

    /// Starts the supervisor. `probe` is aborted with it.
    pub(super) fn start(self, probe: JoinHandle<()>) -> Supervisor {
        Supervisor([tokio::spawn(self.watch()), probe])
    }

    async fn watch(mut self) {
        // 1 s: maximum delay after a dropped event.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((index, event)) = self.events_received.recv() => {
                    let has_ended = event == Event::Closed;
                    self.connections[index].on_event(event, &self.metrics);
                    if has_ended {
                        self.connections[index].poll(&self.metrics).await;
                    }
                }
                _ = tick.tick() => {
                    for connection in &mut self.connections {
                        connection.poll(&self.metrics).await;
                    }
                }
            }
            self.report();
        }
    }

    fn report(&self) {
        let down: Vec<&SupervisedConnection> = self
            .connections
            .iter()
            .filter(|connection| !connection.state.borrow().up)
            .collect();
        self.metrics.nats_connected.set(i64::from(down.is_empty()));
        let denied: Vec<String> = self
            .connections
            .iter()
            .flat_map(SupervisedConnection::denied_subjects)
            .take(5)
            .collect();
        let is_clear = |connection: &SupervisedConnection| {
            !connection.clients.current().server_info().tls_required
        };
        let exposed = self
            .transport
            .warning(!self.connections.iter().any(is_clear));
        let denied = (!denied.is_empty())
            .then(|| format!("NATS denies permission for {}", denied.join(", ")));
        let warnings: Vec<String> = denied.into_iter().chain(exposed).collect();
        self.check.set(match down.as_slice() {
            [] if self.unanswered.is_set() => Status::Failing(format!(
                "connection control to NATS is up, but requests get no answer within {} s",
                probe::TIMEOUT.as_secs()
            )),
            [] if warnings.is_empty() => Status::Ok,
            [] => Status::Degraded(warnings.join("; ")),
            [first, ..] => {
                let roles: Vec<&str> = down.iter().map(|connection| connection.role).collect();
                let why = down
                    .iter()
                    .find_map(|connection| connection.failure())
                    .unwrap_or_else(|| "connecting".to_owned());
                let plural = if first.role == roles.join("") {
                    ""
                } else {
                    "s"
                };
                Status::Failing(format!(
                    "connection{plural} {} to NATS down: {why}",
                    roles.join(", ")
                ))
            }
        });
    }
}

/// Settings to open a connection, and to open it again.
struct Connector {
    index: usize,
    options: ConnectOptions,
    servers: Vec<ServerAddr>,
    transport: Arc<Transport>,
    events: mpsc::Sender<(usize, Event)>,
}

/// Reason of the last failed attempt.
type Failure = Arc<Mutex<Option<String>>>;

/// Sets a flag and queues an event when it is dropped with the client's own task. After that, the
/// client rejects every call.
struct ClientGuard {
    flag: Arc<AtomicBool>,
    index: usize,
    events: mpsc::Sender<(usize, Event)>,
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Release);
        if self.events.try_send((self.index, Event::Closed)).is_err() {
            tracing::debug!("event queue full; the next poll detects the ended NATS client");
        }
    }
}

impl Connector {
    /// Starts connecting. The returned flag is set when the client's task has ended.
    async fn open(&self, failure: &Failure) -> Result<(Client, Arc<AtomicBool>), String> {
        let (index, last_failure) = (self.index, Arc::clone(failure));
        let flag = Arc::new(AtomicBool::new(false));
        // The callback lives as long as the client's own task, however that ends.
        let ended = ClientGuard {
            flag: Arc::clone(&flag),
            index,
            events: self.events.clone(),
        };
        let options = self.options.clone().event_callback(move |event| {
            // An event that does not fit is found by the poll within a second.
            let full = ended.events.try_send((index, event)).is_err();
            async move {
                if full {
                    tracing::debug!("NATS connection event dropped; the next poll reads the state");
                }
            }
        });
        // This callback selects no server. It is the only place where the library reports the
        // reason of the last failed attempt.
        let transport = Arc::clone(&self.transport);
        let options = options.reconnect_to_server_callback(move |servers, _| {
            *last_failure.lock().unwrap_or_else(PoisonError::into_inner) =
                reason(&servers, &transport);
            async { None }
        });
        let client = options
            .connect(self.servers.as_slice())
            .await
            .map_err(|error| error.to_string())?;
        Ok((client, flag))
    }
}

/// Reasons of the last failed attempts, one per server, without secrets.
fn reason(servers: &[async_nats::Server], transport: &Transport) -> Option<String> {
    let failed: Vec<String> = servers
        .iter()
        .filter_map(|server| {
            let error = server.last_error.as_ref()?;
            let why = transport.explain(&error.to_string());
            Some(format!(
                "{}:{}: {why}",
                server.addr.host(),
                server.addr.port()
            ))
        })
        .collect();
    (!failed.is_empty()).then(|| failed.join("; "))
}

/// One supervised connection.
struct SupervisedConnection {
    role: &'static str,
    connector: Connector,
    clients: Arc<ClientSlot>,
    /// Set when the client's task has ended.
    ended: Arc<AtomicBool>,
    state: watch::Sender<ConnectionState>,
    failure: Failure,
    /// Time to leave a server in lame duck mode.
    leave_at: Option<Instant>,
    /// Messages that the current client had dropped at the last poll.
    dropped: u64,
    /// The failure that was logged last, and when.
    last_logged: Option<(String, Instant)>,
}

impl SupervisedConnection {
    fn on_event(&mut self, event: Event, metrics: &Metrics) {
        match event {
            Event::Connected => self.set_state(true, metrics),
            Event::Disconnected => self.set_state(false, metrics),
            Event::LameDuckMode => {
                // 0 to 8 s: the server waits 10 s before it closes connections itself.
                let wait = Duration::from_secs(8).mul_f64(fastrand::f64());
                tracing::info!(
                    connection = self.role,
                    ?wait,
                    "NATS server entering lame duck mode; reconnecting"
                );
                self.leave_at.get_or_insert(Instant::now() + wait);
            }
            Event::ServerError(ServerError::Other(text)) => match denied_subject(&text) {
                Some(subject) => self.note_denial(subject, &text),
                None => tracing::warn!(connection = self.role, error = text, "NATS server error"),
            },
            Event::ServerError(error) => {
                tracing::warn!(connection = self.role, %error, "NATS server error");
            }
            Event::ClientError(ClientError::Other(text)) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(text);
            }
            // Dropped messages are read from the statistics: events may be lost.
            Event::SlowConsumer(_) | Event::ClientError(_) | Event::Draining | Event::Closed => {}
        }
    }

    /// Reads the state of the client: events may have been lost.
    async fn poll(&mut self, metrics: &Metrics) {
        if self.ended.load(Ordering::Acquire) {
            self.replace_client(metrics).await;
        }
        self.set_state(
            self.clients.current().connection_state() == State::Connected,
            metrics,
        );
        self.count_dropped(metrics);
        if !self.state.borrow().up {
            self.log_failure();
        }
        if self.leave_at.is_some_and(|at| at <= Instant::now()) {
            self.leave_at = None;
            if self.clients.current().force_reconnect().await.is_err() {
                tracing::debug!(
                    connection = self.role,
                    "reconnect not requested: NATS connection closed"
                );
            }
        }
    }

    /// Counts the messages that were dropped since the last poll, and logs them in one line.
    fn count_dropped(&mut self, metrics: &Metrics) {
        let statistics = self.clients.current().statistics();
        let dropped = statistics.dropped_messages.load(Ordering::Relaxed);
        let new = dropped.saturating_sub(std::mem::replace(&mut self.dropped, dropped));
        if self.role == CORE {
            let pending = statistics.pending_bytes.load(Ordering::Relaxed);
            metrics
                .nats_pending_bytes
                .set(i64::try_from(pending).unwrap_or(i64::MAX));
        }
        if new > 0 {
            metrics.nats_slow_consumer_total.inc_by(new);
            tracing::warn!(
                connection = self.role,
                messages = new,
                "slow consumer: queue full, messages dropped"
            );
            self.state.send_modify(|state| state.overflows += 1);
        }
    }

    /// Replaces a client that has ended.
    async fn replace_client(&mut self, metrics: &Metrics) {
        tracing::error!(
            connection = self.role,
            "NATS client task failed; starting a new client"
        );
        self.set_state(false, metrics);
        match self.connector.open(&self.failure).await {
            Ok((client, ended)) => {
                self.clients.replace(client);
                self.dropped = 0;
                self.ended = ended;
            }
            // The next poll retries.
            Err(why) => *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why),
        }
    }

    fn set_state(&mut self, up: bool, metrics: &Metrics) {
        let generation = self.clients.generation();
        let (was_up, known) = {
            let state = self.state.borrow();
            (state.up, state.generation)
        };
        if (was_up, known) == (up, generation) {
            return;
        }
        if generation > known {
            // The first connection is not a reconnect.
            metrics
                .nats_reconnects_total
                .inc_by(generation - known.max(1));
            self.leave_at = None;
        }
        match (up, was_up) {
            (true, _) => {
                tracing::info!(connection = self.role, generation, "NATS connected")
            }
            (false, true) => tracing::warn!(connection = self.role, "NATS connection lost"),
            (false, false) => {}
        }
        if up {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.last_logged = None;
        }
        self.state.send_modify(|state| {
            state.up = up;
            state.generation = generation;
            if generation > known {
                state.denied = Arc::default();
            }
        });
    }

    fn note_denial(&self, subject: &str, text: &str) {
        let known = self.state.borrow().denials(subject) > 0;
        if !known && !is_probe(subject, text) {
            tracing::error!(
                connection = self.role,
                subject,
                error = text,
                "NATS permission violation"
            );
        }
        self.state.send_modify(|state| {
            let denied = Arc::make_mut(&mut state.denied);
            if known || denied.len() < DENIED_MAX {
                *denied.entry(subject.into()).or_default() += 1;
            }
        });
    }

    fn denied_subjects(&self) -> Vec<String> {
        let state = self.state.borrow();
        state
            .denied
            .keys()
            .filter(|subject| !subject.starts_with(INBOX))
            .take(5)
            .map(ToString::to_string)
            .collect()
    }

    fn failure(&self) -> Option<String> {
        self.failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Logs why there is no connection: a new reason at once, a known one every 30 s.
    fn log_failure(&mut self) {
        let Some(why) = self.failure() else { return };
        let known = self
            .last_logged
            .as_ref()
            .is_some_and(|(logged, at)| *logged == why && at.elapsed() < LOG_AGAIN_AFTER);
        if !known {
            tracing::warn!(
                connection = self.role,
                error = why,
                "NATS connection failed; retrying"
            );
            self.last_logged = Some((why, Instant::now()));
        }
    }
}

/// Returns true if a permission violation only answers our own flush. Publishing to our inbox needs
/// no permission: the violation confirms as well as the message that the server has come to this
/// point.
fn is_probe(subject: &str, text: &str) -> bool {
    subject.starts_with(INBOX) && text.contains("for Publish to")
}

/// Subject of an error such as `Permissions Violation for Subscription to "orders.>"`.
fn denied_subject(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("Permissions Violation for ")?;
    let begin = rest.find('"')? + 1;
    let length = rest[begin..].find('"')?;
    Some(&rest[begin..begin + length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permission_violation_names_its_subject() {
        let subject = |text| denied_subject(text);
        assert_eq!(
            subject("Permissions Violation for Subscription to \"orders.>\""),
            Some("orders.>")
        );
        assert_eq!(
            subject("Permissions Violation for Publish to \"$JS.API.STREAM.INFO.X\""),
            Some("$JS.API.STREAM.INFO.X")
        );
        assert_eq!(
            subject("Permissions Violation for Subscription to \"a\" using queue \"b\""),
            Some("a")
        );
        for other in [
            "",
            "Authorization Violation",
            "Permissions Violation for ",
            "Permissions Violation for \"x",
        ] {
            assert_eq!(subject(other), None, "{other:?}");
        }
    }
}
