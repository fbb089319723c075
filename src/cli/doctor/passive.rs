//! Checks by an event stream itself: its head, its first bytes, its silence and its end.
//!
//! They need nothing of the server. About Sidestream more is known: what it sends first, and that it
//! announces each end.

use std::time::Duration;

use hyper::Method;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue, ORIGIN,
};
use tokio::time::{Instant, sleep, timeout};

use super::advice::usual_cause;
use super::fault::Fault;
use super::heads;
use super::probes::{AFTER, Probes, UNKNOWN_ORIGIN, preflight, seconds};
use super::report::PodReport;
use super::request::{End, NoResponse, POSITION, Received, Requests, contains};
use super::sheet::Sheet;

/// 5 s: Sidestream sends the first bytes of an event stream at once.
const FIRST_BYTES: Duration = Duration::from_secs(5);

/// 1.5 s: see `probes`.
const TOGETHER: Duration = Duration::from_millis(1500);

/// Faults that only a pod that answers probes can show.
const NEED_PROBES: [Fault; 3] = [Fault::Http10, Fault::Goaway, Fault::Window];

/// Checks of a run.
pub(super) struct Passive<'a> {
    pub(super) requests: &'a Requests,
    pub(super) sheet: &'a Sheet,
    pub(super) watch: Duration,
    pub(super) origin: Option<&'a str>,
}

impl Passive<'_> {
    /// Runs all checks of a server that answers no probes.
    pub(super) async fn run(&self) {
        for fault in NEED_PROBES {
            self.sheet.skip(fault, "needs `doctor: true` on the route");
        }
        tokio::join!(
            self.event_stream(None),
            self.position(),
            self.compressed(),
            self.reuse(),
            self.cors(),
        );
    }

    /// Watches an event stream. `probes`: the pod answers probes, which find the rest.
    pub(super) async fn event_stream(&self, probes: Option<(&Probes<'_>, &PodReport)>) {
        let sheet = self.sheet;
        let accept = [sse()];
        let (opened, _connection) = match self.requests.open(&accept).await {
            Ok(opened) => opened,
            Err(NoResponse::Late) if probes.is_none() => return self.head_held_back().await,
            Err(why) => return sheet.note(format!("the event stream did not open: {why}")),
        };
        let head = opened.response.headers().clone();
        self.check_head(&head, probes.map(|(_, pod)| pod));
        let sent = opened.sent;
        let until = sent + self.watch + AFTER;
        let received = opened.receive(until, |_| false).await;
        let is_sidestream = heads::is_sidestream(&head) || received.has("event: sidestream.");
        let first = received.blocks.first().map(|(at, _)| *at);
        if probes.is_none() {
            self.check_first_bytes(first, is_sidestream, &received);
        }
        self.check_end(&received, is_sidestream, probes).await;
    }

    /// The head of the response is missing. A HEAD request shows whether it waits for the body.
    async fn head_held_back(&self) {
        let head = async {
            let mut connection = self.requests.connect().await?;
            let headers = [sse()];
            let sent = self.requests.send(&mut connection, Method::HEAD, &headers);
            sent.await
        };
        let sheet = self.sheet;
        for fault in [Fault::AgeLimit, Fault::IdleTimeout, Fault::SilentDrop] {
            sheet.skip(fault, "the response does not begin");
        }
        match head.await {
            Ok(opened) if opened.response.status().is_success() => sheet.fault(
                Fault::Buffering,
                "HEAD is answered at once, but GET is not: the head of an event stream waits in a \
                 buffer for more bytes",
            ),
            Ok(opened) => sheet.note(format!(
                "the event stream does not begin, and HEAD is answered with {}",
                opened.response.status()
            )),
            Err(why) => sheet.note(format!("the server does not answer: {why}")),
        }
    }

    fn check_head(&self, head: &HeaderMap, pod: Option<&PodReport>) {
        let changes = match pod {
            Some(pod) => {
                let sent = pod.head.iter();
                let sent = sent.map(|(name, value)| (name.as_str(), value.as_str()));
                heads::changes(sent, head)
            }
            None if heads::is_sidestream(head) => heads::changes(heads::EXPECTED.into_iter(), head),
            None if !heads::is_event_stream(head) => {
                vec!["the content is not `text/event-stream`".into()]
            }
            None => {
                let reason = "the server is not known to be Sidestream";
                return self.sheet.skip(Fault::HeaderChanged, reason);
            }
        };
        if changes.is_empty() {
            self.sheet.pass(Fault::HeaderChanged);
        } else {
            self.sheet.fault(Fault::HeaderChanged, changes.join("; "));
        }
    }

    fn check_first_bytes(&self, first: Option<Duration>, is_sidestream: bool, received: &Received) {
        let sheet = self.sheet;
        match first {
            Some(first) if first < FIRST_BYTES => {
                sheet.pass(Fault::BodyHeldBack);
                sheet.pass(Fault::Buffering);
            }
            _ if is_sidestream => sheet.fault(
                Fault::BodyHeldBack,
                format!(
                    "the head arrives and the first bytes do not, within {}; the server sends them \
                     at once",
                    seconds(first.unwrap_or(received.age))
                ),
            ),
            _ => {
                for fault in [Fault::BodyHeldBack, Fault::Buffering] {
                    sheet.skip(fault, "the server has sent no bytes at the beginning");
                }
            }
        }
    }

    async fn check_end(
        &self,
        received: &Received,
        is_sidestream: bool,
        probes: Option<(&Probes<'_>, &PodReport)>,
    ) {
        let sheet = self.sheet;
        if received.end == End::Stopped {
            if probes.is_none() {
                self.check_silence(received, is_sidestream);
            }
            return;
        }
        if received.has("event: sidestream.close") || received.has("event: sidestream.end") {
            return sheet.note(format!(
                "the pod has ended the event stream after {}, in good order",
                seconds(received.age)
            ));
        }
        if let Some((probes, _)) = probes {
            sleep(TOGETHER).await;
            if probes.ends_with_busy(received.age) {
                return;
            }
        }
        let silence = received.age - received.last().unwrap_or_default();
        let server = match is_sidestream {
            true => "",
            false => ", by a proxy or by the server",
        };
        let usual = usual_cause(silence).or_else(|| usual_cause(received.age));
        let text = format!(
            "the event stream ends after {}, {} after the last bytes{server}{}",
            seconds(received.age),
            seconds(silence),
            usual.map_or_else(String::new, |usual| format!(" (usually {usual})"))
        );
        let is_idle = silence > received.age.mul_f64(0.5) && silence > Duration::from_secs(2);
        let fault = if is_idle {
            Fault::IdleTimeout
        } else {
            Fault::AgeLimit
        };
        sheet.fault(fault, text);
    }

    /// The event stream is open at the end of the run.
    fn check_silence(&self, received: &Received, is_sidestream: bool) {
        let sheet = self.sheet;
        sheet.pass(Fault::AgeLimit);
        let last = received.last().unwrap_or_default();
        if last > FIRST_BYTES {
            sheet.pass(Fault::IdleTimeout);
            return sheet.pass(Fault::SilentDrop);
        }
        let text = format!("no heartbeat has arrived within {}", seconds(received.age));
        if is_sidestream && self.watch >= HEARTBEATS && !received.blocks.is_empty() {
            let causes = "a proxy buffers the response, or a NAT drops the connection silently, or \
                          `heartbeat` is long";
            // A NAT does not speak HTTP.
            let fault = match sheet.knows_a_proxy() {
                true => Fault::Buffering,
                false => Fault::SilentDrop,
            };
            return sheet.fault(fault, format!("{text}: {causes}"));
        }
        for fault in [Fault::IdleTimeout, Fault::SilentDrop] {
            sheet.skip(fault, text.clone());
        }
    }

    /// Checks that `Last-Event-ID` arrives: Sidestream reports one that it cannot read as a gap.
    async fn position(&self) {
        let position = (HeaderName::from_static("last-event-id"), POSITION);
        let opened = self.requests.open(&[position, sse()]).await;
        let Ok((opened, _connection)) = opened else {
            return self.sheet.skip(Fault::LastEventId, "no response");
        };
        let until = Instant::now() + FIRST_BYTES;
        let is_known = |text: &[u8]| {
            ["gap\n", "snapshot\n", "position\n"]
                .iter()
                .any(|name| contains(text, &format!("event: sidestream.{name}")))
        };
        let received = opened.receive(until, is_known).await;
        if received.has("event: sidestream.gap\n") {
            self.sheet.pass(Fault::LastEventId);
        } else if received.has("event: sidestream.position\n")
            && !received.has("event: sidestream.snapshot\n")
        {
            self.sheet.fault(
                Fault::LastEventId,
                "`Last-Event-ID` does not reach the pod: clients that reconnect lose events",
            );
        } else {
            let reason = "only a route of Sidestream that does not begin with `latest` shows it";
            self.sheet.skip(Fault::LastEventId, reason);
        }
    }

    async fn compressed(&self) {
        let gzip = (ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let opened = self.requests.open(&[gzip, sse()]).await;
        let Ok((opened, _connection)) = opened else {
            return self.sheet.skip(Fault::Compression, "no response");
        };
        if !opened.response.headers().contains_key(CONTENT_ENCODING) {
            return self.sheet.pass(Fault::Compression);
        }
        let is_sidestream = heads::is_sidestream(opened.response.headers());
        let until = opened.sent + FIRST_BYTES;
        // The head of gzip has ten bytes.
        let received = opened.receive(until, |text| text.len() > GZIP_HEAD).await;
        if received.text.len() > GZIP_HEAD {
            self.sheet.pass(Fault::Compression);
        } else if is_sidestream {
            self.sheet.fault(
                Fault::Compression,
                "event streams are compressed and not flushed with each event",
            );
        } else {
            self.sheet.skip(
                Fault::Compression,
                "the server has sent no bytes at the beginning",
            );
        }
    }

    /// Checks that a second request uses the connection of the first.
    async fn reuse(&self) {
        let sheet = self.sheet;
        for _ in 0..2 {
            let Ok(mut connection) = self.requests.connect().await else {
                return sheet.skip(Fault::ConnectionReuse, "no connection");
            };
            let sent = self.requests.send(&mut connection, Method::OPTIONS, &[]);
            match sent.await {
                Ok(opened) if opened.response.status().is_success() => {
                    drop(super::request::text(opened.response.into_body()).await);
                }
                _ => return sheet.skip(Fault::ConnectionReuse, "OPTIONS is not answered"),
            }
            if timeout(TOGETHER, connection.ready()).await == Ok(true)
                && self
                    .requests
                    .send(&mut connection, Method::OPTIONS, &[])
                    .await
                    .is_ok()
            {
                return sheet.pass(Fault::ConnectionReuse);
            }
        }
        sheet.fault(
            Fault::ConnectionReuse,
            "the connection ends with each response: every request needs another handshake",
        );
    }

    async fn cors(&self) {
        let origin = self.origin.unwrap_or(UNKNOWN_ORIGIN);
        let Ok(value) = HeaderValue::from_str(origin) else {
            return;
        };
        let Ok(mut connection) = self.requests.connect().await else {
            return self.sheet.skip(Fault::Cors, "no connection");
        };
        let headers = [(ORIGIN, value), sse()];
        let sent = self.requests.send(&mut connection, Method::HEAD, &headers);
        let Ok(opened) = sent.await else {
            return self.sheet.skip(Fault::Cors, "HEAD is not answered");
        };
        let is_required = self.origin.is_some();
        let headers = opened.response.headers();
        let mut fault = heads::cors_fault(None, headers, origin, is_required);
        if fault.is_none() && is_required {
            fault = preflight(self.requests, origin).await;
        }
        match fault {
            Some(fault) => self.sheet.fault(Fault::Cors, fault),
            None => self.sheet.pass(Fault::Cors),
        }
    }
}

fn sse() -> (HeaderName, HeaderValue) {
    (ACCEPT, HeaderValue::from_static("text/event-stream"))
}

/// 45 s: three heartbeats by default.
const HEARTBEATS: Duration = Duration::from_secs(45);

/// Bytes before the content of gzip.
const GZIP_HEAD: usize = 10;
