//! Whether the past of a stream can be read: a health check and a probe for as long as it cannot.
//!
//! A reading that fails for good reports its error here. From then on a check named `replays:STREAM` is degraded with the
//! error and its remedy, and every [`PROBE_EVERY`] a task does once what readings do. When it succeeds the check is
//! removed. While the error is permanent, clients that need a replay are turned away at once instead of each waiting for
//! attempts of its own.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::StreamHandle_;
use crate::lifecycle::health::{Check, Status};
use crate::nats::JetStreamError;
use crate::nats::jetstream::consumer::{self, Consumer, Spec, sequence};

/// 5 s: how long clients are turned away at most after the operator has acted. A probe is three requests.
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// State of the readings of one stream: empty while they work.
#[derive(Debug, Default)]
pub(super) struct Outlook(Mutex<Option<Failed>>);

/// Readings fail.
#[derive(Debug)]
struct Failed {
    check: Check,
    is_permanent: bool,
}

impl Outlook {
    /// Whether clients that need a replay are turned away.
    pub(super) fn is_rejecting(&self) -> bool {
        let failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failed.as_ref().is_some_and(|failed| failed.is_permanent)
    }

    /// Degrades the check. True for the first error since readings worked.
    fn fail(&self, place: &StreamHandle_, trouble: &JetStreamError) -> bool {
        let is_permanent = trouble.is_permanent();
        let effect = if is_permanent {
            "are turned away"
        } else {
            "wait"
        };
        let status = Status::Degraded(format!(
            "clients that need a replay {effect}: {}",
            trouble.explain(&place.stream)
        ));
        let mut failed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(failed) = &mut *failed {
            failed.check.set(status);
            failed.is_permanent = is_permanent;
            return false;
        }
        let check = place
            .nats
            .0
            .health
            .degraded(format!("replays:{}", place.stream), status);
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

/// Reports an error that ended a reading, and probes from then on until readings work.
pub(super) fn report(place: &Arc<StreamHandle_>, trouble: &JetStreamError) {
    if !place.outlook.fail(place, trouble) {
        return;
    }
    let place = Arc::downgrade(place);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(PROBE_EVERY.mul_f64(0.8 + 0.4 * fastrand::f64())).await;
            let Some(place) = place.upgrade() else { return };
            match probe(&place).await {
                Ok(()) => return place.outlook.recover(),
                Err(trouble) => drop(place.outlook.fail(&place, &trouble)),
            }
        }
    });
}

/// Does once what readings do.
async fn probe(place: &StreamHandle_) -> Result<(), JetStreamError> {
    let inner = &place.nats.0;
    let state = inner.api.describe_shareable(&place.stream).await?;
    inner
        .api
        .stored(&place.stream, state.last_seq.max(1), None)
        .await?;
    let spec = Spec {
        stream: place.stream.clone(),
        name: consumer::name(&inner.api, &inner.identity, &place.stream, "p"),
        filters: consumer::filters(&inner.api, &place.all),
        // Nothing is delivered.
        from: sequence(state.last_seq.saturating_add(1)),
        batch: 1,
        bytes: 1 << 20,
    };
    let name = spec.name.clone();
    let made = Consumer::create(&inner.api, inner.links.replay.clone(), spec).await;
    inner.api.forget(&place.stream, &name).await;
    made.map(drop)
}
