//! The product without HTTP: a real nats-server on one side, cursors on the other.

use std::future::poll_fn;
use std::sync::Arc;

use sidestream::feed::cursor::Read;
use sidestream::feed::{
    self, Budget, CoreSource, Cursor, FeedOptions, GapReason, Item, Limits, ReadPolicy,
    Source as _, Start, StreamBuffer,
};
use sidestream::lifecycle::health::{Health, Status};
use sidestream::lifecycle::shutdown;
use sidestream::nats::config::{Config, Credentials, Tls};
use sidestream::nats::{self, Identity, StreamConfig};
use sidestream::subject::{Filter, FilterSet};
use sidestream::telemetry::{Metrics, Tracer};

use testkit::sse_parser::Parser;
use testkit::wait::{RECOVERY, eventually, within};

/// Connections to NATS, with everything that they need.
pub struct Upstream {
    pub nats: nats::Nats,
    pub health: Health,
    pub metrics: Arc<Metrics>,
    pub identity: Identity,
    budget: Arc<Budget>,
    signal: shutdown::Trigger,
    watch: shutdown::Token,
}

/// Item that a cursor has read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen {
    /// Event: sequence, name, data.
    Event(u64, String, String),
    /// Gap: reason, number of missed events.
    Gap(GapReason, Option<u64>),
}

/// Reader of one feed, with everything that it has read.
pub struct Reader {
    pub cursor: Cursor,
    pub seen: Vec<Seen>,
}

// === impl Upstream ===

impl Upstream {
    /// Connects to this server, or to several separated by commas, without credentials.
    pub async fn connect(url: &str) -> Self {
        Self::connect_with(url, Credentials::None, None).await
    }

    /// Connects with credentials or TLS.
    pub async fn connect_with(url: &str, credentials: Credentials, tls: Option<Tls>) -> Self {
        let config = Config {
            servers: url.split(',').map(ToOwned::to_owned).collect(),
            credentials,
            tls,
        };
        let (health, metrics) = (Health::default(), Arc::new(Metrics::new().unwrap()));
        let identity = Identity::new("test.pod");
        let tracer = Tracer::new(&metrics);
        let nats = nats::connect(&config, identity.clone(), &health, &metrics, &tracer)
            .await
            .unwrap();
        let (signal, watch) = shutdown::channel();
        Self {
            nats,
            health,
            metrics,
            identity,
            budget: Budget::new(1 << 30, 20_000),
            signal,
            watch,
        }
    }

    /// Follows everything in a stream.
    pub fn tail(&self, stream: &str, filters: &[&str]) -> Arc<StreamBuffer> {
        self.tail_with(StreamConfig {
            name: stream.to_owned(),
            filters: filter_set(filters),
            bucket: None,
            identity: None,
            window: Limits::default(),
        })
    }

    /// Follows a stream.
    pub fn tail_with(&self, config: StreamConfig) -> Arc<StreamBuffer> {
        let (writer, log) = feed::buffer::writer::channel(
            config.name.as_str(),
            Limits::default(),
            &self.budget,
            None,
        );
        self.nats.tail(config, writer, self.watch.clone());
        log
    }

    /// Serves core subjects.
    pub fn core(&self) -> Arc<CoreSource> {
        let (core, writer) = feed::core_source::channel(self.identity.tag(), &self.budget);
        self.nats.serve_core(writer, self.watch.clone());
        core
    }

    /// Waits until this check passes.
    pub async fn until_ok(&self, check: &str) {
        eventually(RECOVERY, &format!("check {check} passes"), || {
            std::future::ready(self.health.report().get(check) == Some(&Status::Ok))
        })
        .await;
    }

    /// Waits until this check fails or is degraded with a message that contains these words.
    pub async fn until_reported(&self, check: &str, words: &[&str]) -> String {
        eventually(RECOVERY, &format!("check {check} says {words:?}"), || {
            let text = match self.health.report().get(check) {
                Some(Status::Failing(why) | Status::Degraded(why)) => why.clone(),
                _ => String::new(),
            };
            std::future::ready(words.iter().all(|word| text.contains(word)).then_some(text))
        })
        .await
    }

    /// Shuts everything down gracefully.
    pub async fn shut_down(self) {
        drop(self.watch);
        within(
            RECOVERY,
            "the tasks release their watches",
            self.signal.shut_down(),
        )
        .await;
        self.nats.close().await;
    }
}

// === impl Reader ===

impl Reader {
    /// Reads a stream buffer live; waits until the buffer has begun.
    pub async fn of_log(log: &Arc<StreamBuffer>, filters: &[&str]) -> Self {
        let profile = Arc::new(FeedOptions::default());
        let cursor = eventually(RECOVERY, "the log has begun", || async {
            log.open(filter_set(filters), &profile, Start::Live)
                .await
                .ok()
        })
        .await
        .cursor;
        Self {
            cursor,
            seen: Vec::new(),
        }
    }

    /// Reads a stream buffer after a position.
    pub async fn of_log_after(log: &Arc<StreamBuffer>, filters: &[&str], seq: u64) -> Self {
        let tag = eventually(RECOVERY, "the log has begun", || {
            std::future::ready(log.tag().ok())
        })
        .await;
        let start = Start::After(sidestream::event::Position {
            tag,
            seq,
            fingerprint: None,
        });
        let profile = Arc::new(FeedOptions::default());
        let opened = eventually(RECOVERY, "the log is caught up", || async {
            log.open(filter_set(filters), &profile, start).await.ok()
        })
        .await;
        Self {
            cursor: opened.cursor,
            seen: Vec::new(),
        }
    }

    /// Reads core subjects live.
    pub async fn of_core(core: &Arc<CoreSource>, filters: &[impl AsRef<str>]) -> Self {
        let opened = core
            .open(
                filter_set(filters),
                &Arc::new(FeedOptions::default()),
                Start::Live,
            )
            .await
            .unwrap();
        Self {
            cursor: opened.cursor,
            seen: Vec::new(),
        }
    }

    /// Reads until `count` items were seen.
    pub async fn until_seen(&mut self, count: usize) -> &[Seen] {
        self.until(&format!("{count} things are seen"), |seen| {
            seen.len() >= count
        })
        .await
    }

    /// Reads until `is_so` returns true for the items.
    pub async fn until(&mut self, fact: &str, is_so: impl Fn(&[Seen]) -> bool) -> &[Seen] {
        let deadline = tokio::time::Instant::now() + RECOVERY;
        while !is_so(&self.seen) {
            if tokio::time::timeout_at(deadline, self.read())
                .await
                .is_err()
            {
                let tail = &self.seen[self.seen.len().saturating_sub(5)..];
                panic!(
                    "still not true: {fact}; {} seen, at last {tail:?}",
                    self.seen.len()
                );
            }
        }
        &self.seen
    }

    /// Sequences of the events.
    pub fn sequences(&self) -> Vec<u64> {
        let number = |seen: &Seen| match seen {
            Seen::Event(seq, ..) => Some(*seq),
            Seen::Gap(..) => None,
        };
        self.seen.iter().filter_map(number).collect()
    }

    /// Reasons of the gaps.
    pub fn gaps(&self) -> Vec<GapReason> {
        let reason = |seen: &Seen| match seen {
            Seen::Gap(reason, _) => Some(*reason),
            Seen::Event(..) => None,
        };
        self.seen.iter().filter_map(reason).collect()
    }

    /// Data of the events.
    pub fn data(&self) -> Vec<&str> {
        let data = |seen: &'_ Seen| matches!(seen, Seen::Event(..));
        self.seen
            .iter()
            .filter(|seen| data(seen))
            .map(|seen| match seen {
                Seen::Event(_, _, data) => data.as_str(),
                Seen::Gap(..) => "",
            })
            .collect()
    }

    async fn read(&mut self) {
        let mut batch = feed::Batch::default();
        let read = poll_fn(|context| {
            self.cursor
                .poll_read(context, &mut batch, &mut ReadPolicy::all(1 << 20))
        })
        .await;
        assert_ne!(read, Read::Ended, "the feed ended");
        for item in batch.items {
            self.seen.push(match item {
                Item::Gap { gap, .. } => Seen::Gap(gap.reason, gap.missed),
                Item::Coded { .. } => panic!("the feed does not compress"),
                Item::Copied { .. } => panic!("not asked for"),
                Item::Event {
                    encoding, position, ..
                } => {
                    let event = Parser::default().feed(encoding.bytes()).remove(0);
                    Seen::Event(position.seq, event.name, event.data)
                }
            });
        }
    }
}

/// Parses a filter set.
pub fn filter_set(filters: &[impl AsRef<str>]) -> FilterSet {
    FilterSet::new(
        filters
            .iter()
            .map(|text| Filter::parse(text.as_ref()).unwrap()),
    )
}
