//! Items of a read as single events, shared or copied.

use sidestream::event::{EventId, Position, Tier};
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
                let events: Vec<&str> = text.split_inclusive("\n\n").collect();
                assert_eq!(events.len() as u64, copied.events);
                for event in events {
                    let id = event.rsplit("id: ").next().unwrap().trim_end();
                    let position = EventId::parse(id.as_bytes())
                        .unwrap()
                        .find(copied.position.tag)
                        .unwrap();
                    seen.push(Seen::Event {
                        text: event.to_owned(),
                        position,
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
