//! Subjects that the client of a WebSocket adds and removes while the event stream is open.
//!
//! ```text
//! {"subscribe":["orders.7.>"]}      -> {"control":"subscribed","subjects":[...],"id":"..."}
//! {"unsubscribe":["orders.42.>"]}   -> {"control":"unsubscribed","subjects":[...],"id":"..."}
//! anything else                     -> {"control":"error","reason":"bad_message","message":"..."}
//! ```
//!
//! Only a source whose subjects come from the query of the URL (`{query.NAME}`), within `allow`, can be
//! changed: the client could have named them when it connected, and names them when it returns. Every
//! message is applied as a whole or not at all, one after the other, and has one answer.
//!
//! [`Subscriptions`] holds the subjects and the messages that wait; `event_stream::changes` applies
//! them. Both are bounded: [`CHANGES`] limits the rate, [`WAITING_MAX`] the queue, and
//! `limits.subjects_per_request` the set.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use serde::Deserialize;

use crate::encoding::websocket::put_error;
use crate::feed::{OpenError, Opened};
use crate::http::route::Route;
use crate::http::stream_options::StreamOptions;
use crate::limit::config::Rate;
use crate::limit::token_bucket::Bucket;
use crate::subject::{Bounds, Filter, FilterSet};

/// Subjects of one event stream that its client can change.
#[derive(Debug)]
pub(in crate::http) struct Subscriptions {
    pub(in crate::http) sources: Vec<ChosenSubjects>,
    pub(in crate::http) options: StreamOptions,
    /// Highest number of subjects of all sources together.
    subjects_max: usize,
    rate: Bucket,
    waiting: VecDeque<Change>,
    /// The change that is being applied.
    pub(in crate::http) current: Option<CurrentChange>,
}

/// Subjects of one source.
#[derive(Clone, Debug)]
pub(in crate::http) struct ChosenSubjects {
    /// Index of the source in the route.
    pub(in crate::http) source: usize,
    /// The client can change them.
    can_change: bool,
    /// Filters of the claims of `allow`.
    claimed: Option<Vec<Filter>>,
    /// Subjects of the route, which every client reads.
    fixed: Vec<Filter>,
    /// Subjects that the client has named, in this order.
    chosen: Vec<Filter>,
}

/// Message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Change {
    Subscribe(Vec<Filter>),
    Unsubscribe(Vec<Filter>),
}

/// Change whose cursors are being opened.
pub(in crate::http) struct CurrentChange {
    pub(in crate::http) change: Change,
    /// Subjects after it.
    pub(in crate::http) sources: Vec<ChosenSubjects>,
    /// New cursors, with the index of their source.
    pub(in crate::http) opening: BoxFuture<'static, Result<Vec<(usize, Opened)>, OpenError>>,
}

/// Message of a client that is not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) struct NotApplied {
    /// Code, from a closed list.
    pub(in crate::http) reason: &'static str,
    pub(in crate::http) message: String,
    /// Time until a retry can succeed.
    pub(in crate::http) retry: Option<Duration>,
}

/// A message as the client sends it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Message {
    #[serde(default)]
    subscribe: Option<Vec<String>>,
    #[serde(default)]
    unsubscribe: Option<Vec<String>>,
}

/// 10 messages per second, and 50 at once: a page that opens many views. Each change can open a feed.
const CHANGES: Rate = Rate::new(10, 50);

/// 50 messages wait while one is applied: as many as can arrive at once.
const WAITING_MAX: usize = 50;

impl ChosenSubjects {
    /// Subjects of a source. `chosen`: those from the query of the URL, if the source has them.
    pub(in crate::http) fn new(
        source: usize,
        fixed: Vec<Filter>,
        chosen: Option<Vec<Filter>>,
        bounds: Bounds<'_>,
    ) -> Self {
        Self {
            source,
            can_change: chosen.is_some(),
            claimed: bounds.into_claimed(),
            fixed,
            chosen: chosen.unwrap_or_default(),
        }
    }

    /// Returns the set of all subjects.
    pub(in crate::http) fn filters(&self) -> FilterSet {
        FilterSet::new(self.fixed.iter().chain(&self.chosen).cloned())
    }

    fn admits(&self, route: &Route, filter: &Filter) -> bool {
        let filters = &route.sources[self.source].allow.filters;
        self.can_change && Bounds::new(filters, self.claimed.as_deref()).admits(filter)
    }

    fn len(&self) -> usize {
        self.fixed.len() + self.chosen.len()
    }
}

impl Subscriptions {
    /// `None` if the client cannot change the subjects of any source.
    pub(in crate::http) fn new(
        sources: Vec<ChosenSubjects>,
        options: StreamOptions,
        subjects_max: usize,
    ) -> Option<Box<Self>> {
        let can_change = sources.iter().any(|source| source.can_change);
        can_change.then(|| {
            Box::new(Self {
                sources,
                options,
                subjects_max,
                rate: Bucket::new(CHANGES),
                waiting: VecDeque::new(),
                current: None,
            })
        })
    }

    /// Takes a message of the client.
    ///
    /// # Errors
    /// It is not a message of the protocol, or there are too many.
    pub(in crate::http) fn receive(&mut self, text: &str) -> Result<(), NotApplied> {
        if let Err(wait) = self.rate.take(1) {
            return Err(NotApplied {
                retry: Some(wait),
                ..NotApplied::too_many_messages()
            });
        }
        if self.waiting.len() >= WAITING_MAX {
            return Err(NotApplied::too_many_messages());
        }
        self.waiting.push_back(Change::parse(text)?);
        Ok(())
    }

    /// True if a message waits or is being applied.
    pub(in crate::http) fn is_changing(&self) -> bool {
        self.current.is_some() || !self.waiting.is_empty()
    }

    /// Returns the next message that waits.
    pub(in crate::http) fn next(&mut self) -> Option<Change> {
        self.waiting.pop_front()
    }

    /// Discards what is not applied: the event stream ends.
    pub(in crate::http) fn discard(&mut self) {
        self.waiting.clear();
        self.current = None;
    }

    /// Returns the subjects of each source after a change.
    ///
    /// # Errors
    /// The client may not make it.
    pub(in crate::http) fn after(
        &self,
        change: &Change,
        route: &Route,
    ) -> Result<Vec<ChosenSubjects>, NotApplied> {
        let mut sources = self.sources.clone();
        match change {
            Change::Subscribe(filters) => {
                for filter in filters {
                    add(&mut sources, filter, route)?;
                }
            }
            Change::Unsubscribe(filters) => {
                for filter in filters {
                    remove(&mut sources, filter)?;
                }
            }
        }
        let subjects: usize = sources.iter().map(ChosenSubjects::len).sum();
        let most = self.subjects_max.max(sources.len());
        if subjects > most {
            return Err(NotApplied::new(
                "too_many_subjects",
                format!("at most {most} subjects at a time: unsubscribe from others first"),
            ));
        }
        if sources.iter().any(|source| source.len() == 0) {
            return Err(NotApplied::new(
                "last_subject",
                "no subject would be left: subscribe to another one first, or close the WebSocket"
                    .to_owned(),
            ));
        }
        Ok(sources)
    }

    /// Returns the subjects that the client has named, as in the query of the URL.
    pub(in crate::http) fn chosen(&self) -> Vec<&str> {
        let mut subjects: Vec<&str> = Vec::new();
        for filter in self.sources.iter().flat_map(|source| &source.chosen) {
            if !subjects.contains(&filter.as_str()) {
                subjects.push(filter.as_str());
            }
        }
        subjects
    }
}

/// Adds a subject to every source that allows it.
fn add(sources: &mut [ChosenSubjects], filter: &Filter, route: &Route) -> Result<(), NotApplied> {
    let mut is_allowed = false;
    for source in sources {
        if !source.admits(route, filter) {
            continue;
        }
        is_allowed = true;
        if !source.chosen.contains(filter) {
            source.chosen.push(filter.clone());
        }
    }
    if is_allowed {
        return Ok(());
    }
    let message = format!("this route does not allow {filter}");
    Err(NotApplied::new("subject_not_allowed", message))
}

/// Removes a subject from every source.
fn remove(sources: &mut [ChosenSubjects], filter: &Filter) -> Result<(), NotApplied> {
    let mut is_known = false;
    for source in sources {
        let before = source.chosen.len();
        source.chosen.retain(|chosen| chosen != filter);
        is_known |= source.chosen.len() < before;
    }
    if is_known {
        return Ok(());
    }
    let message = format!("there is no subscription to {filter}: name it as it was subscribed");
    Err(NotApplied::new("not_subscribed", message))
}

impl Change {
    fn parse(text: &str) -> Result<Self, NotApplied> {
        let bad = |message: String| NotApplied::new("bad_message", message);
        let message: Message = serde_json::from_str(text)
            .map_err(|error| bad(format!("not a message of sidestream.v1: {error}")))?;
        let (change, subjects): (fn(Vec<Filter>) -> Self, _) = match message {
            Message {
                subscribe: Some(subjects),
                unsubscribe: None,
            } => (Self::Subscribe, subjects),
            Message {
                subscribe: None,
                unsubscribe: Some(subjects),
            } => (Self::Unsubscribe, subjects),
            _ => {
                return Err(bad(
                    "expected either `subscribe` or `unsubscribe`".to_owned()
                ));
            }
        };
        if subjects.is_empty() {
            return Err(bad("the list of subjects is empty".to_owned()));
        }
        let filters = subjects.iter().map(|subject| {
            Filter::parse(subject)
                .map_err(|invalid| NotApplied::new("bad_subject", invalid.explain().to_owned()))
        });
        filters.collect::<Result<_, _>>().map(change)
    }

    /// Name of the answer, and label of the metric.
    pub(in crate::http) fn outcome(&self) -> &'static str {
        match self {
            Self::Subscribe(_) => "subscribed",
            Self::Unsubscribe(_) => "unsubscribed",
        }
    }
}

impl NotApplied {
    pub(in crate::http) fn new(reason: &'static str, message: String) -> Self {
        Self {
            reason,
            message,
            retry: None,
        }
    }

    fn too_many_messages() -> Self {
        Self::new("too_many_messages", "too many messages: wait".to_owned())
    }

    /// The subjects of the route, or of its sources, cannot be changed.
    pub(in crate::http) fn unsupported() -> Self {
        Self::new(
            "not_supported",
            "no source of this route takes subjects from the query within `allow`".to_owned(),
        )
    }

    /// Appends the answer.
    pub(in crate::http) fn put(&self, out: &mut BytesMut) {
        put_error(out, self.reason, &self.message, self.retry);
    }

    /// A message that is not text.
    pub(in crate::http) fn binary() -> Self {
        Self::new("bad_message", "a message is text with JSON".to_owned())
    }
}

impl From<OpenError> for NotApplied {
    fn from(error: OpenError) -> Self {
        let (reason, message) = match error {
            OpenError::NotReady => ("nats_not_connected", "NATS does not answer"),
            OpenError::Rejected => ("nats_rejected", "NATS rejects the request"),
            OpenError::TooManyFeeds => ("too_many_feeds", "the pod has too many feeds"),
            OpenError::TooManyReplays => ("too_many_replays", "the pod reads too much history"),
            OpenError::StateTooLarge => ("state_too_large", "the state exceeds the memory"),
        };
        Self::new(reason, format!("{message}; the subjects are as before"))
    }
}

impl std::fmt::Debug for CurrentChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CurrentChange({:?})", self.change)
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
    fn a_message_has_one_list_of_subjects() {
        let parse = |text: &str| Change::parse(text).map_err(|error| error.reason);
        assert_eq!(
            parse(r#"{"subscribe":["a.*","b"]}"#),
            Ok(Change::Subscribe(filters(&["a.*", "b"])))
        );
        assert_eq!(
            parse(r#" {"unsubscribe": ["a.*"]} "#),
            Ok(Change::Unsubscribe(filters(&["a.*"])))
        );
        for text in [
            "",
            "hello",
            "[]",
            "{}",
            "null",
            r#"{"subscribe":[]}"#,
            r#"{"subscribe":"a"}"#,
            r#"{"subscribe":[1]}"#,
            r#"{"subscribe":["a"],"unsubscribe":["b"]}"#,
            r#"{"subscribe":["a"],"id":1}"#,
            r#"{"subscribe":["a"]}{"subscribe":["b"]}"#,
        ] {
            assert_eq!(parse(text), Err("bad_message"), "{text}");
        }
        for subject in ["", "a b", "$SYS.>", "a..b", "a>"] {
            let text = serde_json::json!({ "subscribe": ["a", subject] }).to_string();
            assert_eq!(parse(&text), Err("bad_subject"), "{text}");
        }
        let nested = format!(
            r#"{{"subscribe":{}{}}}"#,
            "[".repeat(8000),
            "]".repeat(8000)
        );
        assert_eq!(parse(&nested), Err("bad_message"));
    }

    #[test]
    fn messages_are_limited_in_rate_and_number() {
        let options = StreamOptions::new(crate::feed::FeedOptions::default());
        let source = ChosenSubjects {
            source: 0,
            can_change: true,
            claimed: None,
            fixed: Vec::new(),
            chosen: filters(&["a"]),
        };
        let mut subscriptions = Subscriptions::new(vec![source], options, 16).unwrap();
        let results: Vec<_> = (0..60)
            .map(|_| subscriptions.receive(r#"{"subscribe":["a"]}"#))
            .collect();
        assert!(results[..50].iter().all(Result::is_ok));
        let rejected = results[59].clone().unwrap_err();
        assert_eq!(rejected.reason, "too_many_messages");
        assert!(rejected.retry.is_some());
    }
}
