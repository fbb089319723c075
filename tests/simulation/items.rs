//! Items of a read as single events, shared or copied.

use std::io::Read as _;

use bytes::BytesMut;
use flate2::read::GzDecoder;
use sidestream::encoding::Coding;
use sidestream::encoding::coding::{Block, BlockSize, Checksum};
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

/// Decodes a block.
fn decode(block: &Block) -> String {
    decode_sent(block.bytes().content(), block.size())
}

/// Decodes blocks as an event stream of their own.
pub(crate) fn decode_sent(sent: &[u8], size: BlockSize) -> String {
    let stream = |coding: Coding| {
        let mut stream = BytesMut::from(coding.head());
        stream.extend_from_slice(sent);
        coding.put_tail(&mut stream, Checksum::default().after_block(size.checksum));
        stream
    };
    let mut text = String::new();
    if GzDecoder::new(&stream(Coding::Gzip)[..])
        .read_to_string(&mut text)
        .is_ok()
    {
        return text;
    }
    let mut plain = vec![0; size.plain];
    let length = zstd_safe::decompress(&mut plain[..], &stream(Coding::Zstd)).unwrap();
    assert_eq!(length, plain.len());
    String::from_utf8(plain).unwrap()
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
            Item::Copied { .. } | Item::Coded { .. } => {
                let (text, copied) = match item {
                    Item::Coded { events, copied, .. } => (decode(events.coded()), copied),
                    Item::Copied { run, copied } => {
                        assert!(batch.copy_small, "events are copied only if requested");
                        (String::from_utf8(run.content().to_vec()).unwrap(), copied)
                    }
                    _ => unreachable!("matched above"),
                };
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
