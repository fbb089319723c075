//! What JetStream still has of one stream, for those whose position is no longer in memory.

mod outlook;
mod reader;

use std::sync::{Arc, Mutex, PoisonError};

use super::{JetStreamError, Nats};
use crate::feed::archive::{Archive, BoxFuture, Pages, State, Unavailable};
use crate::nats::decode::decoder::EventDecoder;
use crate::sse::SourceTag;
use crate::subject::FilterSet;
use outlook::Outlook;
use reader::HistoryReader;

/// One JetStream stream as an archive.
#[derive(Debug)]
pub(super) struct JetStreamArchive(Arc<StreamHandle_>);

/// What every reading of one stream needs.
#[derive(Debug)]
struct StreamHandle_ {
    nats: Nats,
    stream: String,
    identity: Option<String>,
    /// Everything that can be asked of it: what NATS is asked for when a reading wants too many filters.
    all: FilterSet,
    intake: EventDecoder,
    /// The tag that was told last: what a reading is asked to read.
    told: Mutex<Option<SourceTag>>,
    outlook: Outlook,
}

impl JetStreamArchive {
    pub(super) fn new(nats: Nats, stream: &str, identity: Option<&str>, all: &FilterSet) -> Self {
        let intake = EventDecoder::new(&nats.0.metrics, stream);
        let (stream, identity) = (stream.to_owned(), identity.map(ToOwned::to_owned));
        let (told, outlook) = (Mutex::default(), Outlook::default());
        Self(Arc::new(StreamHandle_ {
            nats,
            stream,
            identity,
            all: all.clone(),
            intake,
            told,
            outlook,
        }))
    }

    /// Begins to read what these filters select of the stream that has this tag.
    pub(super) fn read_as(
        &self,
        filters: &FilterSet,
        after: u64,
        tag: SourceTag,
    ) -> impl Pages + use<> {
        HistoryReader::new(Arc::clone(&self.0), filters.clone(), after, Some(tag))
    }
}

impl Archive for JetStreamArchive {
    fn state(&self, seq: u64) -> BoxFuture<'_, State> {
        Box::pin(async move {
            let place = &self.0;
            let state = place
                .nats
                .stream_state(&place.stream, seq)
                .await
                .and_then(super::StreamState::shareable);
            let state = state.map_err(|trouble| place.unavailable(&trouble))?;
            let tag = state.tag(&place.stream, place.identity.as_deref());
            *place.told.lock().unwrap_or_else(PoisonError::into_inner) = Some(tag);
            Ok(State {
                tag,
                first_seq: state.first_seq,
                last_seq: state.last_seq,
            })
        })
    }

    fn fingerprint(&self, seq: u64) -> BoxFuture<'_, Option<u16>> {
        Box::pin(async move {
            if seq == 0 {
                return Ok(None); // Before the first message; the server takes it for no number at all.
            }
            let place = &self.0;
            let check = place.nats.message_check(&place.stream, seq).await;
            check.map_err(|trouble| place.unavailable(&trouble))
        })
    }

    fn is_rejecting(&self) -> bool {
        self.0.outlook.is_rejecting()
    }

    fn read(&self, filters: &FilterSet, after: u64) -> Box<dyn Pages> {
        let told = *self.0.told.lock().unwrap_or_else(PoisonError::into_inner);
        Box::new(HistoryReader::new(
            Arc::clone(&self.0),
            filters.clone(),
            after,
            told,
        ))
    }
}

impl StreamHandle_ {
    /// The error for readers. A permanent one is reported.
    fn unavailable(self: &Arc<Self>, trouble: &JetStreamError) -> Unavailable {
        if !trouble.is_permanent() {
            return Unavailable::Temporary(trouble.explain(&self.stream));
        }
        outlook::report(self, trouble);
        Unavailable::Rejected(trouble.explain(&self.stream))
    }
}
