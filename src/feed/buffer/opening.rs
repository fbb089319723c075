//! How a reader of a log begins: at the head, in the window, or with a replay of the archive.

use std::sync::Arc;

use crate::sse::Position;
use crate::subject::FilterSet;

use super::StreamBuffer;
use crate::feed::history::State;
use crate::feed::opening;
use crate::feed::resume::{Check, View};
use crate::feed::source::Origin;
use crate::feed::{Cursor, FeedOptions, Gap, OpenError, Opened, Outcome, Start};

impl StreamBuffer {
    /// Opens a reader.
    ///
    /// # Errors
    /// [`OpenError`] before the writer began, when the source does not say what it has to be asked, or at a limit.
    pub async fn open(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        // The reader joins at the head before anything is asked: what comes meanwhile is not missed.
        let mut cursor = self.join(filters, profile)?;
        let outcome = match start {
            Start::Live => Outcome::Live,
            Start::Lost(reason) => Outcome::Gap(Gap {
                reason,
                missed: None,
            }),
            Start::After(at) => {
                let archive = self.replayer.as_ref().map(|replayer| &**replayer.archive());
                let view = |cursor: &Cursor, source, check| self.view(cursor, at, source, check);
                opening::place(&mut cursor, at, archive, view).await?
            }
        };
        Ok(Opened { cursor, outcome })
    }

    /// A reader at the head.
    fn join(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<FeedOptions>,
    ) -> Result<Cursor, OpenError> {
        let mut state = self.lock();
        if state.rejected {
            return Err(OpenError::Rejected);
        }
        let head = state
            .head
            .filter(|_| state.is_ready())
            .ok_or(OpenError::NotReady)?;
        let feed = state.feed(filters, profile, self, head.tag)?;
        let end = feed.lock().window.end_place();
        let key = feed.join(end, head);
        drop(state);
        self.budget.enforce(); // A feed that was made just now has entries of its own.
        Ok(Cursor::new(
            Origin::JetStream(self.clone()),
            feed,
            key,
            end,
            head,
        ))
    }

    /// How things stand for a reader that was at `at`.
    fn view(
        &self,
        cursor: &Cursor,
        at: Position,
        source: Option<State>,
        check: Check,
    ) -> Option<View> {
        let state = self.lock();
        let head = state.head?;
        let floor = cursor.feed().lock().window.floor();
        let known = state.check_at(at.seq).map_or(check, Check::Is);
        let (source, check) = match &self.replayer {
            Some(_) => (source, known),
            // Nobody to ask: what is in memory is all there is, and what is ahead of it is believed.
            None => {
                let all = State {
                    tag: head.tag,
                    first_seq: floor.saturating_add(1),
                    last_seq: u64::MAX,
                };
                (
                    Some(all),
                    if known == Check::Unknown {
                        Check::Nothing
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
            check,
        })
    }
}
