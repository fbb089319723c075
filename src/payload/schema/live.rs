//! Documents in force: their validators, counters, and the log of violations.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use prometheus::IntCounter;

use super::compiled::CompiledSchema;
use crate::telemetry::Metrics;

/// 10 s before another violation of the same schema is logged.
const LOG_AGAIN_AFTER: Duration = Duration::from_secs(10);

/// Document that a rule names, and its validator.
#[derive(Debug)]
pub(super) struct LiveSchema {
    name: Box<str>,
    /// `None`: no valid document was found yet.
    pub(super) compiled: ArcSwapOption<CompiledSchema>,
    pub(super) counters: SchemaCounters,
    log: Mutex<ViolationLog>,
}

/// Counters of the payloads that one document describes.
#[derive(Debug)]
pub(super) struct SchemaCounters {
    pub(super) valid: IntCounter,
    pub(super) invalid: IntCounter,
    pub(super) skipped: IntCounter,
    pub(super) missing: IntCounter,
}

#[derive(Debug, Default)]
struct ViolationLog {
    last: Option<Instant>,
    suppressed: u64,
}

impl LiveSchema {
    pub(super) fn new(name: Box<str>, metrics: &Metrics) -> Self {
        let counter = |result| {
            let labels = [&*name, result];
            metrics.schema_payloads_total.with_label_values(&labels)
        };
        let counters = SchemaCounters {
            valid: counter("valid"),
            invalid: counter("invalid"),
            skipped: counter("skipped"),
            missing: counter("missing"),
        };
        Self {
            name,
            compiled: ArcSwapOption::empty(),
            counters,
            log: Mutex::default(),
        }
    }

    /// Validates a payload, counts it, and logs a violation if the last one was some time ago.
    pub(super) fn validate(
        &self,
        compiled: &CompiledSchema,
        subject: &str,
        sequence: u64,
        payload: &[u8],
    ) -> bool {
        if compiled.validate(payload).is_ok() {
            self.counters.valid.inc();
            return true;
        }
        self.counters.invalid.inc();
        let Some(suppressed) = lock(&self.log).next(Instant::now()) else {
            return false;
        };
        tracing::warn!(
            schema = &*self.name,
            subject,
            sequence,
            violation = compiled.violation(payload),
            suppressed,
            "payload does not match its schema"
        );
        false
    }
}

impl ViolationLog {
    /// Returns how many violations were not logged since the last line, if one is logged now.
    fn next(&mut self, now: Instant) -> Option<u64> {
        let is_soon = |last| now.saturating_duration_since(last) < LOG_AGAIN_AFTER;
        if self.last.is_some_and(is_soon) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_logged_once_in_ten_seconds_with_the_number_of_others() {
        let (mut log, start) = (ViolationLog::default(), Instant::now());
        assert_eq!(log.next(start), Some(0));
        for _ in 0..3 {
            assert_eq!(log.next(start + Duration::from_secs(9)), None);
        }
        assert_eq!(log.next(start + LOG_AGAIN_AFTER), Some(3));
    }
}
