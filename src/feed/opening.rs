//! Opening a reader at a position: asks the archive as the rules in [`resume::decide`] require.

use crate::event::{Position, SourceTag};
use crate::subject::FilterSet;

use super::archive::{Archive, State, Unavailable};
use super::begin::Begin;
use super::cursor::Cursor;
use super::gap::GapReason;
use super::open_error::OpenError;
use super::replay::ReplayPool;
use super::resume::{self, Decision, Outcome, StoredFingerprint, View};
use super::snapshot::{SnapshotReader, Snapshots};

/// A reader that has been opened.
#[derive(Debug)]
pub struct Opened {
    /// Its cursor.
    pub cursor: Cursor,
    /// Outcome of its start.
    pub outcome: Outcome,
    /// State of its subjects, which it reads before the cursor.
    pub snapshot: Option<SnapshotReader>,
}

/// Moves a reader that has joined at the head to the position that follows from `at`. `view`
/// returns the state of the source, given the previous answers of the archive.
pub(super) async fn resume(
    cursor: &mut Cursor,
    at: Position,
    archive: Option<&dyn Archive>,
    view: impl Fn(&Cursor, Option<State>, StoredFingerprint) -> Option<View>,
) -> Result<Outcome, OpenError> {
    let (mut source, mut fingerprint) = (None, StoredFingerprint::Unknown);
    loop {
        let view = view(cursor, source, fingerprint).ok_or(OpenError::NotReady)?;
        match resume::decide(at, &view) {
            Decision::Outcome(outcome) => {
                let first = view
                    .source
                    .map_or(view.floor, |source| source.first_seq.saturating_sub(1));
                // An id of version 0.1 grows: positions are written with the full fingerprint.
                let at = at.with_full(view.fingerprint.found());
                begin(cursor, outcome, at, first, archive)?;
                return Ok(outcome);
            }
            Decision::AskState => source = Some(ask_state(archive, at.seq, &view).await?),
            Decision::AskFingerprint => fingerprint = ask_fingerprint(archive, at.seq).await?,
        }
    }
}

/// Moves a reader that has joined at the head to the position where it begins. With the latest state,
/// it reads the returned snapshot first.
pub(super) async fn begin_at(
    cursor: &mut Cursor,
    beginning: Begin,
    replay_pool: &ReplayPool,
    snapshots: &Snapshots,
) -> Result<(Outcome, Option<SnapshotReader>), OpenError> {
    let (archive, replays) = (&**replay_pool.archive(), replay_pool.slots());
    if beginning == Begin::Latest {
        let (floor, head) = (cursor.floor(), cursor.position());
        let filters = &cursor.feed().filters;
        let snapshot = snapshots.get(replay_pool, filters, floor, head).await?;
        let outcome = seek_to(cursor, snapshot.position(), archive)?;
        let reader = snapshot.read(&cursor.feed().options);
        return Ok((outcome, Some(reader)));
    }
    if let Begin::Last(count) = beginning
        && cursor.seek_to_last(count.get())
    {
        return Ok((Outcome::Window, None));
    }
    let located = {
        let _permit = replays.locate().await.ok_or(OpenError::TooManyReplays)?;
        archive.locate(beginning, &cursor.feed().filters).await
    };
    let position = located.map_err(|unavailable| match unavailable {
        Unavailable::Rejected(_) => OpenError::Rejected,
        Unavailable::Temporary(_) | Unavailable::Changed => OpenError::NotReady,
    })?;
    Ok((seek_to(cursor, position, archive)?, None))
}

/// Moves a reader that has joined at the head to a position of its source.
fn seek_to(
    cursor: &mut Cursor,
    position: Position,
    archive: &dyn Archive,
) -> Result<Outcome, OpenError> {
    if position.tag != cursor.position().tag {
        // The source was recreated, and its writer has not noticed yet.
        return Err(OpenError::NotReady);
    }
    if cursor.seek(position) {
        return Ok(Outcome::Window);
    }
    if archive.is_rejecting() {
        return Err(OpenError::Rejected);
    }
    if cursor.begin_replay(position) {
        Ok(Outcome::Archive)
    } else {
        Err(OpenError::TooManyReplays)
    }
}

/// `first`: the sequence number before the oldest retained one.
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
            fingerprint: None,
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
    if cursor.start_replay(position) || archive.is_none() {
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
        // Any tag other than the expected one results in `recreated`.
        Err(Unavailable::Changed) => Ok(State {
            tag: SourceTag::of_identity(""),
            first_seq: 0,
            last_seq: view.head,
        }),
        Err(Unavailable::Temporary(_)) => Err(OpenError::NotReady),
        Err(Unavailable::Rejected(_)) => Err(OpenError::Rejected),
    }
}

async fn ask_fingerprint(
    archive: Option<&dyn Archive>,
    seq: u64,
) -> Result<StoredFingerprint, OpenError> {
    let Some(archive) = archive else {
        return Ok(StoredFingerprint::Missing);
    };
    match archive.fingerprint(seq).await {
        Ok(found) => Ok(found.map_or(StoredFingerprint::Missing, StoredFingerprint::Found)),
        Err(Unavailable::Changed) => Ok(StoredFingerprint::Missing),
        Err(Unavailable::Temporary(_)) => Err(OpenError::NotReady),
        Err(Unavailable::Rejected(_)) => Err(OpenError::Rejected),
    }
}

/// Asks whether a reader of a finite event stream has everything. The window is not asked: a newer
/// message may be on its way to this pod.
pub(super) async fn is_finished(
    archive: Option<&dyn Archive>,
    filters: &FilterSet,
    seq: u64,
) -> Result<bool, OpenError> {
    let Some(archive) = archive else {
        return Ok(false);
    };
    match archive.end(filters).await {
        Ok(end) => Ok(end.is_some_and(|end| end <= seq)),
        Err(Unavailable::Changed) => Ok(false),
        Err(Unavailable::Temporary(_)) => Err(OpenError::NotReady),
        Err(Unavailable::Rejected(_)) => Err(OpenError::Rejected),
    }
}
