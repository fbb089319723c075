//! Structured logs on standard error, as JSON or as text.

use std::io;
use std::sync::OnceLock;

use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use super::lines::Lines;

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
        Self { format: Format::Json, filter: "info".into() }
    }
}

/// Reads the directives of a filter.
///
/// The client library of NATS tells every dropped message at `info`; ours counts them, so its own lines begin at
/// `warn` unless the filter names it.
///
/// # Errors
/// When the filter is not one.
pub fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let quiet = if directives.contains("async_nats") { String::new() } else { ",async_nats=warn".to_owned() };
    EnvFilter::try_new(format!("{directives}{quiet}"))
}

/// Begins to log. A second call changes nothing.
pub fn init(config: &Config) {
    let first = filter(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(first);
    let lines = fmt::layer().with_writer(io::stderr);
    let lines: Box<dyn Layer<_> + Send + Sync> = match config.format {
        Format::Json => Box::new(lines.json().event_format(Lines::new())),
        Format::Text => Box::new(lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr()))),
    };
    if tracing_subscriber::registry().with(filter).with(lines).try_init().is_err() {
        tracing::debug!("logging had begun already");
    }
    // A second beginning keeps the first one's handle.
    drop(FILTER.set(handle));
}

/// Writes by another filter from now on.
///
/// # Errors
/// When the filter is none; the one before stays.
pub fn set_filter(directives: &str) -> Result<(), ParseError> {
    let new = filter(directives)?;
    if let Some(handle) = FILTER.get()
        && let Err(error) = handle.reload(new)
    {
        tracing::warn!(%error, "the filter of the log could not be changed");
    }
    Ok(())
}

/// The log belongs to the process as standard error does.
static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();
