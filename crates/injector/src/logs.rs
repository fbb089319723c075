//! The log of the injector: one JSON object a line on standard error.
//!
//! Lines pass through a bounded queue that a thread of `tracing-appender` writes, so a standard
//! error that accepts nothing blocks no request. Lines beyond the queue are dropped and counted
//! ([`dropped_lines`]). The guard that [`init`] returns writes the rest of the queue when it is
//! dropped, for a second at most.

use std::io;
use std::sync::OnceLock;

use sidestream_common::log_filter;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

/// 4,096 lines: some MiB, as much as a roll-out with a mistake logs in several minutes.
const QUEUE_LINES_MAX: usize = 4096;

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Starts to log with this filter, which [`log_filter::filter`] has accepted.
pub(crate) fn init(directives: &str) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(QUEUE_LINES_MAX)
        .lossy(true)
        .thread_name("log")
        .finish(io::stderr());
    DROPPED.get_or_init(|| writer.error_counter());
    let filter = log_filter::filter(directives).unwrap_or_else(|_| EnvFilter::new("info"));
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_env_filter(filter)
        .with_writer(writer)
        .finish();
    // Fails only if a subscriber exists, and main calls this once.
    tracing::subscriber::set_global_default(subscriber).ok();
    std::panic::set_hook(Box::new(|panic| {
        tracing::error!(%panic, "a task panicked; the process continues");
    }));
    guard
}

/// Number of lines that were dropped since the start.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |counter| counter.dropped_lines() as u64)
}
