//! Goes round the readers of a thread that wait at a feed: hands each what it waits for, or wakes it.
//!
//! An event for a thousand clients would be a thousand turns of tasks, each of which waits for the memory of a task, of an
//! event stream and of a cursor, to write the same bytes. A round needs a reader's place and its socket.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use crate::sse::encode::RunBuilder;

use super::feed::{Feed, State};
use super::notify::ShardNotifier;
use super::readers::Readers;
use super::sink::{DirectSink, EncodedRun, SendOutcome};
use super::window::Window;

/// One round of one feed.
#[derive(Debug)]
pub(super) struct Pass {
    feed: Arc<Feed>,
    /// The key of the reader that is next; none before it has begun.
    next: Option<usize>,
}

/// What rounds use again and again, so that they allocate nothing.
#[derive(Debug, Default)]
pub(super) struct Dispatcher {
    /// Readers that are handed the same piece, and what became of it.
    group: Vec<Given>,
    cut: Option<CollectedRun>,
    woken: Vec<Waker>,
    copy: RunBuilder,
}

/// The key of a reader, its outlet until it is handed something, and what became of that.
type Given = (usize, Option<Arc<dyn DirectSink>>, SendOutcome);

/// What stands in a window from here to there.
#[derive(Debug)]
struct CollectedRun {
    from: u64,
    to: u64,
    /// None where readers must look at it themselves.
    piece: Option<EncodedRun>,
}

/// How many readers are handed something in one turn: then the runtime looks for news, as it does after as many tasks.
const HANDED_MAX: usize = 64;

/// What is queued for a connection costs a fraction of a write, which follows when the turn is over: the more of them go
/// into it the better.
const QUEUED_PER_HANDED: usize = 16;

/// So many at once, between two locks of their feed.
const GROUP_MAX: usize = 32;

impl Pass {
    pub(super) fn new(feed: Arc<Feed>) -> Self {
        Self { feed, next: None }
    }
}

impl Dispatcher {
    /// Goes on with these rounds as far as one turn allows, and removes those that are over.
    pub(super) fn turn(&mut self, bell: &Arc<ShardNotifier>, rounds: &mut VecDeque<Pass>) {
        let mut left = HANDED_MAX * QUEUED_PER_HANDED;
        while let Some(round) = rounds.front_mut() {
            if !self.go(bell, round, &mut left) {
                return;
            }
            rounds.pop_front();
        }
    }

    /// Goes on with a round. True when every reader was seen.
    fn go(&mut self, bell: &Arc<ShardNotifier>, round: &mut Pass, left: &mut usize) -> bool {
        let before = *left;
        let is_over = loop {
            let mut state = round.feed.lock();
            self.settle(&mut state.readers);
            let is_over = self.gather(
                bell,
                &mut round.next,
                &mut state,
                GROUP_MAX.min(left.div_ceil(QUEUED_PER_HANDED)),
            );
            drop(state);
            // With no lock held: who is woken reads the feed at once.
            self.woken.drain(..).for_each(Waker::wake);
            if self.group.is_empty() {
                break is_over;
            }
            self.hand();
            *left =
                left.saturating_sub(self.group.iter().map(|(_, _, handed)| handed.cost()).sum());
        };
        // An event must not live on because this thread fell silent.
        self.cut = None;
        if *left < before {
            round.feed.touch();
        }
        is_over
    }

    /// Gathers who waits for the same piece, so many at most, and wakes who must look itself. True when all were seen.
    fn gather(
        &mut self,
        bell: &Arc<ShardNotifier>,
        next: &mut Option<usize>,
        state: &mut State,
        most: usize,
    ) -> bool {
        let State {
            window,
            readers,
            ended,
            ..
        } = state;
        let Some(thread) = readers.thread_of(bell) else {
            return true;
        };
        readers.look_from(next.unwrap_or_default(), most);
        let mut from = next.unwrap_or_else(|| {
            readers.answer(thread);
            0
        });
        while let Some((key, reader)) = readers.waiting(thread, from) {
            if reader.place.index == window.end() && !*ended {
                from = key + 1;
                continue;
            }
            let outlet = reader.outlet.as_ref().filter(|_| !*ended);
            let is_cut = self
                .cut
                .as_ref()
                .is_some_and(|cut| (cut.from, cut.to) == (reader.place.index, window.end()));
            if outlet.is_some() && (self.group.len() == most || !is_cut && !self.group.is_empty()) {
                *next = Some(key);
                return false;
            }
            if outlet.is_some() && !is_cut {
                self.cut(window, reader.place.index);
            }
            let piece = self.cut.as_ref().and_then(|cut| cut.piece.as_ref());
            let fits = piece.is_some_and(|piece| piece.follows(reader.place, reader.position));
            match outlet.filter(|_| fits) {
                Some(outlet) => self
                    .group
                    .push((key, Some(outlet.clone()), SendOutcome::Refused)),
                None => self.woken.extend(reader.waker.take()),
            }
            from = key + 1;
        }
        *next = Some(from);
        true
    }

    fn cut(&mut self, window: &Window, from: u64) {
        let piece = EncodedRun::cut(window, from, &mut self.copy);
        self.cut = Some(CollectedRun {
            from,
            to: window.end(),
            piece,
        });
    }

    /// Hands the piece to those who were gathered, with no lock held.
    fn hand(&mut self) {
        let Some(piece) = self.cut.as_ref().and_then(|cut| cut.piece.as_ref()) else {
            return;
        };
        std::hint::black_box(
            self.group
                .iter()
                .filter_map(|(_, outlet, _)| Some(outlet.as_ref()?.look()))
                .count(),
        );
        for (_, outlet, handed) in &mut self.group {
            *handed = outlet
                .take()
                .map_or(SendOutcome::Refused, |outlet| outlet.hand(piece));
        }
    }

    /// Notes where those stand who took it, and takes the wakers of those who did not, or not whole.
    fn settle(&mut self, readers: &mut Readers) {
        let Some(piece) = self.cut.as_ref().and_then(|cut| cut.piece.as_ref()) else {
            return;
        };
        for (key, _, handed) in self.group.drain(..) {
            if handed != SendOutcome::Refused {
                readers.moved(key, piece.end, piece.last);
            }
            if matches!(handed, SendOutcome::Kept | SendOutcome::Refused) {
                self.woken.extend(readers.take(key));
            }
        }
    }
}

impl SendOutcome {
    /// What it takes of a turn.
    fn cost(self) -> usize {
        if self == Self::Queued {
            1
        } else {
            QUEUED_PER_HANDED
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Context, Poll, Wake};
    use std::time::Instant;

    use futures_util::FutureExt as _;

    use super::*;
    use crate::feed::{
        Batch, Budget, Cursor, GapReason, Limits, Read, Start, StreamBuffer, StreamWriter, answer,
        buffer,
    };
    use crate::sse::{Event, Position, SourceTag};
    use crate::subject::{Filter, FilterSet};

    /// Answers always the same, and keeps what it was handed.
    #[derive(Debug)]
    struct Always(SendOutcome, Mutex<Vec<(u64, String)>>);

    impl DirectSink for Always {
        fn look(&self) -> bool {
            true
        }

        fn hand(self: Arc<Self>, piece: &EncodedRun) -> SendOutcome {
            let text = String::from_utf8(piece.chunk.content().to_vec()).unwrap();
            self.1.lock().unwrap().push((piece.events, text));
            self.0
        }
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Scene {
        writer: StreamWriter,
        log: Arc<StreamBuffer>,
        answering: Pin<Box<dyn Future<Output = std::convert::Infallible>>>,
        seq: u64,
    }

    struct Reader {
        cursor: Cursor,
        outlet: Arc<Always>,
        wakes: Arc<Wakes>,
    }

    impl Scene {
        fn new() -> Self {
            let (mut writer, log) =
                buffer::channel("S", Limits::default(), &Budget::new(1 << 22, 10), None);
            writer.begin(SourceTag::of_stream("S", 1), 0);
            Self {
                writer,
                log,
                answering: Box::pin(answer()),
                seq: 0,
            }
        }

        fn reader(&self, handed: SendOutcome) -> Reader {
            let filters = FilterSet::new([Filter::parse("a").unwrap()]);
            let opened = self
                .log
                .open(filters, &Arc::default(), Start::Live)
                .now_or_never()
                .unwrap()
                .unwrap();
            let outlet = Arc::new(Always(handed, Mutex::default()));
            opened.cursor.set_outlet(outlet.clone());
            let mut reader = Reader {
                cursor: opened.cursor,
                outlet,
                wakes: Arc::default(),
            };
            assert_eq!(reader.read(), None, "it waits");
            reader
        }

        fn append(&mut self, data: &[&str]) {
            let event = |data: &&str| {
                self.seq += 1;
                Event {
                    position: Position {
                        tag: SourceTag::of_stream("S", 1),
                        seq: self.seq,
                        check: None,
                    },
                    subject: "a".into(),
                    name: None,
                    tier: None,
                    message_id: None,
                    data: data.as_bytes().to_vec().into(),
                    received: Instant::now(),
                }
            };
            let events = data.iter().map(event).collect();
            self.writer.append(events);
        }

        fn turn(&mut self) {
            assert!(
                self.answering
                    .as_mut()
                    .poll(&mut Context::from_waker(Waker::noop()))
                    .is_pending()
            );
        }
    }

    impl Reader {
        /// The sequence numbers that a read brings; none when it waits.
        fn read(&mut self) -> Option<usize> {
            let mut batch = Batch::default();
            let waker = Waker::from(self.wakes.clone());
            match self
                .cursor
                .poll_read(&mut Context::from_waker(&waker), &mut batch, 1000)
            {
                Poll::Ready(Read::Some) => Some(batch.items.len()),
                Poll::Ready(Read::Ended) | Poll::Pending => None,
            }
        }

        fn handed(&self) -> Vec<(u64, String)> {
            std::mem::take(&mut *self.outlet.1.lock().unwrap())
        }

        fn wakes(&self) -> usize {
            self.wakes.0.load(Ordering::Relaxed)
        }
    }

    fn texts(events: &[(u64, String)]) -> Vec<String> {
        let text = |(_, text): &(u64, String)| {
            text.lines()
                .filter_map(|line| line.strip_prefix("data: "))
                .collect::<Vec<_>>()
                .join(",")
        };
        events.iter().map(text).collect()
    }

    #[test]
    fn who_waits_is_given_one_event_after_the_other_and_is_not_woken() {
        let mut scene = Scene::new();
        let mut readers = [
            scene.reader(SendOutcome::Sent),
            scene.reader(SendOutcome::Sent),
        ];
        for data in ["1", "2", "3"] {
            scene.append(&[data]);
            assert!(
                readers.iter().all(|reader| reader.handed().is_empty()),
                "not while the writer writes"
            );
            scene.turn();
            for reader in &readers {
                assert_eq!(
                    (texts(&reader.handed()), reader.wakes()),
                    (vec![data.to_owned()], 0)
                );
                assert_eq!(
                    reader
                        .cursor
                        .standing()
                        .position()
                        .map(|position| position.seq),
                    Some(scene.seq)
                );
                assert_eq!(reader.cursor.standing().lag(Instant::now()).events, 0);
            }
        }
        for reader in &mut readers {
            reader.cursor.follow();
            assert_eq!(
                (reader.cursor.position().seq, reader.read()),
                (3, None),
                "it goes on behind what it was given"
            );
        }
    }

    #[test]
    fn what_has_come_together_is_one_piece_for_everyone_up_to_32_kib() {
        let mut scene = Scene::new();
        let mut reader = scene.reader(SendOutcome::Sent);
        scene.append(&["1", "2"]);
        scene.append(&["3"]);
        scene.turn();
        let handed = reader.handed();
        assert_eq!(
            (texts(&handed), handed[0].0, reader.wakes()),
            (vec!["1,2,3".to_owned()], 3, 0)
        );
        let large = "x".repeat(20_000);
        scene.append(&[&large, &large]);
        scene.turn();
        assert_eq!(
            (reader.handed().len(), reader.wakes()),
            (0, 1),
            "more than a turn is read by its task"
        );
        reader.cursor.follow();
        assert_eq!(reader.read(), Some(1));
    }

    #[test]
    fn who_refuses_is_woken_and_reads_and_who_keeps_is_woken_behind_it() {
        let mut scene = Scene::new();
        let (mut refuses, mut keeps) = (
            scene.reader(SendOutcome::Refused),
            scene.reader(SendOutcome::Kept),
        );
        scene.append(&["1"]);
        scene.turn();
        assert_eq!((refuses.wakes(), keeps.wakes()), (1, 1));
        scene.append(&["2"]);
        scene.turn();
        assert_eq!(
            (refuses.handed().len(), keeps.handed().len()),
            (1, 1),
            "neither waits any more"
        );
        refuses.cursor.follow();
        keeps.cursor.follow();
        assert_eq!(
            (refuses.cursor.position().seq, keeps.cursor.position().seq),
            (0, 1)
        );
        assert_eq!(
            (refuses.read(), refuses.cursor.position().seq),
            (Some(2), 2)
        );
        assert_eq!((keeps.read(), keeps.cursor.position().seq), (Some(1), 2));
    }

    #[test]
    fn gaps_and_ends_are_left_to_tasks() {
        let mut scene = Scene::new();
        let mut reader = scene.reader(SendOutcome::Sent);
        scene.writer.gap(GapReason::Upstream, None);
        scene.append(&["1"]);
        scene.turn();
        assert_eq!((reader.handed().len(), reader.wakes()), (0, 1));
        assert_eq!(
            (reader.read(), reader.read()),
            (Some(2), None),
            "the gap, then the event"
        );
        drop(scene.writer);
        scene
            .answering
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
            .is_pending()
            .then_some(())
            .unwrap();
        assert_eq!(reader.wakes(), 2, "the end");
    }

    #[tokio::test]
    async fn more_readers_are_given_what_their_connections_write_together() {
        let mut scene = Scene::new();
        let readers: Vec<_> = (0..10 * HANDED_MAX)
            .map(|_| scene.reader(SendOutcome::Queued))
            .collect();
        scene.append(&["1"]);
        scene.turn();
        let given = readers
            .iter()
            .filter(|reader| (texts(&reader.handed()), reader.wakes()) == (vec!["1".into()], 0));
        assert_eq!(given.count(), readers.len());
    }

    #[tokio::test]
    async fn a_turn_gives_to_a_bounded_number_of_readers_and_those_who_are_late_get_more_at_once() {
        let mut scene = Scene::new();
        let readers: Vec<_> = (0..HANDED_MAX + 10)
            .map(|_| scene.reader(SendOutcome::Sent))
            .collect();
        scene.append(&["1"]);
        scene.turn();
        let given = readers
            .iter()
            .filter(|reader| !reader.outlet.1.lock().unwrap().is_empty())
            .count();
        assert_eq!(given, HANDED_MAX);
        scene.append(&["2"]);
        for _ in 0..8 {
            scene.turn();
        }
        for (nth, reader) in readers.iter().enumerate() {
            let expected = if nth < HANDED_MAX {
                vec!["1", "2"]
            } else {
                vec!["1,2"]
            };
            assert_eq!(
                (texts(&reader.handed()), reader.wakes()),
                (expected.iter().map(ToString::to_string).collect(), 0)
            );
        }
    }
}
