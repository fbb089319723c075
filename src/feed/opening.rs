//! Where a reader begins that comes with a position: the rules of resuming, with whoever has to be asked for them.

use crate::sse::{Position, SourceTag};

use super::history::{Archive, State, Unavailable};
use super::resume::{self, Check, Decision, View};
use super::{Cursor, GapReason, OpenError, Outcome};

/// Moves a reader that has joined at the head to where it begins that was at `at`. `view` says how things stand for it,
/// given what the archive has said so far.
pub(super) async fn place(
    cursor: &mut Cursor,
    at: Position,
    archive: Option<&dyn Archive>,
    view: impl Fn(&Cursor, Option<State>, Check) -> Option<View>,
) -> Result<Outcome, OpenError> {
    let (mut source, mut check) = (None, Check::Unknown);
    loop {
        let view = view(cursor, source, check).ok_or(OpenError::NotReady)?;
        match resume::decide(at, &view) {
            Decision::Outcome(outcome) => {
                let first = view
                    .source
                    .map_or(view.floor, |source| source.first_seq.saturating_sub(1));
                begin(cursor, outcome, at, first, archive)?;
                return Ok(outcome);
            }
            Decision::AskState => source = Some(ask_state(archive, at.seq, &view).await?),
            Decision::AskCheck => check = ask_check(archive, at.seq).await?,
        }
    }
}

/// `first`: before the oldest that the source retains.
fn begin(
    cursor: &mut Cursor,
    outcome: Outcome,
    at: Position,
    first: u64,
    archive: Option<&dyn Archive>,
) -> Result<(), OpenError> {
    let position = match outcome {
        Outcome::Window | Outcome::Archive => at,
        Outcome::Gap(gap) if gap.reason == GapReason::Expired => Position {
            seq: first,
            check: None,
            ..at
        },
        Outcome::Live | Outcome::Gap(_) => return Ok(()),
    };
    if cursor.seek(position) {
        return Ok(());
    }
    if archive.is_some_and(Archive::is_rejecting) {
        return Err(OpenError::Rejected);
    }
    if cursor.replay(position) || archive.is_none() {
        Ok(())
    } else {
        Err(OpenError::TooManyReplays)
    }
}

async fn ask_state(
    archive: Option<&dyn Archive>,
    seq: u64,
    view: &View,
) -> Result<State, OpenError> {
    let Some(archive) = archive else {
        return Err(OpenError::NotReady);
    };
    match archive.state(seq).await {
        Ok(state) => Ok(state),
        // Any other tag says it.
        Err(Unavailable::Changed) => Ok(State {
            tag: SourceTag::of_identity(""),
            first_seq: 0,
            last_seq: view.head,
        }),
        Err(Unavailable::Now(_)) => Err(OpenError::NotReady),
        Err(Unavailable::Rejected(_)) => Err(OpenError::Rejected),
    }
}

async fn ask_check(archive: Option<&dyn Archive>, seq: u64) -> Result<Check, OpenError> {
    let Some(archive) = archive else {
        return Ok(Check::Nothing);
    };
    match archive.check(seq).await {
        Ok(found) => Ok(found.map_or(Check::Nothing, Check::Is)),
        Err(Unavailable::Changed) => Ok(Check::Nothing),
        Err(Unavailable::Now(_)) => Err(OpenError::NotReady),
        Err(Unavailable::Rejected(_)) => Err(OpenError::Rejected),
    }
}
