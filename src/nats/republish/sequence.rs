//! Whether something is missing between the messages of one feed: each names the one before it of its subject; pure.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};

/// Subjects of one feed that are remembered at most: 65,536 are less than 3 MiB.
pub(super) const SUBJECTS_MAX: usize = 65_536;

/// How far a feed has come, as a whole and in each subject.
#[derive(Debug)]
pub(super) struct SequenceTracker {
    /// Everything up to here was handed on, or told as missing.
    complete: u64,
    /// The last number that was handed on, or is known not to concern the feed.
    head: u64,
    /// The last number of each subject, by its hash: 64 bits under a key of this process.
    last: HashMap<u64, u64>,
    hasher: RandomState,
    subjects_max: usize,
}

/// What a message is to a feed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SequenceStep {
    /// The next one.
    Next,
    /// Handed on already.
    Known,
    /// Comes after messages that should have followed it.
    Late,
    /// Something of its subject is missing, behind everything that was handed on.
    Hole,
    /// Something of its subject is missing where later messages were handed on already.
    LateHole,
}

impl SequenceTracker {
    /// A feed of everything behind `head`.
    pub(super) fn new(head: u64) -> Self {
        Self {
            complete: head,
            head,
            last: HashMap::new(),
            hasher: RandomState::new(),
            subjects_max: SUBJECTS_MAX,
        }
    }

    pub(super) fn head(&self) -> u64 {
        self.head
    }

    /// Bytes of the numbers that are remembered.
    pub(super) fn bytes(&self) -> usize {
        // A table is at most seven eighths full, with one byte more for each place.
        self.last.capacity() * (size_of::<(u64, u64)>() + 1) * 8 / 7
    }

    /// Changes how many subjects are remembered; takes effect with the next one.
    pub(super) fn set_subjects_max(&mut self, most: usize) {
        self.subjects_max = most;
    }

    /// The last number of a subject that is known of.
    pub(super) fn last_of(&self, subject: &str) -> u64 {
        self.last
            .get(&self.hasher.hash_one(subject))
            .copied()
            .unwrap_or(0)
            .max(self.complete)
    }

    /// What a message is that stands at `sequence`, and behind `previous` in its subject. A predecessor that the stream
    /// has forgotten is not named: what it explains itself is no hole.
    pub(super) fn judge(&self, subject: &str, sequence: u64, previous: u64) -> SequenceStep {
        let last = self.last_of(subject);
        if sequence <= last {
            SequenceStep::Known
        } else if sequence <= self.head {
            SequenceStep::Late
        } else if previous <= last {
            SequenceStep::Next
        } else if previous <= self.head {
            SequenceStep::LateHole
        } else {
            SequenceStep::Hole
        }
    }

    /// The message was handed on, or told as missing.
    pub(super) fn take(&mut self, subject: &str, sequence: u64) {
        if self.complete == self.head && sequence == self.head + 1 {
            // Nothing is between: no need to remember the subject.
            self.complete = sequence;
        } else {
            self.last.insert(self.hasher.hash_one(subject), sequence);
            self.bound();
        }
        self.head = self.head.max(sequence);
        debug_assert!(self.complete <= self.head, "what is complete was handed on");
    }

    /// Nothing between the head and this number concerns the feed.
    pub(super) fn advance(&mut self, sequence: u64) {
        if self.complete == self.head {
            self.complete = self.complete.max(sequence);
        }
        self.head = self.head.max(sequence);
    }

    /// Forgets the older half of too many subjects: up to there everything is taken to be complete, as a gap would say.
    fn bound(&mut self) {
        if self.last.len() <= self.subjects_max {
            return;
        }
        let mut numbers: Vec<u64> = self.last.values().copied().collect();
        // Half of what may stay, also after the bound has shrunk.
        let forgotten = numbers.len() - self.subjects_max / 2;
        let (_, middle, _) = numbers.select_nth_unstable(forgotten - 1);
        self.complete = self.complete.max(*middle);
        self.last.retain(|_, last| *last > self.complete);
        self.last.shrink_to(self.subjects_max);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_subject_names_what_is_missing_of_it() {
        let mut chain = SequenceTracker::new(10);
        assert_eq!(chain.judge("a", 10, 3), SequenceStep::Known);
        assert_eq!(
            chain.judge("a", 11, 3),
            SequenceStep::Next,
            "its predecessor stood before the beginning"
        );
        assert_eq!(chain.judge("a", 15, 12), SequenceStep::Hole);
        chain.take("a", 12);
        assert_eq!(chain.judge("a", 15, 12), SequenceStep::Next);
        assert_eq!(
            chain.judge("a", 15, 0),
            SequenceStep::Next,
            "the stream has deleted what stood there"
        );
        assert_eq!(
            chain.judge("b", 13, 11),
            SequenceStep::LateHole,
            "of b something should have come before 12 of a"
        );
        assert_eq!(chain.judge("b", 11, 4), SequenceStep::Late);
        chain.take("b", 11);
        assert_eq!(chain.judge("b", 13, 11), SequenceStep::Next);
        chain.advance(20);
        assert_eq!(
            chain.judge("c", 22, 19),
            SequenceStep::LateHole,
            "what is passed by may hold an earlier loss"
        );
    }

    #[test]
    fn what_adjoins_needs_no_memory_and_the_rest_is_bounded() {
        let mut chain = SequenceTracker {
            subjects_max: 8,
            ..SequenceTracker::new(0)
        };
        for sequence in 1..=100 {
            chain.take(&sequence.to_string(), sequence);
        }
        assert!(chain.last.is_empty());
        for sequence in (102..=300).step_by(2) {
            chain.take(&sequence.to_string(), sequence);
            assert!(chain.last.len() <= 8);
        }
        assert_eq!(chain.judge("300", 301, 300), SequenceStep::Next);
    }

    proptest! {
        /// Any loss, any disorder: every message is handed on in order, or something is told behind which it stands.
        #[test]
        fn nothing_is_lost_without_a_word(
            subjects in prop::collection::vec(0u8..4, 1..60),
            fate in prop::collection::vec((0u8..10, 0usize..4), 60),
        ) {
            // The stream: number and predecessor of every message.
            let mut last = [0u64; 4];
            let stored: Vec<(u8, u64, u64)> = (1u64..).zip(&subjects).map(|(sequence, subject)| {
                (*subject, sequence, std::mem::replace(&mut last[usize::from(*subject)], sequence))
            }).collect();
            // What arrives: some is lost, some comes twice, some comes late. At the end one of each subject.
            let mut arrived: Vec<(usize, (u8, u64, u64))> = Vec::new();
            for (place, (message, (fate, late))) in stored.iter().zip(&fate).enumerate() {
                match fate {
                    0 => {}
                    1 => arrived.extend([(place, *message), (place + late, *message)]),
                    2 => arrived.push((place + late, *message)),
                    _ => arrived.push((place, *message)),
                }
            }
            arrived.sort_by_key(|(place, _)| *place);
            let end = stored.len() as u64;
            let closing = (0u8..4).map(|subject| (subject, end + 1 + u64::from(subject), last[usize::from(subject)]));
            let mut chain = SequenceTracker::new(0);
            let (mut given, mut gaps) = (Vec::new(), 0);
            for (subject, sequence, previous) in arrived.into_iter().map(|(_, message)| message).chain(closing) {
                let name = subject.to_string();
                match chain.judge(&name, sequence, previous) {
                    SequenceStep::Known => prop_assert!(given.contains(&sequence) || gaps > 0),
                    SequenceStep::Late => { gaps += 1; chain.take(&name, sequence); }
                    verdict => {
                        if verdict == SequenceStep::LateHole { gaps += 1; }
                        if verdict == SequenceStep::Hole {
                            // Repaired: all that stands between the head and this one; what is missing before the head of
                            // any of these subjects is told.
                            let head = chain.head();
                            let is_late = |chain: &SequenceTracker, of: u8| {
                                let unsure = chain.last_of(&of.to_string()) + 1..=head;
                                stored.iter().any(|(subject, number, _)| *subject == of && unsure.contains(number))
                            };
                            gaps += usize::from(is_late(&chain, subject));
                            let between = stored.iter().filter(|(_, number, _)| (head + 1..sequence).contains(number));
                            for (subject, number, _) in between.copied() {
                                gaps += usize::from(is_late(&chain, subject));
                                given.push(number);
                                chain.take(&subject.to_string(), number);
                            }
                        }
                        given.push(sequence);
                        chain.take(&name, sequence);
                    }
                }
            }
            prop_assert!(given.is_sorted_by(|one, two| one < two), "in order, once: {given:?}");
            let missing = stored.iter().filter(|(_, sequence, _)| !given.contains(sequence)).count();
            prop_assert!(missing == 0 || gaps > 0, "{missing} are missing without a word");
        }
    }
}
