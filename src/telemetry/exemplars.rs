//! Exemplars of a histogram: for each bucket the last observation of a sampled event, with its trace.

use std::sync::Mutex;
use std::time::SystemTime;

use super::trace::samples::SpanIds;

/// Exemplars of one histogram, one for each bucket and one beyond the last.
#[derive(Debug)]
pub struct Exemplars {
    bounds: &'static [f64],
    buckets: Box<[Mutex<Option<Exemplar>>]>,
}

/// One observation and its span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exemplar {
    /// Observed value.
    pub value: f64,
    /// Ids of the span.
    pub ids: SpanIds,
    /// Time of the observation.
    pub at: SystemTime,
}

impl Exemplars {
    pub(super) fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| Mutex::default()).collect(),
        }
    }

    /// Replaces the exemplar of the bucket. Does nothing while another thread does the same.
    #[cold]
    pub fn record(&self, value: f64, ids: SpanIds) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        if let Some(Ok(mut exemplar)) = self.buckets.get(bucket).map(Mutex::try_lock) {
            let at = SystemTime::now();
            *exemplar = Some(Exemplar { value, ids, at });
        }
    }

    /// Returns the exemplars in the order of the buckets.
    pub(super) fn all(&self) -> Vec<Option<Exemplar>> {
        let exemplar = |bucket: &Mutex<Option<Exemplar>>| bucket.lock().ok().and_then(|it| *it);
        self.buckets.iter().map(exemplar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exemplar_belongs_to_the_bucket_of_its_value() {
        let exemplars = Exemplars::new(&[0.1, 1.0]);
        let ids = SpanIds {
            trace_id: 1,
            span_id: 2,
        };
        for value in [0.05, 0.1, 0.5, 7.0] {
            exemplars.record(value, ids);
        }
        let values = exemplars.all().into_iter();
        let values: Vec<_> = values.map(|exemplar| exemplar.unwrap().value).collect();
        assert_eq!(values, [0.1, 0.5, 7.0]);
    }
}
