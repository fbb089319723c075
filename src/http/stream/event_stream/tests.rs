//! Event streams without a transport over a stream buffer in memory: renewal and expiry of their
//! principals, and `max_age`.

use std::future::poll_fn;
use std::task::ready;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use super::opening::{Beginning, Opening};
use super::*;
use crate::auth;
use crate::encoding::Framing;
use crate::event::{Event, SourceTag};
use crate::feed::{self, Budget, Limits, StreamWriter};
use crate::http::config::{Config, Delivery, PathTemplate, RouteConfig, SourceConfig};
use crate::http::route::Routes;
use crate::http::stream::expiry::Expiry;
use crate::http::stream::group::GroupTimer;
use crate::http::stream::state::Peer;
use crate::limit::ConnectionLimiter;
use crate::limit::load_level::SharedLevel;
use crate::presence::{Protocol, StreamTable};
use crate::subject::{Allow, Filter, FilterSet, SubjectTemplate};
use crate::telemetry::{Metrics, Tracer};

/// One route with the source `S`, of which clients read `a`.
struct Fixture {
    context: Arc<Context>,
    writer: StreamWriter,
}

/// Time after the opening at which the principals of these tests expire.
const EXPIRES_AFTER: Duration = Duration::from_millis(200);

/// Twice the tick of an event stream: an end is rounded up.
const ROUNDING: Duration = Duration::from_millis(20);

/// Time after which a test fails, on a machine under load too.
const DEADLINE: Duration = Duration::from_secs(20);

fn tag() -> SourceTag {
    SourceTag::of_stream("S", 1)
}

impl Fixture {
    fn new() -> Self {
        Self::with_max_age(Duration::from_secs(3600))
    }

    fn with_max_age(max_age: Duration) -> Self {
        let budget = Budget::new(1 << 20, 100);
        let (mut writer, buffer) =
            feed::buffer::writer::channel("S", Limits::default(), &budget, None);
        writer.begin(tag(), 0);
        let source = SourceConfig {
            stream: Some("S".into()),
            bucket: None,
            identity: None,
            delivery: Delivery::Shared,
            subjects: vec![SubjectTemplate::parse("a").unwrap()],
            allow: Allow::default(),
        };
        let mut route = RouteConfig::new(PathTemplate::parse("/a").unwrap(), vec![source]);
        route.max_age = max_age;
        let config = Config {
            routes: vec![route],
            ..Config::default()
        };
        let metrics = Arc::new(Metrics::new().unwrap());
        let routes = Routes::new(config, &|_| buffer.clone(), &|_| None, None, None, &metrics);
        let tracer = Tracer::new(&metrics);
        let context = Context::new(
            metrics,
            tracer,
            StreamTable::default(),
            ConnectionLimiter::new(100),
            SharedLevel::default(),
        );
        context.set_routes(routes);
        Self { context, writer }
    }

    /// Opens an event stream that is not asked to renew before it ends.
    fn open(&self, principal_expires: Option<Instant>) -> EventStream {
        self.open_until(principal_expires.map(|end| expiry(end, end, Duration::ZERO)))
    }

    fn open_until(&self, expiry: Option<Expiry>) -> EventStream {
        self.open_call(expiry, None)
    }

    fn open_call(&self, expiry: Option<Expiry>, deadline: Option<Instant>) -> EventStream {
        let route = self.context.routes().find("/a").unwrap().route.clone();
        let opening = Opening {
            framing: Framing::Sse,
            subscriptions: None,
            options: route.options(Framing::Sse, None, None).clone(),
            route,
            filters: vec![FilterSet::new([Filter::parse("a").unwrap()])],
            last_event_id: None,
            beginning: Beginning::default(),
            client: "alice".into(),
            is_named: false,
            mark: None,
            permit: None,
            expiry,
            peer: Peer::new(([192, 0, 2, 1], 1).into(), Protocol::Http11, false),
            browser: false,
            deadline,
            span: None,
        };
        EventStream::open(&self.context, opening)
            .now_or_never()
            .expect("without presence and history it opens at once")
            .unwrap()
            .expect("it is not finite")
    }

    fn append(&mut self, seq: u64) {
        self.writer.append(vec![Event {
            position: Position {
                tag: tag(),
                seq,
                fingerprint: None,
            },
            subject: "a".into(),
            name: None,
            tier: None,
            is_end: false,
            sample: None,
            version: None,
            headers: Default::default(),
            data: format!("event {seq}").into(),
            received: Instant::now(),
        }]);
    }

    /// Series of closed event streams with their values.
    fn closed(&self) -> Vec<(String, u64)> {
        let text = self.context.metrics.render();
        text.lines()
            .filter_map(|line| line.strip_prefix("sidestream_streams_closed_total{"))
            .filter_map(|line| line.split_once("} "))
            .map(|(labels, value)| (labels.to_owned(), value.parse().unwrap()))
            .collect()
    }
}

fn expiry(at: Instant, end: Instant, renew_before: Duration) -> Expiry {
    let expiry = auth::Expiry {
        unix_seconds: 1_795_961_031,
        at,
        end,
    };
    Expiry::new(expiry, renew_before)
}

/// Bytes of an event stream that is polled as its transport polls it.
#[derive(Default)]
struct Client {
    text: String,
    close: Option<CloseReason>,
}

impl Client {
    fn poll_turn(&mut self, stream: &mut EventStream, task: &mut TaskContext<'_>) -> Poll<Step> {
        stream.state().poll_close_request(task.waker());
        let step = ready!(WriteBatch::with(|out| {
            let step = ready!(stream.poll_next(task, out));
            for segment in &out.segments {
                self.text += std::str::from_utf8(segment.as_slice()).unwrap();
            }
            Poll::Ready(step)
        }));
        if let Step::Close(close) = step {
            self.close = Some(close);
        }
        Poll::Ready(step)
    }

    /// Ready when the event stream has ended.
    fn poll(&mut self, stream: &mut EventStream, task: &mut TaskContext<'_>) -> Poll<()> {
        loop {
            match ready!(self.poll_turn(stream, task)) {
                Step::More => {}
                Step::Wait => return Poll::Pending,
                Step::Close(_) => return Poll::Ready(()),
            }
        }
    }

    /// Returns the event that ends the event stream.
    fn last_event(&self) -> &str {
        let events = self.text.trim_end();
        events.rsplit("\n\n").next().unwrap_or_default()
    }
}

async fn until_closed(client: &mut Client, stream: &mut EventStream) {
    let closed = poll_fn(|task| client.poll(stream, task));
    tokio::time::timeout(DEADLINE, closed)
        .await
        .expect("it closes");
}

#[tokio::test]
async fn event_stream_ends_when_its_principal_expires_and_keeps_its_position() {
    let mut fixture = Fixture::new();
    let expires = Instant::now() + EXPIRES_AFTER;
    let mut stream = fixture.open(Some(expires));
    fixture.append(7);
    let mut client = Client::default();
    until_closed(&mut client, &mut stream).await;
    // A tick earlier at most: times are rounded down.
    assert!(Instant::now() + Duration::from_millis(10) >= expires);
    assert_eq!(client.close, Some(CloseReason::Expired));
    assert!(client.text.contains("data: event 7\n"), "{}", client.text);
    let last = client.last_event();
    let position = format!("id: {}", Joined(&stream.positions()));
    for start in [
        "event: sidestream.close",
        r#"data: {"reason":"expired","retry":"#,
        &position,
    ] {
        assert!(last.lines().any(|line| line.starts_with(start)), "{last}");
    }
    assert_eq!(stream.positions()[0].seq, 7);

    let expired = |fixture: &Fixture| {
        let closed = fixture.closed();
        closed
            .into_iter()
            .find(|(labels, _)| labels.contains("\"expired\""))
            .map(|(_, count)| count)
    };
    assert_eq!(expired(&fixture), Some(0), "closed labels begin at 0");
    drop(stream);
    assert_eq!(expired(&fixture), Some(1));
}

#[tokio::test]
async fn idle_client_is_asked_once_to_renew_before_the_end() {
    let fixture = Fixture::new();
    let now = Instant::now();
    let (at, end) = (now + EXPIRES_AFTER, now + 2 * EXPIRES_AFTER);
    let mut stream = fixture.open_until(Some(expiry(at, end, Duration::from_secs(60))));
    let mut client = Client::default();
    let asked = poll_fn(|task| {
        assert!(client.poll(&mut stream, task).is_pending());
        if client.text.contains("sidestream.renew") {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
    until_closed(&mut client, &mut stream).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
    let renewals: Vec<_> = client
        .text
        .split("\n\n")
        .filter(|event| event.contains("sidestream.renew"))
        .collect();
    assert_eq!(
        renewals,
        ["event: sidestream.renew\ndata: {\"expires\":1795961031}"]
    );
}

#[tokio::test]
async fn client_is_asked_to_renew_while_events_arrive_without_a_pause() {
    let mut fixture = Fixture::new();
    let at = Instant::now() + EXPIRES_AFTER;
    let end = at + Duration::from_secs(3600);
    let mut stream = fixture.open_until(Some(expiry(at, end, Duration::from_secs(60))));
    let mut client = Client::default();
    let mut seq = 0;
    let asked = poll_fn(|task| {
        // An event waits in every turn: none reaches the timer.
        seq += 1;
        fixture.append(seq);
        assert!(!matches!(
            client.poll_turn(&mut stream, task),
            Poll::Ready(Step::Close(_))
        ));
        task.waker().wake_by_ref();
        if client.text.contains("sidestream.renew") {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    });
    tokio::time::timeout(DEADLINE, asked).await.unwrap();
    assert_eq!(client.close, None);
}

#[tokio::test]
async fn stalled_client_whose_principal_expired_meanwhile_is_not_asked_to_renew() {
    let fixture = Fixture::new();
    let end = Instant::now() + EXPIRES_AFTER;
    let mut stream = fixture.open_until(Some(expiry(end, end, Duration::from_secs(60))));
    let mut client = Client::default();
    stream.state().set_slow();
    tokio::time::sleep(EXPIRES_AFTER + ROUNDING).await;
    until_closed(&mut client, &mut stream).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
    assert!(!client.text.contains("renew"), "{}", client.text);
}

#[tokio::test]
async fn expired_principal_ends_one_event_stream_of_an_http2_connection() {
    let fixture = Fixture::new();
    let mut expiring = fixture.open(Some(Instant::now() + EXPIRES_AFTER));
    let mut other = fixture.open(None);
    let group = Arc::new(StreamGroup::default());
    expiring.join(&group, 1);
    other.join(&group, 3);
    let mut timer = GroupTimer::new(group.clone());
    let (mut client, mut other_client) = (Client::default(), Client::default());
    let closed = poll_fn(|task| {
        timer.poll(task);
        assert!(other_client.poll(&mut other, task).is_pending());
        client.poll(&mut expiring, task)
    });
    tokio::time::timeout(DEADLINE, closed)
        .await
        .expect("it closes");
    assert_eq!(client.close, Some(CloseReason::Expired));
    assert!(expiring.timer.is_none(), "the timer of the group suffices");
    assert_eq!(
        group.until_max_age().now_or_never(),
        None,
        "the connection stays"
    );
    assert_eq!(other.state().close_request(), None);
}

/// Appends an event before each turn, so that none reaches the timer, until the condition holds or
/// the event stream closes. Returns the last sequence.
async fn publish_without_a_pause(
    fixture: &mut Fixture,
    client: &mut Client,
    stream: &mut EventStream,
    mut is_reached: impl FnMut() -> bool,
) -> u64 {
    let mut seq = 0;
    let reached = poll_fn(|task| {
        seq += 1;
        fixture.append(seq);
        let step = client.poll_turn(stream, task);
        if matches!(step, Poll::Ready(Step::Close(_))) || is_reached() {
            return Poll::Ready(());
        }
        task.waker().wake_by_ref();
        Poll::Pending
    });
    tokio::time::timeout(DEADLINE, reached)
        .await
        .expect("it is noticed in a busy turn");
    seq
}

#[tokio::test]
async fn principal_expires_while_events_arrive_without_a_pause() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Some(Instant::now() + EXPIRES_AFTER));
    let mut client = Client::default();
    let seq = publish_without_a_pause(&mut fixture, &mut client, &mut stream, || false).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
    let delivered = stream.positions()[0].seq;
    assert!(delivered > 1 && delivered <= seq, "{delivered} of {seq}");
    assert!(
        client.text.contains(&format!("data: event {delivered}\n")),
        "the position is that of the last event"
    );
}

#[tokio::test]
async fn events_that_wait_when_the_principal_expires_belong_to_the_next_connection() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Some(Instant::now()));
    fixture.append(1);
    let mut client = Client::default();
    until_closed(&mut client, &mut stream).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
    assert!(!client.text.contains("data: event"), "{}", client.text);
    assert_eq!(stream.positions()[0].seq, 0);
}

#[tokio::test]
async fn stalled_client_receives_no_event_after_its_principal_expired() {
    let mut fixture = Fixture::new();
    let mut stream = fixture.open(Some(Instant::now() + EXPIRES_AFTER));
    let mut client = Client::default();
    poll_fn(|task| Poll::Ready(client.poll(&mut stream, task).is_pending())).await;
    fixture.append(1);
    stream.state().set_slow();
    tokio::time::sleep(EXPIRES_AFTER + ROUNDING).await;
    until_closed(&mut client, &mut stream).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
    assert!(!client.text.contains("data: event"), "{}", client.text);
}

#[tokio::test]
async fn max_age_ends_an_event_stream_with_events_in_every_turn_after_those_that_wait() {
    let mut fixture = Fixture::with_max_age(EXPIRES_AFTER);
    let mut stream = fixture.open(None);
    let mut client = Client::default();
    let seq = publish_without_a_pause(&mut fixture, &mut client, &mut stream, || false).await;
    assert_eq!(client.close, Some(CloseReason::Age));
    assert!(seq > 1);
    assert_eq!(
        stream.positions()[0].seq,
        seq,
        "the last event is delivered"
    );
    assert!(client.text.contains(&format!("data: event {seq}\n")));
}

#[tokio::test]
async fn max_age_of_a_busy_event_stream_is_that_of_its_http2_connection() {
    let mut fixture = Fixture::with_max_age(EXPIRES_AFTER);
    let mut stream = fixture.open(None);
    let group = Arc::new(StreamGroup::default());
    stream.join(&group, 1);
    let mut client = Client::default();
    let is_reached = || group.until_max_age().now_or_never().is_some();
    publish_without_a_pause(&mut fixture, &mut client, &mut stream, is_reached).await;
    assert_eq!(client.close, None, "the connection ends it");

    let ending = group.end_all();
    let closed = until_closed(&mut client, &mut stream);
    tokio::join!(ending, closed);
    assert_eq!(client.close, Some(CloseReason::Age));
    assert_eq!(group.until_max_age().now_or_never(), None, "reported once");
}

#[tokio::test]
async fn deadline_of_a_call_ends_it_before_or_after_the_renewal_of_its_principal() {
    let mut fixture = Fixture::new();
    // The renewal is in the middle.
    let renewals = [(4 * EXPIRES_AFTER, false), (EXPIRES_AFTER, true)];
    for (expires_after, is_asked) in renewals {
        let now = Instant::now();
        let expires = now + expires_after;
        let deadline = now + EXPIRES_AFTER;
        let expiry = expiry(expires, expires + DEADLINE, Duration::from_secs(60));
        let mut stream = fixture.open_call(Some(expiry), Some(deadline));
        fixture.append(if is_asked { 8 } else { 7 });
        let mut client = Client::default();
        until_closed(&mut client, &mut stream).await;
        assert!(Instant::now() + Duration::from_millis(10) >= deadline);
        assert_eq!(client.close, Some(CloseReason::Deadline));
        assert_eq!(client.text.contains("sidestream.renew"), is_asked);
        let reason = r#"data: {"reason":"deadline","retry":"#;
        assert!(client.last_event().contains(reason), "{}", client.text);
    }
}

#[tokio::test]
async fn principal_that_expires_before_the_deadline_of_its_call_ends_it() {
    let fixture = Fixture::new();
    let expires = Instant::now() + EXPIRES_AFTER;
    let expiry = expiry(expires, expires, Duration::ZERO);
    let mut stream = fixture.open_call(Some(expiry), Some(expires + DEADLINE));
    let mut client = Client::default();
    until_closed(&mut client, &mut stream).await;
    assert_eq!(client.close, Some(CloseReason::Expired));
}
