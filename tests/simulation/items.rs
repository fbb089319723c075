//! Items of a read as single events, shared or copied.

use sidestream::event::{EventId, Position, SourceTag, Tier};
use sidestream::feed::{Batch, Gap, Item};

pub(crate) enum Seen {
    Event {
        text: String,
        position: Position,
        /// Unknown for events that were copied.
        tier: Option<Tier>,
    },
    Gap {
        gap: Gap,
        position: Position,
    },
}

/// Creates an empty batch that copies small events at random.
pub(crate) fn batch() -> Batch {
    let mut batch = Batch::default();
    if fastrand::bool() {
        batch.copy_small = true;
    }
    batch
}

/// Splits encoded events, in either framing.
pub(crate) fn split(text: &str) -> Vec<&str> {
    let end = if text.starts_with('{') { "\n" } else { "\n\n" };
    text.split_inclusive(end).collect()
}

/// Returns the position of an encoded event under a tag.
pub(crate) fn position(event: &str, tag: SourceTag) -> Position {
    let id = match event.strip_prefix("{\"id\":\"") {
        Some(line) => line.split('"').next().unwrap(),
        None => event.rsplit("id: ").next().unwrap().trim_end(),
    };
    let id = EventId::parse(id.as_bytes()).unwrap();
    id.find(tag).expect("an event of the reader's epoch")
}

/// Returns the events and gaps of the batch in order.
pub(crate) fn unfold(batch: &Batch) -> Vec<Seen> {
    let mut seen = Vec::new();
    for item in &batch.items {
        match item {
            Item::Event {
                encoding,
                position,
                tier,
                ..
            } => {
                let text = String::from_utf8(encoding.bytes().to_vec()).unwrap();
                seen.push(Seen::Event {
                    text,
                    position: *position,
                    tier: Some(*tier),
                });
            }
            Item::Copied { run, copied } => {
                assert!(batch.copy_small, "events are copied only if requested");
                let text = String::from_utf8(run.content().to_vec()).unwrap();
                let events = split(&text);
                assert_eq!(events.len() as u64, copied.events);
                for event in events {
                    seen.push(Seen::Event {
                        text: event.to_owned(),
                        position: position(event, copied.position.tag),
                        tier: None,
                    });
                }
                let last = seen.last().and_then(|seen| {
                    if let Seen::Event { position, .. } = seen {
                        Some(*position)
                    } else {
                        None
                    }
                });
                assert_eq!(
                    last,
                    Some(copied.position),
                    "a copy has the position of its last event"
                );
            }
            Item::Gap { gap, position } => seen.push(Seen::Gap {
                gap: *gap,
                position: *position,
            }),
        }
    }
    seen
}
