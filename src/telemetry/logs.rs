//! Structured log on standard error, as JSON or as text.
//!
//! [`init`] installs the subscriber: a filter that [`set_filter`] replaces at a reload, and the
//! formatter of `tracing-subscriber`. Lines go to the bounded queue of `writer`, so logging never
//! blocks. [`FlushAtEnd`] waits for the queue at the end of the process.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::OnceLock;
use std::time::Duration;

use sidestream_common::log_filter::{InvalidFilter, filter};
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::writer::Queue;

/// 1 s: maximum wait at the end of the process if standard error accepts nothing.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Configuration of the log (`log:`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// JSON or text.
    pub format: Format,
    /// A level, or directives such as `info,sidestream::http=debug`.
    pub filter: String,
}

/// Format of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// Text for people.
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

/// Installs the log of the process. A second call has no effect.
pub fn init(config: &Config) {
    let first = filter(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(first);
    let lines = fmt::layer()
        .with_writer(writer())
        .log_internal_errors(false);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Json => Box::new(
            lines
                .json()
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false),
        ),
        Format::Text => Box::new(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))),
    };
    if tracing_subscriber::registry()
        .with(filter)
        .with(lines)
        .try_init()
        .is_err()
    {
        tracing::debug!("the log is already installed");
    }
    // A second call keeps the first handle.
    if FILTER.set(handle).is_ok() {
        super::panics::install_hook();
    }
}

/// Replaces the filter.
///
/// # Errors
/// If the filter is invalid; the current one stays.
pub fn set_filter(directives: &str) -> Result<(), InvalidFilter> {
    let new = filter(directives)?;
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(new)
    {
        tracing::warn!(%error, "cannot change the log filter");
    }
    Ok(())
}

/// Returns the queue before standard error, or standard error itself if its thread cannot start.
fn writer() -> BoxMakeWriter {
    let queue = QUEUE.get_or_init(Queue::default).clone();
    let writing = queue.clone();
    // A separate descriptor: a blocked write would hold the lock of `io::stderr`.
    let spawned = io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .and_then(|stderr| {
            let write = move || {
                writing.write_to(std::fs::File::from(stderr), |lines| {
                    tracing::warn!(
                        lines,
                        "log lines dropped: standard error did not accept them"
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

/// Returns the number of lines dropped since the last call, for the metric.
pub(super) fn take_dropped_lines() -> u64 {
    QUEUE.get().map_or(0, Queue::take_uncounted)
}

/// Flushes the queue when it is dropped, for at most a second. `main` holds it, so panics are
/// logged too.
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

/// Queue of the process: there is one standard error.
static QUEUE: OnceLock<Queue> = OnceLock::new();

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
