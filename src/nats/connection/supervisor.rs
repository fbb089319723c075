//! Watches the connections: state for the other parts, health for the probes, one log line per change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, ClientError, ConnectOptions, Event, ServerAddr, ServerError};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::nats_connection::{ClientSlot, ConnectionState, NatsConnection};
use super::probe::{self, Unanswered};
use super::transport::Transport;
use super::{CORE, INBOX};
use crate::lifecycle::health::{Check, Health, Status};
use crate::telemetry::Metrics;

/// The tasks that watch; dropping them ends the watching and lets go of the connections.
#[derive(Debug)]
pub(crate) struct Supervisor([JoinHandle<()>; 2]);

impl Drop for Supervisor {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// The most events that wait for the monitor. More are not needed: the facts are also read every second.
const EVENTS_MAX: usize = 256;

/// The most refused subjects that are remembered per connection.
const DENIED_MAX: usize = 1024;

/// How often the same trouble is logged again.
const REPEAT: Duration = Duration::from_secs(30);

/// Opens connections and then watches them.
pub(super) struct Builder {
    links: Vec<SupervisedConnection>,
    events: mpsc::Sender<(usize, Event)>,
    heard: mpsc::Receiver<(usize, Event)>,
    check: Check,
    metrics: Arc<Metrics>,
    transport: Arc<Transport>,
    /// Set while requests on the control connection get no answers.
    pub(super) unanswered: Unanswered,
}

impl Builder {
    pub(super) fn new(health: &Health, metrics: &Arc<Metrics>, transport: Transport) -> Self {
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        let check = health.check("nats", "not connected to NATS yet");
        let (metrics, transport) = (Arc::clone(metrics), Arc::new(transport));
        Self {
            links: Vec::new(),
            events,
            heard,
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
        let place = self.links.len();
        let opener = Connector {
            place,
            options,
            servers: servers.to_vec(),
            events: self.events.clone(),
            transport: Arc::clone(&self.transport),
        };
        let failure = Arc::new(Mutex::new(None));
        let (client, over) = opener.open(&failure).await?;
        let clients = Arc::new(ClientSlot::new(client));
        let (state, link_state) = watch::channel(ConnectionState::default());
        self.links.push(SupervisedConnection {
            role,
            opener,
            clients: Arc::clone(&clients),
            over,
            state,
            failure,
            leave_at: None,
            dropped: 0,
            told: None,
        });
        Ok(NatsConnection {
            clients,
            state: link_state,
        })
    }

    /// Watches from now on; `probe` ends with it.
    pub(super) fn start(self, probe: JoinHandle<()>) -> Supervisor {
        Supervisor([tokio::spawn(self.watch()), probe])
    }

    async fn watch(mut self) {
        // 1 s: how stale the facts may be when events were lost.
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some((place, event)) = self.heard.recv() => {
                    let is_over = event == Event::Closed;
                    self.links[place].hear(event, &self.metrics);
                    if is_over {
                        self.links[place].look(&self.metrics).await;
                    }
                }
                _ = tick.tick() => {
                    for link in &mut self.links {
                        link.look(&self.metrics).await;
                    }
                }
            }
            self.report();
        }
    }

    fn report(&self) {
        let down: Vec<&SupervisedConnection> = self
            .links
            .iter()
            .filter(|link| !link.state.borrow().up)
            .collect();
        self.metrics.nats_connected.set(i64::from(down.is_empty()));
        let denied: Vec<String> = self
            .links
            .iter()
            .flat_map(SupervisedConnection::denied)
            .take(5)
            .collect();
        let is_clear =
            |link: &SupervisedConnection| !link.clients.current().server_info().tls_required;
        let exposed = self.transport.warning(!self.links.iter().any(is_clear));
        let denied = (!denied.is_empty()).then(|| format!("NATS refuses {}", denied.join(", ")));
        let warnings: Vec<String> = denied.into_iter().chain(exposed).collect();
        self.check.set(match down.as_slice() {
            [] if self.unanswered.is_set() => Status::Failing(format!(
                "connection control to NATS is up, but requests get no answer within {} s",
                probe::DEADLINE.as_secs()
            )),
            [] if warnings.is_empty() => Status::Ok,
            [] => Status::Warning(warnings.join("; ")),
            [first, ..] => {
                let roles: Vec<&str> = down.iter().map(|link| link.role).collect();
                let why = down
                    .iter()
                    .find_map(|link| link.failure())
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

/// What it takes to open a connection, again if it must be.
struct Connector {
    place: usize,
    options: ConnectOptions,
    servers: Vec<ServerAddr>,
    transport: Arc<Transport>,
    events: mpsc::Sender<(usize, Event)>,
}

/// Why the last attempt failed.
type Failure = Arc<Mutex<Option<String>>>;

/// Says when it is dropped that a client's own task has ended: whatever it is asked then it refuses.
struct ClientGuard {
    flag: Arc<AtomicBool>,
    place: usize,
    events: mpsc::Sender<(usize, Event)>,
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Release);
        if self.events.try_send((self.place, Event::Closed)).is_err() {
            tracing::debug!("the end of a NATS client is seen within a second");
        }
    }
}

impl Connector {
    /// Begins to connect. The flag is set when the client is over.
    async fn open(&self, failure: &Failure) -> Result<(Client, Arc<AtomicBool>), String> {
        let (place, told) = (self.place, Arc::clone(failure));
        let flag = Arc::new(AtomicBool::new(false));
        // The callback lives as long as the client's own task, however that ends.
        let over = ClientGuard {
            flag: Arc::clone(&flag),
            place,
            events: self.events.clone(),
        };
        let options = self.options.clone().event_callback(move |event| {
            // What does not fit is read from the facts within a second.
            let full = over.events.try_send((place, event)).is_err();
            async move {
                if full {
                    tracing::debug!("events of a NATS connection skipped");
                }
            }
        });
        // Chooses no server. It is the only place where the library tells why the last attempt failed.
        let transport = Arc::clone(&self.transport);
        let options = options.reconnect_to_server_callback(move |servers, _| {
            *told.lock().unwrap_or_else(PoisonError::into_inner) = reason(&servers, &transport);
            async { None }
        });
        let client = options
            .connect(self.servers.as_slice())
            .await
            .map_err(|error| error.to_string())?;
        Ok((client, flag))
    }
}

/// Why the last attempts failed, server by server; no secret stands in it.
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

/// One connection, seen from the monitor.
struct SupervisedConnection {
    role: &'static str,
    opener: Connector,
    clients: Arc<ClientSlot>,
    /// The client is of no use any more.
    over: Arc<AtomicBool>,
    state: watch::Sender<ConnectionState>,
    failure: Failure,
    /// When to leave a server that is about to end.
    leave_at: Option<Instant>,
    /// How many messages this client had dropped at the last look.
    dropped: u64,
    /// The trouble that was logged last.
    told: Option<(String, Instant)>,
}

impl SupervisedConnection {
    fn hear(&mut self, event: Event, metrics: &Metrics) {
        match event {
            Event::Connected => self.set_up(true, metrics),
            Event::Disconnected => self.set_up(false, metrics),
            Event::LameDuckMode => {
                // 0 to 8 s: the server waits for 10 s before it begins to close connections itself.
                let wait = Duration::from_secs(8).mul_f64(fastrand::f64());
                tracing::info!(
                    connection = self.role,
                    ?wait,
                    "nats server is about to end, leaving it"
                );
                self.leave_at.get_or_insert(Instant::now() + wait);
            }
            Event::ServerError(ServerError::Other(text)) => match denied_subject(&text) {
                Some(subject) => self.deny(subject, &text),
                None => tracing::warn!(
                    connection = self.role,
                    error = text,
                    "nats server reports an error"
                ),
            },
            Event::ServerError(error) => {
                tracing::warn!(connection = self.role, %error, "nats server reports an error");
            }
            Event::ClientError(ClientError::Other(text)) => {
                let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(text);
            }
            // The statistics have the number of dropped messages, events may be lost.
            Event::SlowConsumer(_) | Event::ClientError(_) | Event::Draining | Event::Closed => {}
        }
    }

    /// Reads the facts: events may have been lost.
    async fn look(&mut self, metrics: &Metrics) {
        if self.over.load(Ordering::Acquire) {
            self.begin_again(metrics).await;
        }
        self.set_up(
            self.clients.current().connection_state() == State::Connected,
            metrics,
        );
        self.count_dropped(metrics);
        if !self.state.borrow().up {
            self.tell_failure();
        }
        if self.leave_at.is_some_and(|at| at <= Instant::now()) {
            self.leave_at = None;
            if self.clients.current().force_reconnect().await.is_err() {
                tracing::debug!(
                    connection = self.role,
                    "a closed connection leaves no server"
                );
            }
        }
    }

    /// Counts the messages that were dropped since the last look, in one line of the log.
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
                "slow consumer: messages dropped, the queue was full"
            );
            self.state.send_modify(|state| state.overflows += 1);
        }
    }

    /// Puts a new client in the place of one that is over.
    async fn begin_again(&mut self, metrics: &Metrics) {
        tracing::error!(
            connection = self.role,
            "the nats client has failed on what it received, starting another"
        );
        self.set_up(false, metrics);
        match self.opener.open(&self.failure).await {
            Ok((client, over)) => {
                self.clients.replace(client);
                self.dropped = 0;
                self.over = over;
            }
            // Tried again in a second.
            Err(why) => *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(why),
        }
    }

    fn set_up(&mut self, up: bool, metrics: &Metrics) {
        let made = self.clients.generation();
        let (was_up, known) = {
            let state = self.state.borrow();
            (state.up, state.generation)
        };
        if (was_up, known) == (up, made) {
            return;
        }
        if made > known {
            // The first connection is no reconnect.
            metrics.nats_reconnects_total.inc_by(made - known.max(1));
            self.leave_at = None;
        }
        match (up, was_up) {
            (true, _) => tracing::info!(
                connection = self.role,
                generation = made,
                "connected to nats"
            ),
            (false, true) => tracing::warn!(connection = self.role, "connection to nats lost"),
            (false, false) => {}
        }
        if up {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
            self.told = None;
        }
        self.state.send_modify(|state| {
            state.up = up;
            state.generation = made;
            if made > known {
                state.denied = Arc::default();
            }
        });
    }

    fn deny(&self, subject: &str, text: &str) {
        let known = self.state.borrow().denials(subject) > 0;
        if !known && !is_probe(subject, text) {
            tracing::error!(
                connection = self.role,
                subject,
                error = text,
                "nats refuses a subject: permission missing"
            );
        }
        self.state.send_modify(|state| {
            let denied = Arc::make_mut(&mut state.denied);
            if known || denied.len() < DENIED_MAX {
                *denied.entry(subject.into()).or_default() += 1;
            }
        });
    }

    fn denied(&self) -> Vec<String> {
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

    /// Logs why there is no connection: a new reason at once, a known one at a bounded rate.
    fn tell_failure(&mut self) {
        let Some(why) = self.failure() else { return };
        let known = self
            .told
            .as_ref()
            .is_some_and(|(told, at)| *told == why && at.elapsed() < REPEAT);
        if !known {
            tracing::warn!(
                connection = self.role,
                why,
                "no connection to nats, trying on"
            );
            self.told = Some((why, Instant::now()));
        }
    }
}

/// Whether this refusal is only an answer to our own round trip: publishing to our inbox needs no permission, because
/// the refusal tells as well as the message that the server has come so far.
fn is_probe(subject: &str, text: &str) -> bool {
    subject.starts_with(INBOX) && text.contains("for Publish to")
}

/// The subject of an error such as `Permissions Violation for Subscription to "orders.>"`.
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
    fn a_permission_violation_names_its_subject() {
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
