//! Micro-benchmarks of the steps of the hot path.
//!
//! Criterion measures encoding, conversions and validation of payloads, appending to a stream buffer, matching
//! subjects, reading with a cursor, filling a new feed, and parsing event ids. `make bench-micro` runs
//! them.

#![allow(clippy::unwrap_used)] // here a failure is the result
#![allow(missing_docs)] // criterion's macros generate functions without docs

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use futures_util::FutureExt;
use prometheus::IntCounter;
use sidestream::encoding::{EventParts, Framing};
use sidestream::event::{Event, EventId, EventName, Fingerprint, Position, SourceTag, Version};
use sidestream::feed::trie::SubjectTrie;
use sidestream::feed::{
    Batch, Budget, Cursor, FeedOptions, Limits, ReadPolicy, Source as _, Start, StreamBuffer,
    StreamWriter, buffer,
};
use sidestream::http;
use sidestream::payload::schema::{
    RouteSchemas, SchemaOrigin, SchemaRule, Schemas, SchemasConfig, Validation,
};
use sidestream::payload::{Conversion, ConversionCounters, Converter, VersionConverter, Versions};
use sidestream::subject::{Filter, FilterSet};
use sidestream::telemetry::Metrics;

/// Number of events that a tailer appends at once under load.
const BATCH: u64 = 64;

fn tag() -> SourceTag {
    SourceTag::of_stream("S", 1)
}

/// Parses filters separated by spaces.
fn filters(text: &str) -> FilterSet {
    FilterSet::new(text.split(' ').map(|filter| Filter::parse(filter).unwrap()))
}

fn event(seq: u64, subject: &Arc<str>, data: &'static [u8]) -> Event {
    Event {
        position: Position {
            tag: tag(),
            seq,
            fingerprint: Some(Fingerprint::of_publish_time(seq.into())),
        },
        subject: subject.clone(),
        name: None,
        tier: None,
        is_end: false,
        sample: None,
        version: None,
        headers: Default::default(),
        data: data.into(),
        received: Instant::now(),
    }
}

/// Returns a stream buffer whose memory budget evicts nothing.
fn log_of(feeds: usize, window: Limits) -> (StreamWriter, Arc<StreamBuffer>) {
    let (mut writer, log) =
        buffer::writer::channel("S", window, &Budget::new(4 << 30, feeds), None);
    writer.begin(tag(), 0);
    (writer, log)
}

fn open(log: &Arc<StreamBuffer>, filter: &str, profile: &Arc<FeedOptions>, start: Start) -> Cursor {
    log.open(filters(filter), profile, start)
        .now_or_never()
        .unwrap()
        .unwrap()
        .cursor
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    let name = EventName::parse("created").unwrap();
    let position = Position {
        tag: tag(),
        seq: 18_422,
        fingerprint: Some(Fingerprint::of_publish_time(0x7d3e)),
    };
    let text = |bytes| "x".repeat(bytes).into_bytes();
    let lines = vec!["x".repeat(63); 16].join("\n").into_bytes();
    for (case, data) in [
        ("64 B", text(64)),
        ("1 KiB", text(1024)),
        ("16 lines", lines),
        ("base64", vec![0xff; 1024]),
    ] {
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function(case, |bencher| {
            bencher.iter(|| {
                let parts = EventParts {
                    name: Some(&name),
                    subject: "orders.42",
                    data: black_box(&data),
                    position,
                };
                Framing::Sse.encoder().event(parts, http::ENVELOPE)
            })
        });
    }
}

/// Measures the conversion of a payload, which is made once per event and version.
fn convert(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("convert");
    let version = |text| Version::parse(text).unwrap();
    let patch = r#"[{"op":"move","from":"/customer/name","path":"/name"},{"op":"remove","path":"/customer"}]"#;
    let versions = Versions {
        current: version("2"),
        supported: vec![version("1"), version("2")],
        deprecated: BTreeMap::new(),
        conversions: vec![Conversion {
            from: version("2"),
            to: version("1"),
            patch: serde_json::from_str(patch).unwrap(),
        }],
    };
    let counter = |name| IntCounter::new(name, "of this benchmark").unwrap();
    let counters = ConversionCounters {
        converted: counter("converted"),
        failed: counter("failed"),
    };
    let converter = VersionConverter::new(&versions, version("1"), counters);
    let converter = Converter::new(Some(converter), None, None).unwrap();
    for (case, bytes) in [("64 B", 64), ("1 KiB", 1024)] {
        let payload = serde_json::json!({
            "customer": { "name": "Ada", "since": 1843 },
            "text": "x".repeat(bytes - 61),
        });
        let payload = payload.to_string();
        let subject: Arc<str> = "orders.42".into();
        let event = event(1, &subject, b"");
        group.throughput(Throughput::Bytes(payload.len() as u64));
        group.bench_function(case, |bencher| {
            bencher.iter(|| converter.convert(&event, black_box(payload.as_bytes()), 1 << 20))
        });
    }
}

/// Measures the validation of a payload, which is made once per event.
fn validate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("validate");
    let schema = serde_json::json!({
        "type": "object",
        "required": ["customer", "text"],
        "properties": {
            "customer": { "$ref": "#/$defs/customer" },
            "text": { "type": "string", "maxLength": 2000 },
        },
        "$defs": { "customer": {
            "type": "object",
            "required": ["name"],
            "properties": {
                "name": { "type": "string", "pattern": "^[A-Z]" },
                "since": { "type": "integer", "minimum": 1800 },
            },
        } },
    });
    let schema = schema.to_string();
    let documents = BTreeMap::from([("order".to_owned(), schema.into())]);
    for (mode, validate) in [("reject", Validation::Reject), ("count", Validation::Count)] {
        let config = SchemasConfig {
            origin: Some(SchemaOrigin::Folder("/schemas".into())),
            validate,
            payloads: vec![SchemaRule {
                subjects: filters("orders.>").filters().to_vec(),
                version: None,
                schema: "order".into(),
            }],
        };
        let schemas = Arc::new(Schemas::new(config, None, &Metrics::new().unwrap()));
        assert_eq!(schemas.update(&documents), Vec::<String>::new());
        let route = RouteSchemas::new(&schemas, filters("orders.>").filters(), None).unwrap();
        for (case, bytes) in [("64 B", 64), ("1 KiB", 1024)] {
            let payload = serde_json::json!({
                "customer": { "name": "Ada", "since": 1843 },
                "text": "x".repeat(bytes - 61),
            });
            let payload = payload.to_string();
            let subject: Arc<str> = "orders.42".into();
            let event = event(1, &subject, b"");
            group.throughput(Throughput::Bytes(payload.len() as u64));
            group.bench_function(BenchmarkId::new(mode, case), |bencher| {
                bencher.iter(|| route.rejects(&event, black_box(payload.as_bytes())))
            });
        }
    }
}

/// Measures appending a batch to a stream buffer whose feeds have these filters.
fn append_to(bencher: &mut criterion::Bencher<'_>, filters: &[String], subjects: &[Arc<str>]) {
    // Small windows are full after a few batches; then every event evicts one.
    let window = Limits {
        events: 1000,
        ..Limits::default()
    };
    let (mut writer, log) = log_of(filters.len(), window);
    let profile = Arc::new(FeedOptions {
        window,
        ..FeedOptions::default()
    });
    let cursors: Vec<Cursor> = filters
        .iter()
        .map(|filter| open(&log, filter, &profile, Start::Live))
        .collect();
    let mut seq = 0;
    bencher.iter_custom(|rounds| {
        let mut spent = Duration::ZERO;
        for _ in 0..rounds {
            let subject = |seq: u64| &subjects[seq as usize % subjects.len()];
            let batch = (seq + 1..=seq + BATCH)
                .map(|seq| event(seq, subject(seq), &[b'x'; 64]))
                .collect();
            seq += BATCH;
            let began = Instant::now();
            writer.append(batch);
            spent += began.elapsed();
        }
        spent
    });
    drop(cursors);
}

fn append(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("append 64");
    group.throughput(Throughput::Elements(BATCH));
    let users = |count| {
        (0..count)
            .map(|user| format!("users.{user}.created"))
            .collect::<Vec<_>>()
    };
    let subjects = |texts: Vec<String>| texts.into_iter().map(Arc::from).collect::<Vec<Arc<str>>>();
    group.bench_function("1 feed wants all", |bencher| {
        append_to(bencher, &["users.>".into()], &subjects(users(100)))
    });
    group.bench_function("1000 feeds want all", |bencher| {
        // A second filter, which never matches, makes each one a feed of its own.
        let filters: Vec<_> = (0..1000)
            .map(|number| format!("users.> others.{number}"))
            .collect();
        append_to(bencher, &filters, &subjects(users(100)));
    });
    group.bench_function("10000 feeds, one wants each", |bencher| {
        append_to(bencher, &users(10_000), &subjects(users(10_000)));
    });
}

fn read(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("read 64");
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("from the window", |bencher| {
        let (mut writer, log) = log_of(1, Limits::default());
        let subject: Arc<str> = "users.1.created".into();
        let mut cursor = open(&log, "users.>", &Arc::default(), Start::Live);
        let (mut seq, mut batch) = (0, Batch::default());
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                writer.append(
                    (seq + 1..=seq + BATCH)
                        .map(|seq| event(seq, &subject, &[b'x'; 64]))
                        .collect(),
                );
                seq += BATCH;
                let began = Instant::now();
                let read = cursor.poll_read(
                    &mut Context::from_waker(Waker::noop()),
                    &mut batch,
                    &mut ReadPolicy::all(16 << 10),
                );
                spent += began.elapsed();
                assert!(read.is_ready() && batch.items.len() == BATCH as usize);
                batch.items.clear();
            }
            spent
        });
    });
}

fn interest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("match");
    for count in [10, 10_000, 100_000] {
        let mut interest = SubjectTrie::default();
        for number in 0..count {
            let filter = match number % 10 {
                0 => format!("orders.{number}.>"),
                1 => format!("*.{number}.created"),
                2 => format!("users.*.alerts.{number}"),
                _ => format!("users.{number}.*"),
            };
            interest.insert(&filters(&filter), number);
        }
        let subjects: Vec<String> = (0..1000)
            .map(|number| format!("users.{}.created", number * 97 % count))
            .collect();
        group.bench_function(BenchmarkId::from_parameter(count), |bencher| {
            let (mut found, mut turn) = (Vec::new(), 0);
            bencher.iter(|| {
                turn = (turn + 1) % subjects.len();
                found.clear();
                interest.matches(black_box(&subjects[turn]), &mut found);
                found.len()
            });
        });
    }
}

fn seed(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("seed");
    group.sample_size(10);
    let count = 10_000;
    group.throughput(Throughput::Elements(count));
    group.bench_function("10000 feeds from 10000 events", |bencher| {
        let (mut writer, log) = log_of(count as usize, Limits::default());
        let subjects: Vec<Arc<str>> = (0..count)
            .map(|user| format!("users.{user}.created").into())
            .collect();
        writer.append(
            (1..=count)
                .zip(&subjects)
                .map(|(seq, subject)| event(seq, subject, &[b'x'; 64]))
                .collect(),
        );
        let (profile, start) = (
            Arc::new(FeedOptions::default()),
            Position {
                tag: tag(),
                seq: 1,
                fingerprint: None,
            },
        );
        bencher.iter_custom(|rounds| {
            let mut spent = Duration::ZERO;
            for _ in 0..rounds {
                let began = Instant::now();
                let cursors: Vec<Cursor> = subjects
                    .iter()
                    .map(|subject| open(&log, subject, &profile, Start::After(start)))
                    .collect();
                spent += began.elapsed();
                drop(cursors);
            }
            spent
        });
    });
}

fn id(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("id");
    for (case, text) in [
        ("1 source", "3fa9c1-18422-2k7d3ew"),
        (
            "3 sources",
            "3fa9c1-18422-2k7d3ew.000001-7.ed9319-9-0n14mfb",
        ),
    ] {
        group.bench_function(case, |bencher| {
            bencher.iter(|| EventId::parse(black_box(text.as_bytes())).unwrap())
        });
    }
}

criterion_group! {
    name = micro;
    // Half a second is enough to notice a change by a factor.
    config = Criterion::default()
        .without_plots()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
    targets = encode, convert, validate, append, read, interest, seed, id
}
criterion_main!(micro);
