//! Structured logs on standard error, as JSON or as text.

use std::io;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

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
    let filter = filter(&config.filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let begun = match config.format {
        Format::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        Format::Text => lines.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).try_init(),
    };
    if begun.is_err() {
        tracing::debug!("logging had begun already");
    }
}
