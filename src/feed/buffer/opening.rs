//! Opening a reader of a stream buffer: live, from the window, or with a replay.
//!
//! The reader joins its feed at the head first, and only then the archive is asked where to resume
//! from: events that arrive meanwhile are already in its window.

use std::sync::Arc;

use crate::event::Position;
use crate::subject::FilterSet;

use super::StreamBuffer;
use crate::feed::archive::State;
use crate::feed::opening;
use crate::feed::resume::{StoredFingerprint, View};
use crate::feed::{Cursor, FeedOptions, Gap, OpenError, Opened, Outcome, Start};

/// 64 conversions between two yields: about as long as a step of the dispatcher.
const CONVERSIONS_PER_STEP: usize = 64;

impl StreamBuffer {
    pub(super) async fn open_reader(
        &self,
        filters: FilterSet,
        options: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        self.convert_seeds(&filters, options).await;
        // Join before asking the archive; otherwise events that arrive meanwhile would be lost.
        let mut cursor = self.join(filters, options)?;
        let mut snapshot = None;
        let outcome = match start {
            Start::Live => Outcome::Live,
            Start::Begin(begin) => match &self.replay_pool {
                Some(replays) => {
                    let begun =
                        opening::begin_at(&mut cursor, begin, replays, &self.snapshots).await?;
                    snapshot = begun.1;
                    begun.0
                }
                None => Outcome::Live,
            },
            Start::Unknown(reason) => Outcome::Gap(Gap::uncounted(reason)),
            Start::After(at) => {
                let archive = self
                    .replay_pool
                    .as_ref()
                    .map(|replay_pool| &**replay_pool.archive());
                let view = |cursor: &Cursor, source, fingerprint| {
                    self.view(cursor, at, source, fingerprint)
                };
                opening::resume(&mut cursor, at, archive, view).await?
            }
        };
        Ok(Opened {
            cursor,
            outcome,
            snapshot,
        })
    }

    /// Converts the events in memory that a new feed of another version has, before they are needed
    /// under the lock. The task yields from time to time: a conversion takes microseconds, and there
    /// may be thousands.
    async fn convert_seeds(&self, filters: &FilterSet, options: &Arc<FeedOptions>) {
        let Some(converter) = &options.converter else {
            return;
        };
        let seeds = self.lock().seeds(filters, options);
        for some in seeds.chunks(CONVERSIONS_PER_STEP) {
            for encoded in some {
                let _made = encoded.convert(converter);
            }
            tokio::task::yield_now().await;
        }
    }

    /// Creates a reader at the head.
    fn join(&self, filters: FilterSet, options: &Arc<FeedOptions>) -> Result<Cursor, OpenError> {
        let mut state = self.lock();
        if state.rejected {
            return Err(OpenError::Rejected);
        }
        let head = state
            .head
            .filter(|_| state.is_ready())
            .ok_or(OpenError::NotReady)?;
        let feed = state.feed(filters, options, self, head.tag)?;
        let end = feed.lock().window.end_offset();
        let cursor = Cursor::join(self.me.clone(), feed, end, head);
        drop(state);
        self.budget.enforce(); // A new feed has entries of its own.
        Ok(cursor)
    }

    /// State of the source as seen from the position `at`.
    fn view(
        &self,
        cursor: &Cursor,
        at: Position,
        source: Option<State>,
        fingerprint: StoredFingerprint,
    ) -> Option<View> {
        let state = self.lock();
        let head = state.head?;
        let floor = cursor.feed().lock().window.floor();
        let known = state
            .fingerprint_at(at.seq)
            .map_or(fingerprint, StoredFingerprint::Found);
        let (source, fingerprint) = match &self.replay_pool {
            Some(_) => (source, known),
            // No archive: memory is all there is, and a position ahead of it is accepted.
            None => {
                let all = State {
                    tag: head.tag,
                    first_seq: floor.saturating_add(1),
                    last_seq: u64::MAX,
                };
                (
                    Some(all),
                    if known == StoredFingerprint::Unknown {
                        StoredFingerprint::Missing
                    } else {
                        known
                    },
                )
            }
        };
        Some(View {
            tag: head.tag,
            floor,
            head: head.seq,
            source,
            fingerprint,
        })
    }
}
