//! What one client must have: every number that it follows of every JetStream stream, in order, each id once.

use super::publisher::{Published, SHARES, STREAMS};
use testkit::sse_parser::Event;

/// What a client follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Follows {
    /// All numbers.
    All,
    /// The numbers of one share.
    Share(u64),
}

/// What one client has had so far.
pub(crate) struct Ledger {
    follows: Follows,
    /// The number that must come next, by JetStream stream.
    next: [u64; STREAMS.len()],
    /// Where the last id stood: tag and sequence of each source.
    at: Vec<(String, u64)>,
    /// Everything that should not have happened, the first few of it.
    wrong: Vec<String>,
    /// How many event streams ended with a `sidestream.close` for a drain.
    pub(crate) drains: usize,
}

/// More would not tell more.
const WRONG_MAX: usize = 5;

impl Follows {
    /// The path of the route that has it.
    pub(crate) fn path(self) -> String {
        match self {
            Self::All => "/all".to_owned(),
            Self::Share(share) => format!("/share/{share}"),
        }
    }
}

impl Ledger {
    /// Of a client that is there before the first event.
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

    /// An event has arrived.
    pub(crate) fn take(&mut self, event: &Event) {
        match event.name.as_str() {
            "message" => self.number(event),
            "sidestream.close" if event.data.contains("\"drain\"") => self.drains += 1,
            _ => self.wrong(format!("{event:?}")),
        }
    }

    /// Something happened that should not have.
    pub(crate) fn wrong(&mut self, what: String) {
        if self.wrong.len() < WRONG_MAX {
            self.wrong.push(what);
        }
    }

    /// What happened that should not have.
    pub(crate) fn mistakes(&self) -> &[String] {
        &self.wrong
    }

    /// Whether an event has arrived.
    pub(crate) fn has_begun(&self) -> bool {
        !self.at.is_empty()
    }

    /// Whether nothing that was published is missing.
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

    /// An id is new if it is further in one source, and in none further back.
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
fn a_ledger_sees_what_is_missing_doubled_or_out_of_order() {
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
