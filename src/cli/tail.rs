//! `sidestream tail`: follows an event stream in a terminal or a script: prints, reconnects,
//! resumes.
//!
//! ```text
//! Tail::follow   loop: connect -> request -> read -> back off
//!   bearer       a token from a command
//!   request      one request: redirects, status, `Retry-After`
//!   client       TCP, TLS, HTTP/1.1 or HTTP/2
//!   print        one line per event: JSON, plain text or colours
//! ```
//!
//! It behaves as an `EventSource` should: after an interruption it sends the id of the last event
//! that it has written. It stops for good at 204, at other client errors and at an untrusted
//! certificate. Events go to standard output, everything else to standard error. One current-thread
//! runtime; printing happens on a blocking thread so that a stopped reader cannot block Ctrl-C.

mod backoff;
mod bearer;
mod print;
mod request;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use http_body_util::BodyExt;
use hyper::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use tokio::signal::unix::{SignalKind, signal};

use self::backoff::RetryDelays;
use self::print::{Style, report};
use self::request::{No, Opened};
use super::client::connection::{Connector, Options};
use super::client::target::Target;
use super::exit::Exit;
use super::output::{self, exit_of};
use crate::encoding::sse::decode::{Decoded, Decoder, ReceivedEvent};

/// Arguments of `sidestream tail`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// URL of the event stream; characters such as > need no encoding
    url: String,
    /// Print one JSON object per event and line (id, event, data, received in ms since 1970), gaps
    /// included
    #[arg(long)]
    json: bool,
    /// Resume after this event instead of starting with live events
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    last_event_id: String,
    /// Request header; may be repeated
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Command for the shell that prints a bearer token; runs before every connection, and when the
    /// server asks for renewed credentials
    #[arg(long, value_name = "COMMAND")]
    bearer_command: Option<String>,
    /// Also trust the certificates in this PEM file
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Use HTTP/2 with prior knowledge; the default is HTTP/1.1, or the protocol that TLS
    /// negotiates
    #[arg(long)]
    http2: bool,
    /// Stop after this number of events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
}

/// Follows the stream until it ends for good or a signal arrives.
pub(super) fn run(args: &Args) -> Exit {
    let mut tail = match Tail::new(args) {
        Ok(tail) => tail,
        Err(why) => return stopped(&why, Exit::Usage),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return stopped(&error.to_string(), Exit::Internal),
    };
    let exit = runtime.block_on(async {
        tokio::select! {
            biased;
            outcome = interrupted() => outcome,
            exit = tail.follow() => exit,
        }
    });
    // Do not wait for the blocking thread: its reader may have stopped reading.
    runtime.shutdown_background();
    exit
}

async fn interrupted() -> Exit {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return stopped("cannot install signal handlers", Exit::Internal);
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Exit::Clean
}

/// State of the follower between connections.
struct Tail {
    target: Target,
    connector: Connector,
    headers: HeaderMap,
    bearer_command: Option<String>,
    style: Style,
    backoff: RetryDelays,
    /// Id of the last printed event; empty for live.
    position: String,
    events_left: Option<u64>,
}

/// End of one connection.
enum End {
    /// Final: exit.
    Done(Exit),
    /// Interrupted by the server or the network: reconnect.
    Broken(String),
    /// The credentials expire: reconnect at once with new ones.
    Renewed,
}

/// Reason to stop reading a connection.
enum Stop {
    Exit(Exit),
    Renew,
}

impl Tail {
    fn new(args: &Args) -> Result<Self, String> {
        let target = Target::parse(&args.url)?;
        let options = Options {
            http2: args.http2,
            authority: args.cacert.as_deref(),
            ..Options::default()
        };
        let connector = Connector::new(&target, options)?;
        let mut headers = HeaderMap::new();
        for (name, value) in &args.headers {
            headers.append(name, value.clone());
        }
        Ok(Self {
            target,
            connector,
            headers,
            bearer_command: args.bearer_command.clone(),
            style: Style::detect(args.json),
            backoff: RetryDelays::new(Rng::new()),
            position: args.last_event_id.clone(),
            events_left: args.events,
        })
    }

    async fn follow(&mut self) -> Exit {
        loop {
            let (why, after) = match self.open().await {
                Ok(opened) => match self.read(opened).await {
                    End::Done(exit) => return exit,
                    End::Renewed => continue,
                    End::Broken(why) => (why, None),
                },
                Err(No::Finished) => {
                    return stopped(
                        "the server has ended this stream for good (204)",
                        Exit::Clean,
                    );
                }
                Err(No::ForGood(why)) => return stopped(&why, Exit::Unavailable),
                Err(No::ForNow { why, after }) => (why, after),
            };
            let delay = self.backoff.next_delay(after);
            report(&format!(
                "{why}; reconnecting in {:.1} s{}",
                delay.as_secs_f64(),
                self.resuming()
            ));
            tokio::time::sleep(delay).await;
        }
    }

    /// Sends one request, with a fresh token if a command prints one.
    async fn open(&mut self) -> Result<Opened, No> {
        if let Some(command) = &self.bearer_command {
            let token = bearer::run(command).await?;
            self.headers.insert(AUTHORIZATION, token);
        }
        request::open(&self.connector, &self.target, &self.headers, &self.position).await
    }

    fn resuming(&self) -> String {
        if self.position.is_empty() {
            String::new()
        } else {
            format!(", resuming after {}", self.position)
        }
    }

    /// Reads one connection to its end.
    async fn read(&mut self, opened: Opened) -> End {
        let Opened {
            mut body,
            connection,
        } = opened;
        report(&format!(
            "connected over {}{}",
            connection.version(),
            self.resuming()
        ));
        let mut decoder = Decoder::new(EVENT_BYTES_MAX, &self.position);
        while let Some(frame) = body.frame().await {
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => return End::Broken(format!("the connection broke ({error})")),
            };
            let Ok(bytes) = frame.into_data() else {
                continue;
            };
            match self.take(&mut decoder, &bytes).await {
                Some(Stop::Exit(exit)) => return End::Done(exit),
                Some(Stop::Renew) => return End::Renewed,
                None => {}
            }
        }
        End::Broken("the server ended the stream".into())
    }

    /// Decodes the received bytes and prints the events. Returns a reason to stop.
    async fn take(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Option<Stop> {
        let mut out = String::new();
        let mut stop = None;
        while stop.is_none() {
            match decoder.next(&mut bytes) {
                Ok(Some(decoded)) => stop = self.meet(decoded, &mut out),
                Ok(None) => break,
                // Final: the server would send the same after every reconnect.
                Err(error) => {
                    stop = Some(Stop::Exit(stopped(&error.to_string(), Exit::Unavailable)));
                }
            }
        }
        // A closed pipe (`| head`) is a normal end.
        match print(out).await {
            Ok(()) => stop,
            printed => Some(Stop::Exit(exit_of(printed))),
        }
    }

    fn meet(&mut self, decoded: Decoded, out: &mut String) -> Option<Stop> {
        match decoded {
            Decoded::Retry(base) => self.backoff.set_base(base),
            Decoded::Position(id) => {
                self.position = id;
                self.backoff.succeeded();
            }
            Decoded::Event(event) => {
                self.position.clone_from(&event.id);
                return self.event(&event, out);
            }
        }
        None
    }

    fn event(&mut self, event: &ReceivedEvent, out: &mut String) -> Option<Stop> {
        let now = SystemTime::now();
        match event.event.as_str() {
            POSITION => {
                self.backoff.succeeded();
                return None;
            }
            CLOSE => {
                // Does not reset the back-off: an overloaded server may send nothing but this.
                self.closing(event);
                return None;
            }
            RENEW => return self.renew(),
            END => {
                let exit = stopped("the event stream has ended", Exit::Clean);
                return Some(Stop::Exit(exit));
            }
            GAP => {
                report(&gap(event));
                // A program that reads the lines must see the gap at its position.
                if self.style == Style::Json {
                    self.style.write(event, now, out);
                }
                self.backoff.succeeded();
                return None;
            }
            _ => {}
        }
        self.style.write(event, now, out);
        self.backoff.succeeded();
        let left = self.events_left.as_mut()?;
        *left -= 1;
        (*left == 0).then_some(Stop::Exit(Exit::Clean))
    }

    /// Renews the credentials if a command prints them.
    fn renew(&self) -> Option<Stop> {
        if self.bearer_command.is_none() {
            report("the credentials expire soon, and there is no --bearer-command");
            return None;
        }
        report("the credentials expire soon; reconnecting with new ones");
        Some(Stop::Renew)
    }

    fn closing(&mut self, event: &ReceivedEvent) {
        let close: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        if let Some(retry) = close["retry"].as_u64() {
            self.backoff.set_base(Duration::from_millis(retry));
        }
        report(&format!(
            "the server closes this event stream: {}",
            close["reason"].as_str().unwrap_or("no reason given")
        ));
    }
}

/// Sentence about a gap: number of missed events, reason, and where the stream continues.
fn gap(event: &ReceivedEvent) -> String {
    let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
    let missed = gap["missed"].as_u64().map_or_else(
        || "an unknown number of".to_owned(),
        |missed| missed.to_string(),
    );
    let on = if gap["resume"] == "oldest" {
        "the oldest retained event"
    } else {
        "live events"
    };
    format!(
        "gap ({}): missed {missed} events, continuing with {on}",
        gap["reason"].as_str().unwrap_or("unknown")
    )
}

/// Prints on a blocking thread: a reader that stops reading must not block Ctrl-C.
async fn print(text: String) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    tokio::task::spawn_blocking(move || output::print(&text)).await?
}

fn stopped(why: &str, exit: Exit) -> Exit {
    report(why);
    exit
}

/// `Name: value`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("invalid header: expected 'Name: value'")?;
    let name: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| format!("invalid header name {name:?}"))?;
    if name == "last-event-id" {
        return Err("use --last-event-id to set the position".into());
    }
    let mut value: HeaderValue = value
        .trim()
        .parse()
        .map_err(|_| "invalid header value: control characters are not allowed".to_owned())?;
    // It may be a credential: hide it from debug output.
    value.set_sensitive(true);
    Ok((name, value))
}

const POSITION: &str = "sidestream.position";
const GAP: &str = "sidestream.gap";
const CLOSE: &str = "sidestream.close";
const RENEW: &str = "sidestream.renew";
const END: &str = "sidestream.end";

/// 16 MiB: sixteen times the largest message of a default NATS server.
const EVENT_BYTES_MAX: usize = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  sidestream tail 'http://localhost:8080/events?subject=orders.42.>'
  sidestream tail --json --events 10 http://localhost:8080/events/orders/42 | jq .data
  sidestream tail --bearer-command 'cat /run/token' https://pod.example/events
  sidestream tail --header 'Authorization: Bearer ...' --last-event-id 3fa9c1-18422-2k7d3ew https://pod.example/events

Events go to standard output; gaps, closes and reconnects go to standard error. Exits with 0 on Ctrl-C, after
--events, at `sidestream.end`, or when the server answers 204; with 69 on a permanent error (4xx, untrusted certificate).";
