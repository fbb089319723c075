//! Exporter of spans: a thread that sends what waits to a collector, in batches, by OTLP over HTTP.
//!
//! No other thread waits for it. While a collector does not answer, spans wait in the bounds of the
//! tracer, and those beyond are dropped and counted. A batch that a collector does not accept is
//! dropped and counted as failed: spans are never kept for a second attempt of an hour later.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use hyper::Uri;
use opentelemetry::InstrumentationScope;
use opentelemetry_otlp::{
    Protocol, SpanExporter as OtlpExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::trace::SpanExporter as _;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

use super::config::traces_url;
use super::http_client::CollectorClient;
use super::resource::resource;
use super::span::EndedSpan;
use super::waiting::Waiting;

/// 500 ms between two exports: a trace is visible within two seconds.
const EXPORT_EVERY: Duration = Duration::from_millis(500);

/// 512 spans in one request, as the SDKs of OpenTelemetry do.
const BATCH_MAX: usize = 512;

/// 5 s for one batch, with its repetitions.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// 2 s for one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);

/// Handle of the thread. Dropping it lets the thread export what waits and end.
#[derive(Debug)]
pub(super) struct Exporter {
    collector: Uri,
    /// Receives the channel that is dropped when the last batch is exported.
    finish: mpsc::SyncSender<oneshot::Sender<()>>,
}

/// State of the thread.
struct Exporting {
    runtime: Runtime,
    exporter: OtlpExporter,
    scope: InstrumentationScope,
    waiting: Arc<Waiting>,
    collector: String,
    /// The last batch was not accepted.
    is_failing: bool,
}

impl Exporter {
    /// Starts the thread; `None`, with a line in the log, if that is not possible.
    pub(super) fn start(collector: Uri, waiting: Arc<Waiting>) -> Option<Self> {
        let (finish, finished) = mpsc::sync_channel(1);
        let to = collector.clone();
        let run = move || match Exporting::new(&to, waiting) {
            Ok(exporting) => exporting.run(&finished),
            Err(error) => tracing::error!(%error, collector = %to, "traces cannot be exported"),
        };
        let spawned = std::thread::Builder::new().name("trace".into()).spawn(run);
        match spawned {
            Ok(_) => Some(Self { collector, finish }),
            Err(error) => {
                tracing::error!(%error, "the thread for traces cannot start");
                None
            }
        }
    }

    /// Returns the address of the collector.
    pub(super) fn collector(&self) -> &Uri {
        &self.collector
    }

    /// Exports what waits. Returns when that is done, after `timeout` at the latest.
    pub(super) async fn finish(self, timeout: Duration) {
        let (done, is_done) = oneshot::channel();
        if self.finish.try_send(done).is_ok()
            && tokio::time::timeout(timeout, is_done).await.is_err()
        {
            tracing::warn!(collector = %self.collector, "traces not exported in time");
        }
    }
}

impl Exporting {
    fn new(collector: &Uri, waiting: Arc<Waiting>) -> Result<Self, Box<dyn std::error::Error>> {
        let is_tls = collector.scheme_str() == Some("https");
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let mut exporter = OtlpExporter::builder()
            .with_http()
            .with_http_client(CollectorClient::new(is_tls, ATTEMPT_TIMEOUT))
            .with_endpoint(traces_url(collector))
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(EXPORT_TIMEOUT)
            .build()?;
        exporter.set_resource(&resource(|name| std::env::var(name).ok()));
        tracing::info!(%collector, "exporting traces");
        Ok(Self {
            runtime,
            exporter,
            scope: InstrumentationScope::builder("sidestream")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
            waiting,
            collector: collector.to_string(),
            is_failing: false,
        })
    }

    /// Exports until the handle is dropped or finished.
    fn run(mut self, finish: &mpsc::Receiver<oneshot::Sender<()>>) {
        let mut next = Instant::now() + EXPORT_EVERY;
        loop {
            let wait = next.saturating_duration_since(Instant::now());
            match finish.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {
                    self.export_all(false);
                    next = Instant::now() + EXPORT_EVERY;
                }
                // A new configuration: the thread of the next collector takes what is not old enough.
                Err(RecvTimeoutError::Disconnected) => return self.export_all(false),
                Ok(done) => {
                    self.export_all(true);
                    return drop(done);
                }
            }
        }
    }

    fn export_all(&mut self, is_last: bool) {
        loop {
            let spans = self.waiting.take(BATCH_MAX, is_last);
            if spans.is_empty() {
                return;
            }
            let is_full = spans.len() == BATCH_MAX;
            self.export(spans);
            // The next tick takes few spans; a batch that failed must not delay the end.
            if !is_full || (is_last && self.is_failing) {
                return;
            }
        }
    }

    fn export(&mut self, spans: Vec<EndedSpan>) {
        let count = spans.len() as u64;
        let spans = spans
            .into_iter()
            .map(|span| span.into_data(&self.scope))
            .collect();
        let exported = self.runtime.block_on(async {
            tokio::time::timeout(EXPORT_TIMEOUT, self.exporter.export(spans)).await
        });
        let error = match exported {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("no answer in time".to_owned()),
        };
        let counters = &self.waiting.counters;
        let Some(error) = error else {
            counters.exported.inc_by(count);
            if std::mem::take(&mut self.is_failing) {
                tracing::info!(collector = self.collector, "traces are exported again");
            }
            return;
        };
        counters.failed.inc_by(count);
        // One line until an export succeeds.
        if !std::mem::replace(&mut self.is_failing, true) {
            tracing::warn!(
                error,
                collector = self.collector,
                "traces not exported; they are dropped"
            );
        }
    }
}
