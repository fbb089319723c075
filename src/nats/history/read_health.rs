//! State shared by all reads of one stream, and their health: a check and a probe while they fail.
//!
//! A read that fails permanently reports its error here. The check `replays:STREAM` is then
//! degraded with the error and its remedy, and every [`PROBE_EVERY`] a task performs once what a
//! read does. When the probe succeeds the check is removed. While the error is permanent, clients
//! that need a replay are rejected at once instead of each waiting for its own attempts.

use std::sync::{Arc, Mutex, Once, PoisonError};
use std::time::Duration;

use crate::event::SourceTag;
use crate::feed::archive::Unavailable;
use crate::lifecycle::backoff::spread;
use crate::lifecycle::health::{Check, Status};
use crate::nats::client::Nats;
use crate::nats::decode::decoder::EventDecoder;
use crate::nats::jetstream::consumer::{self, Consumer, Spec, sequence};
use crate::nats::jetstream::error::JetStreamError;
use crate::nats::jetstream::stream_subjects::StreamSubjects;
use crate::subject::FilterSet;

/// 5 s: how long clients are rejected at most after the operator has acted. A probe is three
/// requests.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// State shared by all readers of one stream.
#[derive(Debug)]
pub(super) struct StreamContext {
    pub(super) nats: Nats,
    pub(super) stream: String,
    pub(super) subjects: StreamSubjects,
    pub(super) identity: Option<String>,
    /// Union of all filters: requested from NATS if a read has too many filters.
    pub(super) all: FilterSet,
    pub(super) decoder: EventDecoder,
    /// Source tag that was returned last; readers expect it.
    pub(super) last_tag: Mutex<Option<SourceTag>>,
    pub(super) read_health: ReadHealth,
    /// Logged: keys of the stream expire without a marker.
    pub(super) expiry_warning: Once,
}

/// State of the reads of one stream: empty while they succeed.
#[derive(Debug, Default)]
pub(super) struct ReadHealth(Mutex<Option<Failed>>);

/// State while reads fail.
#[derive(Debug)]
struct Failed {
    check: Check,
    is_permanent: bool,
}

impl StreamContext {
    /// Converts an error for readers, and reports a permanent one.
    pub(super) fn unavailable(self: &Arc<Self>, error: &JetStreamError) -> Unavailable {
        if !error.is_permanent() {
            return Unavailable::Temporary(error.explain(&self.stream));
        }
        report(self, error);
        Unavailable::Rejected(error.explain(&self.stream))
    }
}

impl ReadHealth {
    /// Returns true if clients that need a replay are rejected.
    pub(super) fn is_rejecting(&self) -> bool {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().is_some_and(|failed| failed.is_permanent)
    }

    /// Degrades the check. Returns true for the first error since reads succeeded.
    fn fail(&self, context: &StreamContext, error: &JetStreamError) -> bool {
        let is_permanent = error.is_permanent();
        let effect = if is_permanent { "are rejected" } else { "wait" };
        let status = Status::Degraded(format!(
            "clients that need a replay {effect}: {}",
            error.explain(&context.stream)
        ));
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failed) = &mut *failed {
            failed.check.set(status);
            failed.is_permanent = is_permanent;
            return false;
        }
        let check = context
            .nats
            .0
            .health
            .degraded(format!("replays:{}", context.stream), status);
        *failed = Some(Failed {
            check,
            is_permanent,
        });
        true
    }

    fn recover(&self) {
        if let Some(failed) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            failed.check.set(Status::Ok);
        }
    }
}

/// Reports the error of a failed read, and probes until reads succeed.
pub(super) fn report(context: &Arc<StreamContext>, error: &JetStreamError) {
    if !context.read_health.fail(context, error) {
        return;
    }
    let context = Arc::downgrade(context);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(spread(PROBE_EVERY, fastrand::f64())).await;
            let Some(context) = context.upgrade() else {
                return;
            };
            match probe(&context).await {
                Ok(()) => return context.read_health.recover(),
                Err(error) => drop(context.read_health.fail(&context, &error)),
            }
        }
    });
}

/// Performs once what a read does.
async fn probe(context: &StreamContext) -> Result<(), JetStreamError> {
    let inner = &context.nats.0;
    let state = inner.api.stream_info(&context.stream).await?;
    let state = context.subjects.shareable(state)?;
    inner
        .api
        .stored(&context.stream, state.last_seq.max(1), None)
        .await?;
    let spec = Spec {
        stream: context.stream.clone(),
        name: consumer::name(&inner.api, &inner.identity, &context.stream, "p"),
        filters: context.subjects.server_filters(&inner.api, &context.all),
        // Nothing is delivered.
        from: sequence(state.last_seq.saturating_add(1)),
        batch: 1,
        bytes: 1 << 20,
        headers_only: false,
    };
    let name = spec.name.clone();
    let created = Consumer::create(&inner.api, inner.connections.replay.clone(), spec).await;
    inner.api.delete_later(&context.stream, &name).await;
    created.map(drop)
}
