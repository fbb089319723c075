//! Checks with a pod that answers probes: it reports what it receives, and sends timed lines.
//!
//! ```text
//! report     HTTP version, window, Last-Event-ID, the same connection twice
//! flow       24 lines in 2.3 s, plain and with gzip: do they arrive as they are sent?
//! busy       a line every second: does the response end at an age?
//! silent     a pause longer than the heartbeat: does the next line arrive?
//! goaway     the pod ends its connection: does the next request arrive?
//! ```
//!
//! A response that is late is measured again before it is a fault: the machine may be busy.

use std::cell::Cell;
use std::time::Duration;

use hyper::Method;
use hyper::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderName, HeaderValue, ORIGIN};
use tokio::time::sleep;

use super::advice::usual_cause;
use super::fault::Fault;
use super::heads;
use super::report::PodReport;
use super::request::{End, NoReport, NoResponse, Opened, PROBE, Received, Requests, lines, text};
use super::sheet::Sheet;
use crate::cli::client::connection::Connection;

/// Lines of the measurement of flow: small ones, as most events are. nginx sends blocks of 1460
/// bytes.
const FLOW: (u32, Duration, u32) = (24, Duration::from_millis(100), 64);

/// The same with 128 KiB, more than a buffer of most proxies.
const LARGE_FLOW: (u32, Duration, u32) = (64, Duration::from_millis(40), 2048);

/// 5 s: what arrives later than it was sent by this time is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// 1.5 s: two responses that end within it have the same cause.
const TOGETHER: Duration = Duration::from_millis(1500);

/// 66 s: longest event stream of a probe.
const BUSY_MAX: Duration = Duration::from_secs(66);

/// Windows below 4 KiB: an event needs several round trips.
const WINDOW_MIN: u64 = 4096;

/// Checks of a run.
pub(super) struct Probes<'a> {
    pub(super) requests: &'a Requests,
    pub(super) sheet: &'a Sheet,
    pub(super) pod: &'a PodReport,
    /// Time for which responses are watched.
    pub(super) watch: Duration,
    /// Origin of a page that must be allowed.
    pub(super) origin: Option<&'a str>,
    /// Age at which the response with a line every second has ended.
    pub(super) busy_end: Cell<Option<Duration>>,
}

/// Flow of a response, as it arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    /// Each line when it is sent.
    Steady,
    /// In this number of blocks.
    Blocks(usize),
    /// All at the end.
    AtEnd,
    /// The response broke, or did not begin.
    Broken,
}

impl Probes<'_> {
    /// Runs all checks. `connection` has served the report.
    pub(super) async fn run(&self, connection: Connection) {
        self.of_report();
        tokio::join!(
            async {
                self.reuse(connection).await;
                self.cors().await;
                self.goaway().await;
            },
            self.flow(),
            self.busy(),
            self.silent(),
            self.long_silence(),
        );
    }

    /// Checks what the pod has reported.
    fn of_report(&self) {
        let (sheet, pod) = (self.sheet, self.pod);
        if pod.protocol == "HTTP/1.0" {
            sheet.fault(
                Fault::Http10,
                "requests reach the pod as HTTP/1.0: a pod that is killed looks like a complete \
                 response",
            );
        } else {
            sheet.pass(Fault::Http10);
        }
        match pod.window {
            Some(window) if window < WINDOW_MIN => sheet.fault(
                Fault::Window,
                format!("the HTTP/2 window towards the pod is {window} bytes"),
            ),
            _ => sheet.pass(Fault::Window),
        }
        if pod.last_event_id {
            sheet.pass(Fault::LastEventId);
        } else {
            sheet.fault(
                Fault::LastEventId,
                "`Last-Event-ID` does not reach the pod: clients that reconnect lose events",
            );
        }
    }

    /// Checks that a second request uses the connection of the first.
    async fn reuse(&self, connection: Connection) {
        let mut connection = connection;
        // Twice: a proxy may have closed the connection for another reason.
        for _ in 0..2 {
            let is_ready = tokio::time::timeout(TOGETHER, connection.ready()).await;
            if is_ready == Ok(true) && self.requests.report(&mut connection, false).await.is_ok() {
                return self.sheet.pass(Fault::ConnectionReuse);
            }
            let Ok(another) = self.requests.connect().await else {
                return self.sheet.skip(Fault::ConnectionReuse, "no connection");
            };
            connection = another;
            if self.requests.report(&mut connection, false).await.is_err() {
                return self.sheet.skip(Fault::ConnectionReuse, "no response");
            }
        }
        self.sheet.fault(
            Fault::ConnectionReuse,
            "the connection ends with each response: every request needs another handshake",
        );
    }

    /// Checks the header fields of cross-origin access.
    async fn cors(&self) {
        let origin = self.origin.unwrap_or(UNKNOWN_ORIGIN);
        let Ok(value) = HeaderValue::from_str(origin) else {
            return;
        };
        let probe = (PROBE, HeaderValue::from_static("report"));
        let opened = self.requests.open(&[(ORIGIN, value), probe]).await;
        let (opened, _connection) = match opened {
            Ok(opened) => opened,
            Err(why) => return self.sheet.skip(Fault::Cors, why.to_string()),
        };
        let headers = opened.response.headers().clone();
        let body = text(opened.response.into_body()).await;
        let Ok(report) = serde_json::from_slice::<PodReport>(&body) else {
            return self.sheet.skip(Fault::Cors, "no report for this origin");
        };
        let is_required = self.origin.is_some();
        let fault = if report.origin {
            heads::cors_fault(Some(&report.head), &headers, origin, is_required)
        } else {
            Some("`Origin` does not reach the pod".into())
        };
        match fault {
            Some(fault) => self.sheet.fault(Fault::Cors, fault),
            None if is_required => self.preflight(origin).await,
            None => self.sheet.pass(Fault::Cors),
        }
    }

    /// Checks the preflight of a page of this origin.
    async fn preflight(&self, origin: &str) {
        match preflight(self.requests, origin).await {
            Some(fault) => self.sheet.fault(Fault::Cors, fault),
            None => self.sheet.pass(Fault::Cors),
        }
    }

    /// Measures whether lines arrive as they are sent.
    async fn flow(&self) {
        let sheet = self.sheet;
        let flow = self.measure_twice(FLOW, &[]).await;
        let flow = match flow {
            // A proxy with large buffers sends some of a larger response before its end.
            Flow::AtEnd => match self.measure(LARGE_FLOW, &[]).await.0 {
                Flow::Steady => Flow::Blocks(1),
                flow => flow,
            },
            flow => flow,
        };
        match flow {
            Flow::Steady => {
                sheet.pass(Fault::Buffering);
                sheet.pass(Fault::BodyHeldBack);
                return self.compressed_flow().await;
            }
            Flow::Blocks(blocks) => sheet.fault(
                Fault::Buffering,
                format!(
                    "{} lines that the pod sends one by one arrive in {}: a buffer has to fill first",
                    FLOW.0,
                    match blocks {
                        1 => "one block".into(),
                        blocks => format!("{blocks} blocks"),
                    }
                ),
            ),
            Flow::AtEnd => sheet.fault(
                Fault::BodyHeldBack,
                "nothing arrives before the response is complete, and an event stream has no end",
            ),
            Flow::Broken => sheet.skip(Fault::Buffering, "the response broke"),
        }
        let reason = "events do not arrive as they are sent";
        for fault in [Fault::Compression, Fault::IdleTimeout, Fault::SilentDrop] {
            sheet.skip(fault, reason);
        }
    }

    async fn compressed_flow(&self) {
        let gzip = [(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))];
        let (flow, encoding) = self.measure(FLOW, &gzip).await;
        let Some(encoding) = encoding else {
            return self.sheet.pass(Fault::Compression);
        };
        let flow = match flow {
            Flow::Steady => flow,
            _ => self.measure(FLOW, &gzip).await.0,
        };
        if flow == Flow::Steady {
            self.sheet.pass(Fault::Compression);
            self.sheet.note(format!(
                "event streams are compressed ({encoding}) although they have `no-transform`"
            ));
        } else {
            self.sheet.fault(
                Fault::Compression,
                format!(
                    "event streams are compressed ({encoding}) and not flushed with each event"
                ),
            );
        }
    }

    /// Measures a flow, and again if it is not steady.
    async fn measure_twice(
        &self,
        flow: (u32, Duration, u32),
        more: &[(HeaderName, HeaderValue)],
    ) -> Flow {
        match self.measure(flow, more).await.0 {
            Flow::Steady => Flow::Steady,
            _ => self.measure(flow, more).await.0,
        }
    }

    /// Measures a flow. Returns the `Content-Encoding`, too.
    async fn measure(
        &self,
        (count, every, bytes): (u32, Duration, u32),
        more: &[(HeaderName, HeaderValue)],
    ) -> (Flow, Option<String>) {
        let mut headers = vec![lines(count, every, bytes)];
        headers.extend(more.iter().cloned());
        let (opened, _connection) = match self.requests.open(&headers).await {
            Ok(opened) => opened,
            Err(NoResponse::Late) => return (Flow::AtEnd, None),
            Err(_) => return (Flow::Broken, None),
        };
        let encoding = opened.response.headers().get(CONTENT_ENCODING);
        let encoding = encoding.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let total = every * (count - 1);
        let until = opened.sent + total + PATIENCE;
        let received = opened.receive(until, |_| false).await;
        (flow_of(&received, count, total), encoding)
    }

    /// Watches a response that has a line every second.
    async fn busy(&self) {
        let second = Duration::from_secs(1);
        let watch = self.watch.min(BUSY_MAX);
        let count = watch.as_secs() as u32 + 4;
        let opened = self.requests.open(&[lines(count, second, 0)]).await;
        let (opened, _connection) = match opened {
            Ok(opened) => opened,
            Err(why) => return self.sheet.skip(Fault::AgeLimit, why.to_string()),
        };
        let until = opened.sent + watch + AFTER;
        let received = opened.receive(until, is_complete).await;
        let is_cut = received.end != End::Stopped && !is_complete(&received.text);
        if is_cut {
            self.busy_end.set(Some(received.age));
            let text = format!(
                "a response with a line every second ends after {}{}",
                seconds(received.age),
                cause(received.age)
            );
            return self.sheet.fault(Fault::AgeLimit, text);
        }
        self.sheet.pass(Fault::AgeLimit);
    }

    /// Watches a response that is silent for longer than the heartbeat.
    async fn silent(&self) {
        let heartbeat = Duration::from_millis(self.pod.heartbeat_ms);
        let pause = heartbeat + Duration::from_secs(1);
        let sheet = self.sheet;
        if pause > self.watch.min(BUSY_MAX) {
            let reason = format!(
                "the heartbeat is {}: use a longer --for",
                seconds(heartbeat)
            );
            sheet.skip(Fault::IdleTimeout, reason.clone());
            return sheet.skip(Fault::SilentDrop, reason);
        }
        let Some(received) = self.pause(pause, SILENT_AFTER).await else {
            return;
        };
        if has_line(&received, 1) {
            sheet.pass(Fault::IdleTimeout);
            return sheet.pass(Fault::SilentDrop);
        }
        if received.blocks.is_empty() {
            // Nothing has arrived at all: flow is at fault.
            return;
        }
        if received.end == End::Stopped {
            if self.busy_end.get().is_some() {
                return;
            }
            let text = format!(
                "a connection without bytes for {} is dropped, and neither side is notified",
                seconds(pause)
            );
            return sheet.fault(Fault::SilentDrop, text);
        }
        sleep(TOGETHER).await;
        if !self.ends_with_busy(received.age) {
            let text = format!(
                "a response without bytes ends after {}; the heartbeat is {}",
                seconds(received.age),
                seconds(heartbeat)
            );
            sheet.fault(Fault::IdleTimeout, text);
        }
    }

    /// Looks for idle timeouts between the heartbeat and the time of the run. They are no fault.
    async fn long_silence(&self) {
        let heartbeat = Duration::from_millis(self.pod.heartbeat_ms);
        let pause = self
            .watch
            .min(BUSY_MAX)
            .saturating_sub(Duration::from_secs(1));
        if pause < heartbeat * 2 {
            return;
        }
        let Some(received) = self.pause(pause, AFTER).await else {
            return;
        };
        if has_line(&received, 1) || received.blocks.is_empty() {
            return;
        }
        sleep(TOGETHER).await;
        let is_known = self.ends_with_busy(received.age)
            || self.sheet.has(Fault::IdleTimeout)
            || self.sheet.has(Fault::SilentDrop);
        if !is_known {
            self.sheet.note(format!(
                "a response without bytes ends after {}: the heartbeat of {} prevents it",
                seconds(received.age),
                seconds(heartbeat)
            ));
        }
    }

    /// Reads two lines with a pause between them.
    async fn pause(&self, pause: Duration, after: Duration) -> Option<Received> {
        let (opened, _connection) = self.requests.open(&[lines(2, pause, 0)]).await.ok()?;
        let until = opened.sent + pause + after;
        Some(opened.receive(until, is_complete).await)
    }

    /// Returns whether the response with lines ends at this age, too.
    pub(super) fn ends_with_busy(&self, age: Duration) -> bool {
        let busy = self.busy_end.get();
        busy.is_some_and(|busy| busy.abs_diff(age) < TOGETHER)
    }

    /// Checks that requests arrive after the pod has ended its connection.
    async fn goaway(&self) {
        let Ok(mut connection) = self.requests.connect().await else {
            return self.sheet.skip(Fault::Goaway, "no connection");
        };
        // A pod closes a connection without event streams: one is open meanwhile, as in a drain.
        let open = lines(20, Duration::from_secs(1), 0);
        let mut other = None;
        let held = if connection.version() == "HTTP/1.1" {
            let opened = self.requests.open(&[open]).await;
            opened.map(|(opened, held)| {
                other = Some(held);
                opened
            })
        } else {
            self.requests
                .send(&mut connection, Method::GET, &[open])
                .await
        };
        let Ok(Opened { response: held, .. }) = held else {
            return self.sheet.skip(Fault::Goaway, "no event stream");
        };
        if let Err(why) = self.requests.report(&mut connection, true).await {
            return self.sheet.skip(Fault::Goaway, why.to_string());
        }
        for _ in 0..GOAWAY_REQUESTS {
            sleep(GOAWAY_PAUSE).await;
            let Err(why) = self.report_again(&mut connection).await else {
                continue;
            };
            let ended = match self.pod.protocol.as_str() {
                "HTTP/2" => "GOAWAY",
                _ => "`Connection: close`",
            };
            let text = format!(
                "after the pod has ended its connection ({ended}), the next request fails: {why}. \
                 While a pod drains, clients cannot reconnect"
            );
            return self.sheet.fault(Fault::Goaway, text);
        }
        drop((held, other));
        self.sheet.pass(Fault::Goaway);
    }

    /// Asks for a report on this connection, or on another one if it has ended.
    async fn report_again(&self, connection: &mut Connection) -> Result<(), NoReport> {
        if tokio::time::timeout(TOGETHER, connection.ready()).await == Ok(true) {
            match self.requests.report(connection, false).await {
                // The end was on its way.
                Err(NoReport::NoResponse(NoResponse::Ended(_))) => {}
                reported => return reported.map(drop),
            }
        }
        let another = self.requests.connect().await;
        *connection = another.map_err(NoReport::NoResponse)?;
        self.requests.report(connection, false).await.map(drop)
    }
}

/// Checks the preflight of a page of this origin. Returns the fault.
pub(super) async fn preflight(requests: &Requests, origin: &str) -> Option<String> {
    let value = HeaderValue::from_str(origin).ok()?;
    let headers = [
        (ORIGIN, value),
        (
            HeaderName::from_static("access-control-request-method"),
            HeaderValue::from_static("GET"),
        ),
        (
            HeaderName::from_static("access-control-request-headers"),
            HeaderValue::from_static("last-event-id"),
        ),
    ];
    let mut connection = requests.connect().await.ok()?;
    let opened = requests
        .send(&mut connection, Method::OPTIONS, &headers)
        .await
        .ok()?;
    let response = opened.response;
    if !response.status().is_success() {
        return Some(format!(
            "the preflight (OPTIONS) is answered with {}",
            response.status()
        ));
    }
    heads::cors_fault(None, response.headers(), origin, true)
        .map(|fault| format!("preflight (OPTIONS): {fault}"))
}

/// Classifies a response with this number of lines.
fn flow_of(received: &Received, count: u32, total: Duration) -> Flow {
    let blocks = received.blocks.len();
    if matches!(received.end, End::Broken(_)) && blocks == 0 {
        return Flow::Broken;
    }
    if blocks > count as usize / 3 {
        return Flow::Steady;
    }
    let first = received.blocks.first().map(|(at, _)| *at);
    match first {
        Some(first) if first < total.mul_f64(0.9) && blocks > 1 => Flow::Blocks(blocks),
        _ => Flow::AtEnd,
    }
}

/// Returns whether the pod has sent all lines, or drains.
fn is_complete(text: &[u8]) -> bool {
    super::request::contains(text, "event: end\n")
}

fn has_line(received: &Received, line: u32) -> bool {
    received.has(&format!("{{\"n\":{line},"))
}

fn cause(age: Duration) -> String {
    usual_cause(age).map_or_else(String::new, |cause| format!(" (usually {cause})"))
}

/// Text of a duration for people.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Origin without `--origin`; the pod does not allow it, and no proxy should.
pub(super) const UNKNOWN_ORIGIN: &str = "https://sidestream-doctor.invalid";

/// 2.5 s after the time of a run: what happens at its end is seen. Envoy closes a connection a second
/// after it has ended the response.
pub(super) const AFTER: Duration = Duration::from_millis(2500);

/// 3 s after a pause: a proxy that ends a response may close its connection later.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Requests after the end of a connection: a proxy may have several.
const GOAWAY_REQUESTS: usize = 3;
const GOAWAY_PAUSE: Duration = Duration::from_millis(400);

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(blocks: &[u64]) -> Flow {
        let received = Received {
            blocks: blocks
                .iter()
                .map(|at| (Duration::from_millis(*at), 1))
                .collect(),
            text: Vec::new(),
            end: End::Regular,
            age: Duration::from_secs(3),
        };
        flow_of(&received, 24, Duration::from_millis(2300))
    }

    #[test]
    fn flow_is_classified_by_the_blocks_that_arrive() {
        let steady: Vec<u64> = (0..24).map(|line| line * 100).collect();
        assert_eq!(flow(&steady), Flow::Steady);
        assert_eq!(flow(&[800, 1600, 2300]), Flow::Blocks(3));
        assert_eq!(flow(&[2310]), Flow::AtEnd);
        assert_eq!(flow(&[2310, 2340]), Flow::AtEnd);
        assert_eq!(flow(&[]), Flow::AtEnd);
    }
}
