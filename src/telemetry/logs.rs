//! Structured logs on standard error, as JSON or as text.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::time::Duration;

use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::filter::{InvalidFilter, filter};
use super::lines::Lines;
use super::writer::Queue;

/// 1 s: how long the end of the process waits for a standard error that accepts nothing.
const LAST_LINES: Duration = Duration::from_secs(1);

/// How the log is written (`log:` in the configuration).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// JSON or text.
    pub format: Format,
    /// What is written: a level, or directives such as `info,sidestream::http=debug`.
    pub filter: String,
}

/// The shape of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            format: Format::Json,
            filter: "info".into(),
        }
    }
}

/// Begins to log, through a bounded queue that a thread of its own writes: logging never blocks. A second call changes
/// nothing.
pub fn init(config: &Config) {
    let first = filter(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(first);
    let lines = fmt::layer()
        .with_writer(writer())
        .log_internal_errors(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Json => Box::new(lines.json().event_format(Lines::new())),
        Format::Text => Box::new(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))),
    };
    if tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .is_err()
    {
        tracing::debug!("logging had begun already");
    }
    // A second beginning keeps the first one's handle.
    if FILTER.set(handle).is_ok() {
        super::panics::log();
    }
}

/// Writes by another filter from now on.
///
/// # Errors
/// When the filter is none; the one before stays.
pub fn set_filter(directives: &str) -> Result<(), InvalidFilter> {
    let new = filter(directives)?;
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(new)
    {
        tracing::warn!(%error, "the filter of the log could not be changed");
    }
    Ok(())
}

/// The queue in front of standard error; without a thread for it, standard error itself.
fn writer() -> BoxMakeWriter {
    let queue = QUEUE.get_or_init(Queue::default).clone();
    let writing = queue.clone();
    // A descriptor of its own: the lock of `io::stderr` would be held for as long as a write blocks.
    let spawned = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stderr| {
            let write = move || {
                writing.write_to(std::fs::File::from(stderr), |lines| {
                    tracing::warn!(
                        lines,
                        "standard error did not accept log lines; they were dropped"
                    );
                });
            };
            std::thread::Builder::new().name("log".into()).spawn(write)
        });
    match spawned {
        Ok(_) => BoxMakeWriter::new(move || queue.clone()),
        Err(_) => BoxMakeWriter::new(io::stderr),
    }
}

/// Returns the number of dropped lines since the last call: what the metric grows by.
pub(super) fn take_dropped_lines() -> u64 {
    QUEUE.get().map_or(0, Queue::take_uncounted)
}

/// Writes what is left in the queue when it is dropped, for a second at most. Held by `main`, so that a panic is logged too.
#[derive(Debug)]
#[must_use = "dropping it flushes the log"]
pub struct FlushAtEnd;

impl Drop for FlushAtEnd {
    fn drop(&mut self) {
        if let Some(queue) = QUEUE.get() {
            queue.flush(LAST_LINES);
        }
    }
}

/// The log belongs to the process as standard error does.
static QUEUE: OnceLock<Queue> = OnceLock::new();

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
