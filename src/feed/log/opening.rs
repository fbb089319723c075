//! How a reader of a log begins: at the head, in the window, or with a replay of the archive.

use std::sync::Arc;

use crate::sse::{Component, Tag};
use crate::subject::FilterSet;

use super::Log;
use crate::feed::archive::{State, Unavailable};
use crate::feed::resume::{self, Check, Decision, View};
use crate::feed::source::Origin;
use crate::feed::{Cursor, Gap, GapReason, OpenError, Opened, Outcome, Profile, Start};

impl Log {
    /// Opens a reader.
    ///
    /// # Errors
    /// [`OpenError`] before the writer began, when the source does not say what it has to be asked, or at a limit.
    pub async fn open(
        self: &Arc<Self>,
        filters: FilterSet,
        profile: &Arc<Profile>,
        start: Start,
    ) -> Result<Opened, OpenError> {
        // The reader joins at the head before anything is asked: what comes meanwhile is not missed.
        let mut cursor = self.join(filters, profile)?;
        let at = match start {
            Start::Live => return Ok(Opened { cursor, outcome: Outcome::Live }),
            Start::Lost(reason) => {
                return Ok(Opened { cursor, outcome: Outcome::Gap(Gap { reason, missed: None }) });
            }
            Start::After(at) => at,
        };
        let (mut source, mut check) = (None, Check::Unknown);
        loop {
            let view = self.view(&cursor, at, source, check).ok_or(OpenError::NotReady)?;
            match resume::decide(at, &view) {
                Decision::Outcome(outcome) => {
                    let first = view.source.map_or(view.floor, |source| source.first_seq.saturating_sub(1));
                    self.place(&mut cursor, outcome, at, first)?;
                    return Ok(Opened { cursor, outcome });
                }
                Decision::AskState => source = Some(self.ask_state(at.seq, &view).await?),
                Decision::AskCheck => check = self.ask_check(at.seq).await?,
            }
        }
    }

    /// A reader at the head.
    fn join(self: &Arc<Self>, filters: FilterSet, profile: &Arc<Profile>) -> Result<Cursor, OpenError> {
        let mut state = self.lock();
        let head = state.head.filter(|_| state.is_ready()).ok_or(OpenError::NotReady)?;
        let feed = state.feed(filters, profile, self, head.tag)?;
        let end = feed.lock().window.end_place();
        let key = feed.join(end, head);
        drop(state);
        self.budget.enforce(); // A feed that was made just now has entries of its own.
        Ok(Cursor::new(Origin::Log(self.clone()), feed, key, end, head))
    }

    /// How things stand for a reader that was at `at`.
    fn view(&self, cursor: &Cursor, at: Component, source: Option<State>, check: Check) -> Option<View> {
        let state = self.lock();
        let head = state.head?;
        let floor = cursor.feed().lock().window.floor();
        let known = state.check_at(at.seq).map_or(check, Check::Is);
        let (source, check) = match &self.replayer {
            Some(_) => (source, known),
            // Nobody to ask: what is in memory is all there is, and what is ahead of it is believed.
            None => {
                let all = State { tag: head.tag, first_seq: floor.saturating_add(1), last_seq: u64::MAX };
                (Some(all), if known == Check::Unknown { Check::Nothing } else { known })
            }
        };
        Some(View { tag: head.tag, floor, head: head.seq, source, check })
    }

    /// Moves a reader from the head to where its outcome begins. `first`: before the oldest that the source retains.
    fn place(&self, cursor: &mut Cursor, outcome: Outcome, at: Component, first: u64) -> Result<(), OpenError> {
        let position = match outcome {
            Outcome::Window | Outcome::Archive => at,
            Outcome::Gap(gap) if gap.reason == GapReason::Expired => Component { seq: first, check: None, ..at },
            Outcome::Live | Outcome::Gap(_) => return Ok(()),
        };
        if cursor.seek(position) || cursor.replay(position) || self.replayer.is_none() {
            Ok(())
        } else {
            Err(OpenError::TooManyReplays)
        }
    }

    async fn ask_state(&self, seq: u64, view: &View) -> Result<State, OpenError> {
        let Some(replayer) = &self.replayer else { return Err(OpenError::NotReady) };
        match replayer.archive().state(seq).await {
            Ok(state) => Ok(state),
            // Any other tag says it.
            Err(Unavailable::Changed) => Ok(State { tag: Tag::of_identity(""), first_seq: 0, last_seq: view.head }),
            Err(Unavailable::Now(_)) => Err(OpenError::NotReady),
        }
    }

    async fn ask_check(&self, seq: u64) -> Result<Check, OpenError> {
        let Some(replayer) = &self.replayer else { return Ok(Check::Nothing) };
        match replayer.archive().check(seq).await {
            Ok(found) => Ok(found.map_or(Check::Nothing, Check::Is)),
            Err(Unavailable::Changed) => Ok(Check::Nothing),
            Err(Unavailable::Now(_)) => Err(OpenError::NotReady),
        }
    }
}
