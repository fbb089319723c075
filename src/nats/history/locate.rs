//! Beginnings as positions: the first event, the first since a time, or the last of some filters.
//!
//! JetStream has no request for "the last fifty messages of these filters". It counts the messages
//! that a new consumer has pending, so a few consumers at earlier and earlier sequences find a start
//! with enough of them ([`Search`]); one more reads the headers of the few that are too many. A time
//! is found by a search over publish times, because only servers from 2.11 on accept a time in
//! `STREAM.MSG.GET`, and a replica that lags must not answer.
//!
//! ```text
//! First: stream state ------------------------------------------> first_seq - 1
//! Since: stream state -> next message from a sequence, bisected -> before the first at that time
//! Last:  stream state -> consumers, counted -> surplus skipped --> before the Nth last
//! ```

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::read_health::StreamContext;
use crate::event::Position;
use crate::feed::Begin;
use crate::nats::jetstream::api::JetStreamError;
use crate::nats::jetstream::consumer::{self, Consumer, Received, Spec, sequence};
use crate::nats::jetstream::stream_state::StreamState;
use crate::subject::{Filter, FilterSet};

/// 1024 messages that are too many are skipped by reading their headers: a few milliseconds. More of
/// them cost another consumer.
const SURPLUS_MAX: u64 = 1024;

/// 64 consumers at most: twice as many as a search over all sequence numbers of a busy stream needs.
const PROBES_MAX: u32 = 64;

/// 128 requests at most: each second one halves the range.
const REQUESTS_MAX: u32 = 128;

/// 10 s to skip the surplus.
const SKIP_TIMEOUT: Duration = Duration::from_secs(10);

/// Search for a start with at least as many pending messages as are wanted, and not many more.
#[derive(Debug)]
struct Search {
    wanted: u64,
    /// Oldest possible start.
    oldest: u64,
    /// Latest start with enough messages, and their number.
    enough: Option<(u64, u64)>,
    /// Earliest start with too few; the end of the stream has none.
    too_few: u64,
    /// Distance of the next start from `too_few` while no start has enough.
    step: u64,
}

impl StreamContext {
    /// Returns the position directly before the first event of a beginning.
    pub(super) async fn locate(
        self: &Arc<Self>,
        begin: Begin,
        filters: &FilterSet,
    ) -> Result<Position, JetStreamError> {
        // Above every last sequence: a state that is newer than the call.
        let state = self.nats.stream_state(&self.stream, u64::MAX).await?;
        let state = self.subjects.shareable(state)?;
        let after = match begin {
            Begin::First | Begin::Latest => state.first_seq - 1,
            Begin::Since(time) => self.before_time(&state, unix_nanos(time)).await?,
            Begin::Last(count) => self.before_last(&state, count.get(), filters).await?,
        };
        let fingerprint = match begin {
            // The message before the first is gone.
            Begin::First | Begin::Latest => None,
            _ if after < state.first_seq => None,
            _ => self.nats.message_fingerprint(&self.stream, after).await?,
        };
        Ok(Position {
            tag: state.tag(&self.stream, self.identity.as_deref()),
            seq: after,
            fingerprint,
        })
    }

    /// Sequence before the first message that was published at a time or later.
    async fn before_time(&self, state: &StreamState, time: i128) -> Result<u64, JetStreamError> {
        if state.last_seq < state.first_seq || time <= state.first_time {
            return Ok(state.first_seq - 1);
        }
        if time > state.last_time {
            return Ok(state.last_seq);
        }
        // The start is within `low..=high`: earlier messages are older, and `high` is not.
        let (mut low, mut high) = (state.first_seq, state.last_seq);
        let (mut low_time, mut high_time) = (state.first_time, state.last_time);
        for request in 0..REQUESTS_MAX {
            if low >= high {
                break;
            }
            let middle = if request.is_multiple_of(2) {
                interpolate(low..high, low_time..high_time, time)
            } else {
                low.midpoint(high)
            };
            let api = &self.nats.0.api;
            match api.stored_from(&self.stream, middle).await? {
                Some(stored) if stored.published < time => {
                    low = stored.sequence + 1;
                    low_time = stored.published;
                }
                Some(stored) => {
                    high = middle;
                    high_time = stored.published;
                }
                None => high = middle,
            }
        }
        Ok(low - 1)
    }

    /// Sequence before the last messages of some filters, as many as `count`.
    async fn before_last(
        self: &Arc<Self>,
        state: &StreamState,
        count: u64,
        filters: &FilterSet,
    ) -> Result<u64, JetStreamError> {
        let api = &self.nats.0.api;
        let filters = self.subjects.server_filters(api, filters);
        let mut search = Search::new(count, state);
        for _ in 0..PROBES_MAX {
            let Some(start) = search.next() else { break };
            let pending = self.count_pending(&filters, start).await?;
            search.record(start, pending);
        }
        match search.enough {
            // All that there is.
            None => Ok(state.first_seq - 1),
            Some((start, pending)) if pending == count => Ok(start - 1),
            Some((start, _)) => self.skip_surplus(filters, start, count).await,
        }
    }

    /// Number of messages from a sequence on that filters select.
    async fn count_pending(&self, filters: &[Filter], start: u64) -> Result<u64, JetStreamError> {
        let inner = &self.nats.0;
        let spec = self.locating(filters.to_vec(), start);
        let info = spec.create(&inner.api).await;
        inner.api.delete_later(&self.stream, &spec.name).await;
        inner.metrics.consumers_created_total.inc();
        info.map(|info| info.num_pending)
    }

    /// Skips messages from a sequence on until only `count` are left, and returns the sequence of the
    /// last that was skipped.
    async fn skip_surplus(
        &self,
        filters: Vec<Filter>,
        start: u64,
        count: u64,
    ) -> Result<u64, JetStreamError> {
        let inner = &self.nats.0;
        let spec = self.locating(filters, start);
        let name = spec.name.clone();
        let skipped = tokio::time::timeout(SKIP_TIMEOUT, async {
            let mut consumer =
                Consumer::create(&inner.api, inner.connections.replay.clone(), spec).await?;
            inner.metrics.consumers_created_total.inc();
            let mut surplus = consumer.pending.saturating_sub(count);
            let mut after = start - 1;
            while surplus > 0 {
                let Received { messages, lost, .. } = consumer.receive().await;
                for (info, _) in messages
                    .iter()
                    .take(usize::try_from(surplus).unwrap_or(usize::MAX))
                {
                    after = info.sequence;
                    surplus -= 1;
                }
                if let Some(lost) = lost {
                    return Err(JetStreamError::Failed(format!("consumer lost: {lost:?}")));
                }
            }
            Ok(after)
        })
        .await;
        inner.api.delete_later(&self.stream, &name).await;
        skipped.map_err(|_| JetStreamError::Timeout)?
    }

    /// Consumer that counts messages from a sequence on, or reads their headers.
    fn locating(&self, filters: Vec<Filter>, start: u64) -> Spec {
        let inner = &self.nats.0;
        Spec {
            stream: self.stream.clone(),
            name: consumer::name(&inner.api, &inner.identity, &self.stream, "b"),
            filters,
            from: sequence(start),
            batch: 256,
            bytes: 1 << 20,
            headers_only: true,
        }
    }
}

impl Search {
    fn new(wanted: u64, state: &StreamState) -> Self {
        Self {
            wanted,
            oldest: state.first_seq,
            enough: None,
            too_few: state.last_seq.saturating_add(1).max(state.first_seq),
            // Enough if every message of the stream matches.
            step: wanted,
        }
    }

    /// Returns the next start to count from; `None` if the search is over.
    fn next(&self) -> Option<u64> {
        match self.enough {
            Some((_, pending)) if pending - self.wanted <= SURPLUS_MAX => None,
            Some((start, _)) => {
                let middle = start.midpoint(self.too_few);
                (middle > start).then_some(middle)
            }
            None => (self.too_few > self.oldest).then(|| {
                let start = self.too_few.saturating_sub(self.step);
                start.max(self.oldest)
            }),
        }
    }

    /// Records how many messages are pending from a start on.
    fn record(&mut self, start: u64, pending: u64) {
        if pending >= self.wanted {
            self.enough = Some((start, pending));
            return;
        }
        // As far again as was searched, or more if few messages match.
        let missing = (self.wanted - pending).saturating_mul(2);
        let searched = self.step.saturating_mul(2);
        let sparse = searched.saturating_mul(missing) / pending.max(1);
        self.step = searched.max(sparse.min(searched.saturating_mul(64)));
        self.too_few = start;
    }
}

/// Sequence at a time, as if the messages between had been published evenly; not `sequences.end`.
fn interpolate(sequences: std::ops::Range<u64>, times: std::ops::Range<i128>, time: i128) -> u64 {
    let (span, passed) = (times.end - times.start, time - times.start);
    let count = sequences.end - sequences.start;
    if span <= 0 || count == 0 {
        return sequences.start;
    }
    let offset = i128::from(count)
        .saturating_mul(passed.clamp(0, span))
        .checked_div(span)
        .and_then(|offset| u64::try_from(offset).ok())
        .unwrap_or(0);
    sequences.start + offset.min(count - 1)
}

fn unix_nanos(time: SystemTime) -> i128 {
    let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).unwrap_or(i128::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(after) => nanos(after),
        Err(before) => -nanos(before.duration()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn interpolated_sequence_is_within_the_range() {
        assert_eq!(interpolate(1..101, 0..100, 50), 51);
        assert_eq!(interpolate(1..101, 0..100, 100), 100);
        assert_eq!(interpolate(7..8, 0..100, 100), 7);
        assert_eq!(interpolate(7..9, 5..5, 5), 7);
        assert_eq!(interpolate(7..9, 5..6, 9), 8);
    }

    proptest! {
        /// Sequences of matching messages, wanted messages, and whether the search finds a start
        /// from which exactly these are left after the surplus.
        #[test]
        fn search_finds_a_start_with_enough_messages_and_a_small_surplus(
            gaps in proptest::collection::vec(prop_oneof![1u64..3, 1u64..2000, 100_000u64..1_000_000], 0..300),
            dense in 0u64..5000,
            wanted in 1u64..400,
        ) {
            let mut matching: Vec<u64> = (1..=dense).collect();
            let mut last = dense;
            for gap in gaps {
                last += gap;
                matching.push(last);
            }
            let end = last + 1;
            let mut search = Search {
                wanted,
                oldest: 1,
                enough: None,
                too_few: end,
                step: wanted,
            };
            let mut probes = 0;
            while let Some(start) = search.next() {
                probes += 1;
                prop_assert!(probes <= PROBES_MAX, "{search:?}");
                prop_assert!((1..end).contains(&start));
                let before = matching.partition_point(|seq| *seq < start);
                search.record(start, (matching.len() - before) as u64);
            }
            match search.enough {
                None => prop_assert!((matching.len() as u64) < wanted),
                Some((_, pending)) => {
                    prop_assert!(pending >= wanted && pending - wanted <= SURPLUS_MAX);
                }
            }
        }
    }
}
