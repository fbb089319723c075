//! Subjects of a stream's messages, and the subjects of its events: those of a KV bucket are keys.
//!
//! ```text
//! bucket PRICES   message $KV.PRICES.eur.usd  -> event   eur.usd
//!                 filter  eur.*               -> request $KV.PRICES.eur.*
//! other streams   the same on both sides
//! ```
//!
//! Everything that asks the server for messages or decodes them passes through here. The rest of the
//! program knows the subjects of events only.

use async_nats::Message;

use super::api::Api;
use super::error::JetStreamError;
use super::stream_state::StreamState;
use crate::nats::decode::message::MessageFields;
use crate::subject::{BucketName, Filter, FilterSet};

/// Subjects of one stream.
#[derive(Clone, Debug, Default)]
pub(in crate::nats) struct StreamSubjects {
    /// Beginning of every subject of the stream that its events do not have. `None`: they have the
    /// subjects of the messages.
    prefix: Option<Box<str>>,
}

impl StreamSubjects {
    /// Subjects of the stream of a KV bucket, or of any other stream.
    pub(in crate::nats) fn of(bucket: Option<&BucketName>) -> Self {
        Self {
            prefix: bucket.map(|bucket| bucket.subject_prefix().into()),
        }
    }

    /// Returns the state of a stream that many clients can read.
    ///
    /// # Errors
    /// Those of [`StreamState::shareable`]; [`JetStreamError::NotABucket`] for a stream that does not
    /// store the keys of the bucket.
    pub(in crate::nats) fn shareable(
        &self,
        mut state: StreamState,
    ) -> Result<StreamState, JetStreamError> {
        let Some(prefix) = &self.prefix else {
            return state.shareable();
        };
        let keys = format!("{prefix}>");
        if !state.subjects.contains(&keys) {
            return Err(JetStreamError::NotABucket { keys });
        }
        state.unservable = None;
        state.shareable()
    }

    /// Filters to request from this server so that it delivers everything that the set selects.
    pub(in crate::nats) fn server_filters(&self, api: &Api, wanted: &FilterSet) -> Vec<Filter> {
        let mut filters = wanted.disjoint();
        if filters.len() > 1 && !api.is_server_at_least(2, 10) {
            // NATS 2.9 accepts several filters and ignores them.
            let widest = filters.into_iter().reduce(|one, other| one.widened(&other));
            filters = widest.into_iter().collect();
        }
        self.requested(filters)
    }

    /// Filters to request for those of events.
    pub(in crate::nats) fn requested(&self, filters: Vec<Filter>) -> Vec<Filter> {
        let Some(prefix) = &self.prefix else {
            return filters;
        };
        filters
            .iter()
            .map(|filter| filter.prefixed(prefix))
            .collect()
    }

    /// Subject of the event for a message with this subject.
    pub(in crate::nats) fn of_event<'s>(&self, subject: &'s str) -> &'s str {
        let Some(prefix) = &self.prefix else {
            return subject;
        };
        // Anything else is reserved by NATS, and no filter selects it.
        subject.strip_prefix(&**prefix).unwrap_or(subject)
    }

    /// Fields of a message, with the subject of its event.
    pub(in crate::nats) fn fields<'m>(&self, message: &'m Message) -> MessageFields<'m> {
        let fields = MessageFields::of(message);
        MessageFields {
            subject: self.of_event(fields.subject),
            ..fields
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(texts: &[&str]) -> Vec<Filter> {
        texts
            .iter()
            .map(|text| Filter::parse(text).unwrap())
            .collect()
    }

    #[test]
    fn keys_of_a_bucket_are_the_subjects_of_its_events() {
        let bucket = BucketName::parse("PRICES").unwrap();
        let subjects = StreamSubjects::of(Some(&bucket));
        let requested = subjects.requested(filters(&["eur.*", ">"]));
        let requested: Vec<_> = requested.iter().map(Filter::as_str).collect();
        assert_eq!(requested, ["$KV.PRICES.eur.*", "$KV.PRICES.>"]);
        assert_eq!(subjects.of_event("$KV.PRICES.eur.usd"), "eur.usd");
        // A message that the stream has from elsewhere.
        let other = subjects.of_event("$KV.OTHER.eur.usd");
        assert!(!filters(&[">"])[0].matches(other));
    }

    #[test]
    fn other_streams_have_the_same_subjects_on_both_sides() {
        let subjects = StreamSubjects::of(None);
        assert_eq!(subjects.requested(filters(&["a.*"])), filters(&["a.*"]));
        assert_eq!(subjects.of_event("a.b"), "a.b");
    }
}
