//! Feeds that show payloads in another version.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::FutureExt as _;

use super::{event, filters};
use crate::encoding::Framing;
use crate::event::{Event, Version};
use crate::feed::encoded::EncodedEvent;
use crate::feed::options::{FeedEvent, Shown};
use crate::feed::{
    Batch, Budget, Cursor, FeedOptions, Gap, GapReason, Item, Limits, ReadPolicy, Source as _,
    Start, buffer,
};
use crate::payload::{Conversion, ConversionCounters, Converter, VersionConverter, Versions};

/// Converter of payloads of version 2 to version 1.
fn to_version_1(counters: &ConversionCounters) -> Arc<Converter> {
    let version = |text| Version::parse(text).unwrap();
    let versions = Versions {
        current: version("2"),
        supported: vec![version("1"), version("2")],
        deprecated: BTreeMap::new(),
        conversions: vec![Conversion {
            from: version("2"),
            to: version("1"),
            patch: serde_json::from_str(r#"[{"op":"replace","path":"/a","value":1}]"#).unwrap(),
        }],
    };
    let converter = VersionConverter::new(&versions, version("1"), counters.clone());
    Converter::new(Some(converter), None, None).unwrap().into()
}

fn counters() -> ConversionCounters {
    let counter = |name| prometheus::IntCounter::new(name, "test").unwrap();
    ConversionCounters {
        converted: counter("converted"),
        failed: counter("failed"),
    }
}

#[test]
fn payload_is_converted_once_for_all_feeds_of_a_version_and_a_failure_is_a_gap() {
    let budget = Budget::new(1 << 20, 10);
    let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
    writer.begin(event(1, "a").position.tag, 0);
    let counters = counters();
    let open = |subject: &str, framing| {
        let options = Arc::new(FeedOptions {
            framing,
            converter: Some(to_version_1(&counters)),
            ..FeedOptions::default()
        });
        let opened = buffer.open(filters(&[subject]), &options, Start::Live);
        opened.now_or_never()
    };
    let payload = |seq: u64, data: &'static str, version: Option<&str>| Event {
        data: data.into(),
        version: version.and_then(Version::parse),
        ..event(seq, "a.b")
    };
    let mut cursors: Vec<Cursor> = ["a.*", "a.b", ">"]
        .into_iter()
        .zip([Framing::Sse, Framing::Ndjson, Framing::Sse])
        .map(|(subject, framing)| open(subject, framing).unwrap().unwrap().cursor)
        .collect();
    writer.append(vec![
        payload(1, r#"{"a":2}"#, None),
        payload(2, "text", None),
        payload(3, r#"{"a": 2}"#, Some("1")),
        payload(4, r#"{"a":2}"#, Some("7")),
    ]);
    let expected = |seq: u64, data: &str, framing| {
        let id = event(seq, "a").position;
        match framing {
            Framing::Sse => format!("data: {data}\nid: {id}\n\n"),
            _ => format!("{{\"id\":\"{id}\",\"subject\":\"a.b\",\"data\":{data}}}\n"),
        }
    };
    for (cursor, framing) in cursors
        .iter_mut()
        .zip([Framing::Sse, Framing::Ndjson, Framing::Sse])
    {
        let mut batch = Batch::default();
        let read = cursor.poll_read(
            &mut Context::from_waker(Waker::noop()),
            &mut batch,
            &mut ReadPolicy::all(10_000),
        );
        assert!(read.is_ready());
        let items: Vec<String> = batch
            .items
            .iter()
            .map(|item| match item {
                Item::Event { encoding, .. } => {
                    String::from_utf8(encoding.bytes().to_vec()).unwrap()
                }
                Item::Gap { gap, position } => format!("{gap:?} {}", position.seq),
                Item::Coded { .. } => panic!("the feed does not compress"),
                Item::Copied { .. } => panic!("nothing is copied"),
            })
            .collect();
        let gap = Gap {
            reason: GapReason::Conversion,
            missed: Some(1),
        };
        assert_eq!(
            items,
            [
                expected(1, r#"{"a":1}"#, framing),
                format!("{gap:?} 2"),
                expected(3, r#"{"a": 2}"#, framing),
                format!("{gap:?} 4"),
            ]
        );
    }
    assert_eq!((counters.converted.get(), counters.failed.get()), (1, 2));
    // A feed that is created later finds the conversions.
    let mut late = Box::pin(async {
        let options = Arc::new(FeedOptions {
            converter: Some(to_version_1(&counters)),
            ..FeedOptions::default()
        });
        let start = Start::After(event(1, "a").position);
        buffer.open(filters(&["*.b"]), &options, start).await
    });
    let waker = Waker::noop();
    let cursor = loop {
        if let Poll::Ready(opened) = late.as_mut().poll(&mut Context::from_waker(waker)) {
            break opened.unwrap().cursor;
        }
    };
    assert_eq!(cursor.position().seq, 1);
    assert_eq!((counters.converted.get(), counters.failed.get()), (1, 2));
    drop(late);
    drop((cursor, cursors, writer, buffer));
    assert_eq!(budget.used(), 0);
}

#[test]
fn feeds_without_a_version_have_entries_of_the_same_size_and_no_conversion() {
    // A word of `EncodedEvent`, within its size class, is all that versions cost: see `encoded`.
    assert_eq!(size_of::<Shown>(), size_of::<FeedEvent>());
    let budget = Budget::new(1 << 20, 10);
    let encoded = EncodedEvent::new(event(1, "a"), &budget);
    let options = FeedOptions::default();
    let shown = options.show(encoded.clone());
    let Shown::Event(shown) = shown else {
        panic!("it is shown")
    };
    assert!(Arc::ptr_eq(&shown.encoded, &encoded));
    assert!(!encoded.has_conversions());
}

#[test]
fn window_keeps_as_many_gaps_of_failed_conversions_as_events() {
    let budget = Budget::new(1 << 20, 10);
    let (mut writer, buffer) = buffer::writer::channel("S", Limits::default(), &budget, None);
    writer.begin(event(1, "a").position.tag, 0);
    let counters = counters();
    let options = Arc::new(FeedOptions {
        converter: Some(to_version_1(&counters)),
        window: Limits {
            events: 4,
            ..Limits::default()
        },
        ..FeedOptions::default()
    });
    let opened = buffer.open(filters(&["a"]), &options, Start::Live);
    let cursor = opened.now_or_never().unwrap().unwrap().cursor;
    for seq in 1..=100 {
        writer.append(vec![event(seq, "a")]);
    }
    assert_eq!(cursor.feed().size().0, 4);
    assert_eq!(counters.failed.get(), 100);
}
