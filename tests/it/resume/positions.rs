//! Resume with every kind of position over both protocols: later events, or a gap.

use super::reader::{Reader, Via};
use super::{Fixture, texts};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// Request of a client, and the events that it must get before the last one.
struct Case {
    what: &'static str,
    target: String,
    headers: Vec<(&'static str, String)>,
    expected: Vec<String>,
}

/// Client with this `Last-Event-ID`.
fn header(what: &'static str, id: impl Into<String>, expected: Vec<String>) -> Case {
    Case {
        what,
        target: "/all".to_owned(),
        headers: vec![("last-event-id", id.into())],
        expected,
    }
}

/// Client with this `?last_event_id=`.
fn query(what: &'static str, id: &str, expected: Vec<String>) -> Case {
    Case {
        what,
        target: format!("/all?last_event_id={id}"),
        headers: Vec::new(),
        expected,
    }
}

fn gap(reason: &str) -> Vec<String> {
    vec![format!("gap:{reason}:live")]
}

/// Digits of the check in an id, in ascending order.
const DIGITS: &str = "0123456789abcdefghjkmnpqrstvwxyz";

/// Separates the position in an id from its check: seven digits for 32 bits.
fn checked(id: &str) -> (&str, u32) {
    let (position, check) = id.rsplit_once('-').unwrap();
    assert_eq!(check.len(), 7, "{id}");
    let value = check.chars().fold(0, |value: u64, digit| {
        value * 32 + DIGITS.find(digit).unwrap() as u64
    });
    (position, value.try_into().unwrap())
}

/// The id with these bits of its check inverted.
fn with_another_check(id: &str, bits: u32) -> String {
    let (position, check) = checked(id);
    let value = check ^ bits;
    let digits = (0..7).rev().map(|nth| {
        let digit = (value >> (5 * nth)) % 32;
        &DIGITS[digit as usize..=digit as usize]
    });
    format!("{position}-{}", digits.collect::<String>())
}

/// The id as version 0.1 wrote it, with these bits of its check inverted.
fn of_version_0_1(id: &str, bits: u16) -> String {
    let (position, check) = checked(id);
    let short = (check >> 16) as u16 ^ check as u16 ^ bits;
    format!("{position}-{short:04x}")
}

impl Fixture {
    /// Opens every case over every protocol, publishes `end`, and compares.
    async fn show(&self, cases: &[Case]) {
        let mut readers = Vec::new();
        for case in cases {
            for via in Via::ALL {
                let headers: Vec<_> = case
                    .headers
                    .iter()
                    .map(|(name, value)| (*name, value.as_str()))
                    .collect();
                let reader = Reader::open(&self.sidestream, via, &case.target, &headers).await;
                assert_eq!(reader.status(), 200, "{} over {via:?}", case.what);
                readers.push((case, via, reader));
            }
        }
        self.publish("a.end", "end").await;
        for (case, via, mut reader) in readers {
            assert_eq!(
                reader.until("end").await,
                case.expected,
                "{} over {via:?}",
                case.what
            );
        }
    }

    async fn purge_before(&self, sequence: u64) {
        self.stream.purge().sequence(sequence).await.unwrap();
        self.knows_expired(sequence - 2).await;
    }

    /// Waits until the sidecar knows of a purge: it caches the state of the stream for a second.
    pub(crate) async fn knows_expired(&self, sequence: u64) {
        let id = format!("{}-{sequence}", self.tag().await);
        eventually(DEADLINE, "the sidecar knows what is retained", || async {
            self.resume(Via::Http1, "/status", &id).await.status() == 416
        })
        .await;
    }
}

#[tokio::test]
async fn retained_events_follow_every_position_once_and_in_order() {
    let named = "  - { path: /named, sources: [{ stream: A, subjects: [\"a.>\"] }], window: { events: 20 }, last_event_id_query: after }";
    let fixture = Fixture::with_routes(300, named).await;
    let ids = fixture.ids().await;
    fixture.purge_before(101).await;
    for sequence in [150, 151, 152] {
        fixture.stream.delete_message(sequence).await.unwrap();
    }
    // The clients that waited for the purge may have received a gap.
    fixture.until_no_replay_runs().await;
    let told = fixture
        .sidestream
        .metric("sidestream_gaps_total", &[])
        .await;
    let past = |first: u64| -> Vec<String> {
        texts(first, 300)
            .into_iter()
            .filter(|text| !["150", "151", "152"].contains(&text.as_str()))
            .collect()
    };
    let id = |number: usize| ids[number - 1].clone();
    let bare = |number: usize| ids[number - 1].rsplit_once('-').unwrap().0.to_owned();
    let old = |number: usize| of_version_0_1(&ids[number - 1], 0);
    let both = Case {
        headers: vec![("last-event-id", id(298))],
        ..query("both ways", &id(120), past(299))
    };
    let named = |name: &str| Case {
        what: "under another name in the query",
        target: format!("/named?{name}={}", id(250)),
        headers: Vec::new(),
        expected: past(251),
    };
    let appended = Case {
        target: format!(
            "/all?last_event_id={}&lastEventId={}&lastEventID=",
            id(120),
            id(298)
        ),
        ..query("the last of several in the query", "", past(299))
    };
    let empty = Case {
        headers: vec![("last-event-id", String::new())],
        ..query("an empty header", &id(298), past(299))
    };
    fixture
        .show(&[
            header("in the window", id(290), past(291)),
            header("the newest but one", id(299), past(300)),
            header("last_seq", id(300), Vec::new()),
            header("last_seq without a check", bare(300), Vec::new()),
            header("at the beginning of the window", id(280), past(281)),
            header("just outside of the window", id(279), past(280)),
            header("only in the archive", id(200), past(201)),
            header("in the archive without a check", bare(200), past(201)),
            header("first_seq", id(101), past(102)),
            header("first_seq - 1", id(100), past(101)),
            header("before deleted messages", id(149), past(153)),
            header("at a deleted message", id(151), past(153)),
            header("of version 0.1, in the window", old(290), past(291)),
            header("of version 0.1, the newest", old(300), Vec::new()),
            header("of version 0.1, in the archive", old(200), past(201)),
            header("of version 0.1, deleted", old(151), past(153)),
            query("of version 0.1, by the query", &old(250), past(251)),
            query("in the archive, by the query", &id(250), past(251)),
            named("last_event_id"),
            named("lastEventId"),
            named("lastEventID"),
            named("Last-Event-ID"),
            named("after"),
            appended,
            both,
            empty,
        ])
        .await;
    fixture.until_no_replay_runs().await;
    assert_eq!(
        fixture
            .sidestream
            .metric("sidestream_gaps_total", &[])
            .await,
        told
    );
}

#[tokio::test]
async fn client_with_an_id_of_version_0_1_receives_the_full_one() {
    let fixture = Fixture::with(300).await;
    let ids = fixture.ids().await;
    for id in [&ids[149], &ids[299]] {
        let mut client = SseClient::get(fixture.sidestream.url("/all"))
            .last_event_id(&of_version_0_1(id, 0))
            .connect()
            .await;
        client.positioned().await;
        assert_eq!(client.last_event_id(), id);
    }
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn an_unknown_position_is_one_gap_and_then_live() {
    let fixture = Fixture::with(300).await;
    let ids = fixture.ids().await;
    let tag = ids[0].split('-').next().unwrap();
    let other = ids[249].replacen(tag, if tag == "abcdef" { "fedcba" } else { "abcdef" }, 1);
    fixture
        .show(&[
            header("ahead by one", format!("{tag}-301"), gap("ahead")),
            header(
                "far ahead",
                format!("{tag}-{}-0000", u64::MAX),
                gap("ahead"),
            ),
            header(
                "another check in the archive",
                with_another_check(&ids[149], 1),
                gap("recreated"),
            ),
            header(
                "another check in the window",
                with_another_check(&ids[289], 1 << 31),
                gap("recreated"),
            ),
            header(
                "another check of the newest, with the same 16 bits",
                with_another_check(&ids[299], 0x0001_0001),
                gap("recreated"),
            ),
            header(
                "another check of version 0.1 in the archive",
                of_version_0_1(&ids[149], 1),
                gap("recreated"),
            ),
            header(
                "another check of version 0.1 in the window",
                of_version_0_1(&ids[289], 1 << 15),
                gap("recreated"),
            ),
            header("another stream's", other, gap("recreated")),
            header("garbage", "an id, or what?", gap("invalid")),
            header("half an id", format!("{tag}-"), gap("invalid")),
            header(
                "a number too large",
                format!("{tag}-99999999999999999999"),
                gap("invalid"),
            ),
            header("10 kB", "9".repeat(10_240), gap("invalid")),
            header(
                "10 kB of ids",
                format!("{tag}-1.").repeat(1000),
                gap("invalid"),
            ),
            query("10 kB in the query", &"9".repeat(5_000), gap("invalid")),
            query("NUL", "%00", gap("invalid")),
            query("NUL in an id", &format!("{tag}-1%00"), gap("invalid")),
            query("not UTF-8", "%ff%fe", gap("invalid")),
            query(
                "line ends",
                &format!("{tag}-1%0d%0aid:%20x"),
                gap("invalid"),
            ),
            query("empty, so no position", "", Vec::new()),
        ])
        .await;
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn below_retention_programs_get_a_status_and_browsers_a_gap_and_the_rest() {
    let fixture = Fixture::with(300).await;
    let ids = fixture.ids().await;
    fixture.purge_before(101).await;
    const BROWSER: (&str, &str) = ("user-agent", "Mozilla/5.0 (rig)");
    let mut refused = Vec::new();
    for via in Via::ALL {
        for id in [&ids[49], &ids[98]] {
            let id = ("last-event-id", id.as_str());
            for (target, headers) in [
                ("/all", vec![id]),
                ("/status", vec![id]),
                ("/status", vec![id, BROWSER]),
            ] {
                refused.push((
                    via,
                    target,
                    Reader::open(&fixture.sidestream, via, target, &headers).await,
                ));
            }
        }
    }
    for (via, target, mut answer) in refused {
        assert_eq!(answer.status(), 416, "{target} over {via:?}");
        assert_eq!(
            answer.header("content-type").as_deref(),
            Some("application/json")
        );
        let error = answer.json().await["error"].clone();
        assert_eq!(error["code"], "last_event_id_expired");
        assert!(
            error["message"].is_string() && error["hint"].is_string(),
            "{error}"
        );
    }
    let expected = [vec!["gap:expired:oldest".to_owned()], texts(101, 300)].concat();
    let browser = vec![
        ("last-event-id", ids[49].clone()),
        (BROWSER.0, BROWSER.1.to_owned()),
    ];
    let at_the_edge = header("", ids[98].clone(), expected.clone());
    fixture
        .show(&[
            Case {
                what: "a browser",
                target: "/all".into(),
                headers: browser.clone(),
                expected: expected.clone(),
            },
            Case {
                what: "a browser, gap",
                target: "/gap".into(),
                headers: browser,
                expected,
            },
            Case {
                what: "a program, gap",
                target: "/gap".into(),
                ..at_the_edge
            },
        ])
        .await;
    fixture.until_no_replay_runs().await;
}

#[tokio::test]
async fn a_purge_is_a_gap_for_older_positions_and_none_for_the_newest() {
    let fixture = Fixture::with(300).await;
    let ids = fixture.ids().await;
    fixture.stream.purge().await.unwrap();
    fixture.knows_expired(200).await;
    let expired = header(
        "before the end",
        ids[199].clone(),
        vec!["gap:expired:oldest".to_owned()],
    );
    fixture
        .show(&[
            header("at the end", ids[299].clone(), Vec::new()),
            // Events in the memory of this sidecar are still delivered.
            header("in the window", ids[289].clone(), texts(291, 300)),
            Case {
                target: "/gap".into(),
                ..expired
            },
        ])
        .await;
    let mut refused = fixture.resume(Via::Http1, "/all", &ids[199]).await;
    assert_eq!(
        (
            refused.status(),
            refused.json().await["error"]["code"].as_str()
        ),
        (416, Some("last_event_id_expired"))
    );
    fixture.until_no_replay_runs().await;
}
