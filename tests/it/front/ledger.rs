//! Ledger of one client: it must receive every number that it follows, in order, each id once.

use super::publisher::{Published, SHARES, STREAMS};
use testkit::sse_parser::Event;

/// Numbers that a client follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follows {
    /// All numbers.
    All,
    /// Numbers of one share.
    Share(u64),
}

/// Events of one client until now.
pub(crate) struct Ledger {
    follows: Follows,
    /// Next expected number, by JetStream stream.
    next: [u64; STREAMS.len()],
    /// Last id: tag and sequence of each source.
    at: Vec<(String, u64)>,
    /// First mistakes.
    wrong: Vec<String>,
    /// Number of event streams that ended with a `sidestream.close` for a drain.
    pub(crate) drains: usize,
}

/// Maximum number of mistakes that are kept.
const WRONG_MAX: usize = 5;

impl Follows {
    /// Path of its route.
    pub(crate) fn path(self) -> String {
        match self {
            Self::All => "/all".to_owned(),
            Self::Share(share) => format!("/share/{share}"),
        }
    }
}

impl Ledger {
    /// Ledger of a client that connects before the first event.
    pub(crate) fn new(follows: Follows) -> Self {
        let first = match follows {
            Follows::All => 0,
            Follows::Share(share) => share,
        };
        Self {
            follows,
            next: [first; STREAMS.len()],
            at: Vec::new(),
            wrong: Vec::new(),
            drains: 0,
        }
    }

    /// Records an event.
    pub(crate) fn take(&mut self, event: &Event) {
        match event.name.as_str() {
            "message" => self.number(event),
            "sidestream.close" if event.data.contains("\"drain\"") => self.drains += 1,
            _ => self.wrong(format!("{event:?}")),
        }
    }

    /// Records a mistake.
    pub(crate) fn wrong(&mut self, what: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(what);
        }
    }

    /// Mistakes until now.
    pub(crate) fn mistakes(&self) -> &[String] {
        &self.wrong
    }

    /// Returns true if an event has arrived.
    pub(crate) fn has_begun(&self) -> bool {
        !self.at.is_empty()
    }

    /// Returns true if every published event has arrived.
    pub(crate) fn has(&self, published: Published) -> bool {
        self.next
            .iter()
            .zip(published)
            .all(|(next, count)| *next >= count)
    }

    fn number(&mut self, event: &Event) {
        let (name, number) = event.data.split_once(' ').unwrap();
        let number: u64 = number.parse().unwrap();
        let stream = STREAMS.iter().position(|stream| *stream == name).unwrap();
        let next = self.next[stream];
        if number != next {
            self.wrong(format!(
                "{:?}: {name} {number} in the place of {next}",
                self.follows
            ));
        }
        self.next[stream] = number
            + if self.follows == Follows::All {
                1
            } else {
                SHARES
            };
        self.id(&event.id);
    }

    /// An id is new if it is later in at least one source and earlier in no source.
    fn id(&mut self, id: &str) {
        let at: Vec<(String, u64)> = id
            .split('.')
            .map(|component| {
                let mut parts = component.split('-');
                (
                    parts.next().unwrap().to_owned(),
                    parts.next().unwrap().parse().unwrap(),
                )
            })
            .collect();
        let forward = self.at.is_empty() || at != self.at;
        let back = self
            .at
            .iter()
            .zip(&at)
            .any(|(before, now)| before.0 != now.0 || before.1 > now.1);
        if !forward || back {
            self.wrong(format!("{:?}: id {id} after {:?}", self.follows, self.at));
        }
        self.at = at;
    }
}

#[test]
fn a_ledger_detects_missing_duplicate_and_reordered_events() {
    let event = |number: u64, id: &str| Event {
        name: "message".into(),
        data: format!("a {number}"),
        id: id.into(),
    };
    let mistakes = |events: &[Event]| {
        let mut ledger = Ledger::new(Follows::Share(1));
        events.iter().for_each(|event| ledger.take(event));
        ledger.mistakes().len()
    };
    assert_eq!(
        mistakes(&[event(1, "x-1-a.y-0"), event(11, "x-2-b.y-0")]),
        0
    );
    assert_eq!(mistakes(&[event(11, "x-1-a.y-0")]), 1, "missing");
    assert_eq!(
        mistakes(&[event(1, "x-1-a.y-0"), event(1, "x-1-a.y-0")]),
        2,
        "doubled, by number and by id"
    );
    assert_eq!(
        mistakes(&[event(1, "x-2-a.y-0"), event(11, "x-1-b.y-1")]),
        1,
        "an id that goes back"
    );
    assert_eq!(
        mistakes(&[Event {
            name: "sidestream.gap".into(),
            ..Event::default()
        }]),
        1
    );
    let mut ledger = Ledger::new(Follows::Share(1));
    ledger.take(&event(1, "x-1"));
    assert!(ledger.has([11, 1, 1]) && !ledger.has([12, 1, 1]) && !ledger.has([11, 2, 1]));
}
