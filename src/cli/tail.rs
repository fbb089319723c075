//! `sidestream tail`: follows an event stream for a person: prints, reconnects, resumes.

mod backoff;
mod connection;
mod print;
mod request;
mod target;

use std::io;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use http_body_util::BodyExt;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::signal::unix::{SignalKind, signal};

use self::backoff::Backoff;
use self::connection::Connector;
use self::print::{Style, harmless};
use self::request::{No, Opened};
use self::target::Target;
use super::Exit;
use super::output::{self, exit_of};
use crate::sse::decode::{Decoded, Decoder, ReceivedEvent};

/// What `sidestream tail` takes.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Args {
    /// Where the event stream is; characters such as > need no encoding
    url: String,
    /// One JSON object per event and line: id, event, data, received (milliseconds since 1970); gaps are among them
    #[arg(long)]
    json: bool,
    /// Begin after this event instead of now
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    last_event_id: String,
    /// A request header; may be given more than once
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Trust the certificates in this PEM file, too
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// Speak HTTP/2 at once; without it HTTP/1.1, or what TLS agrees on
    #[arg(long)]
    http2: bool,
    /// Stop after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    events: Option<u64>,
}

/// Follows the stream until it is told to stop.
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
    // Not waited for: a write to a reader that has stopped reading may hang in a thread.
    runtime.shutdown_background();
    exit
}

async fn interrupted() -> Exit {
    let (Ok(mut interrupt), Ok(mut terminate)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
    ) else {
        return stopped("signals cannot be listened for", Exit::Internal);
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Exit::Clean
}

/// The follower: where it is, and how it goes on.
struct Tail {
    target: Target,
    connector: Connector,
    headers: HeaderMap,
    style: Style,
    backoff: Backoff,
    /// The id of the last event that was written; empty: live.
    position: String,
    events_left: Option<u64>,
}

/// How one connection ended.
enum End {
    /// Nothing more is to be done.
    Done(Exit),
    /// By the server, or by the network.
    Broken(String),
}

impl Tail {
    fn new(args: &Args) -> Result<Self, String> {
        let target = Target::parse(&args.url)?;
        let connector = Connector::new(&target, args.http2, args.cacert.as_deref())?;
        let mut headers = HeaderMap::new();
        for (name, value) in &args.headers {
            headers.append(name, value.clone());
        }
        Ok(Self {
            target,
            connector,
            headers,
            style: Style::detect(args.json),
            backoff: Backoff::new(Rng::new()),
            position: args.last_event_id.clone(),
            events_left: args.events,
        })
    }

    async fn follow(&mut self) -> Exit {
        loop {
            let (why, after) =
                match request::open(&self.connector, &self.target, &self.headers, &self.position)
                    .await
                {
                    Ok(opened) => match self.read(opened).await {
                        End::Done(exit) => return exit,
                        End::Broken(why) => (why, None),
                    },
                    Err(No::Finished) => {
                        return stopped("the server has nothing more for us (204)", Exit::Clean);
                    }
                    Err(No::ForGood(why)) => return stopped(&why, Exit::Unavailable),
                    Err(No::ForNow { why, after }) => (why, after),
                };
            let delay = self.backoff.next_delay(after);
            tell(&format!(
                "{why}; reconnecting in {:.1} s{}",
                delay.as_secs_f64(),
                self.resuming()
            ));
            tokio::time::sleep(delay).await;
        }
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
        tell(&format!(
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
            if let Some(exit) = self.take(&mut decoder, &bytes).await {
                return End::Done(exit);
            }
        }
        End::Broken("the server ended the stream".into())
    }

    /// Takes what arrived at once, and writes it at once. Some exit code: nothing more is wanted or possible.
    async fn take(&mut self, decoder: &mut Decoder, mut bytes: &[u8]) -> Option<Exit> {
        let mut out = String::new();
        let mut exit = None;
        while exit.is_none() {
            match decoder.next(&mut bytes) {
                Ok(Some(decoded)) => exit = self.meet(decoded, &mut out),
                Ok(None) => break,
                // The server would send it again after every reconnect.
                Err(error) => exit = Some(stopped(&error.to_string(), Exit::Unavailable)),
            }
        }
        // A reader that has seen enough closes the pipe (`| head`): that is a way to end, and no error.
        match print(out).await {
            Ok(()) => exit,
            printed => Some(exit_of(printed)),
        }
    }

    fn meet(&mut self, decoded: Decoded, out: &mut String) -> Option<Exit> {
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

    fn event(&mut self, event: &ReceivedEvent, out: &mut String) -> Option<Exit> {
        let now = SystemTime::now();
        match event.event.as_str() {
            POSITION => {
                self.backoff.succeeded();
                return None;
            }
            CLOSE => {
                // Not a success: an overloaded server sends nothing else.
                self.closing(event);
                return None;
            }
            GAP => {
                tell(&gap(event));
                // A program that reads our lines must see it in its place.
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
        (*left == 0).then_some(Exit::Clean)
    }

    fn closing(&mut self, event: &ReceivedEvent) {
        let close: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
        if let Some(retry) = close["retry"].as_u64() {
            self.backoff.set_base(Duration::from_millis(retry));
        }
        tell(&format!(
            "the server closes this stream: {}",
            close["reason"].as_str().unwrap_or("it does not say why")
        ));
    }
}

/// What a gap says: how many events are gone, why, and where the stream goes on.
fn gap(event: &ReceivedEvent) -> String {
    let gap: serde_json::Value = serde_json::from_str(&event.data).unwrap_or_default();
    let missed = gap["missed"].as_u64().map_or_else(
        || "an unknown number of".to_owned(),
        |missed| missed.to_string(),
    );
    let on = if gap["resume"] == "oldest" {
        "the oldest event that is kept"
    } else {
        "live events"
    };
    format!(
        "gap ({}): missed {missed} events, going on with {on}",
        gap["reason"].as_str().unwrap_or("unknown")
    )
}

/// In a thread of its own: a reader that stops reading must not keep Ctrl-C from working.
async fn print(text: String) -> io::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    tokio::task::spawn_blocking(move || output::print(&text)).await?
}

/// Says what happens to the connection, beside the events. Some of it is the server's text.
fn tell(what: &str) {
    output::complain(format_args!("sidestream tail: {}", harmless(what)));
}

fn stopped(why: &str, exit: Exit) -> Exit {
    tell(why);
    exit
}

/// `Name: value`.
fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or("a header is written as 'Name: value'")?;
    let name: HeaderName = name
        .trim()
        .parse()
        .map_err(|_| format!("{name:?} is no header name"))?;
    if name == "last-event-id" {
        return Err("the position is given with --last-event-id".into());
    }
    let mut value: HeaderValue = value
        .trim()
        .parse()
        .map_err(|_| "a header value has no control characters".to_owned())?;
    // It may be a token.
    value.set_sensitive(true);
    Ok((name, value))
}

const POSITION: &str = "sidestream.position";
const GAP: &str = "sidestream.gap";
const CLOSE: &str = "sidestream.close";

/// Sixteen times the largest message that NATS takes by default.
const EVENT_BYTES_MAX: usize = 16 << 20;

const EXAMPLES: &str = "\
Examples:
  sidestream tail 'http://localhost:8080/events?subject=orders.42.>'
  sidestream tail --json --events 10 http://localhost:8080/events/orders/42 | jq .data
  sidestream tail --header 'Authorization: Bearer ...' --last-event-id 3fa9c1-18422-7d3e https://pod.example/events

Events go to standard output; gaps, closes and reconnects are told on standard error. Ends with 0 on Ctrl-C, after
--events, or when the server answers 204; with 69 when the server refuses for good (4xx, a certificate not to trust).";
