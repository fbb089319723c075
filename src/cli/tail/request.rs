//! One request for an event stream: its headers, redirects, and the meaning of the response.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::timeout;

use super::print::report;
use crate::cli::client::connection::{Connection, Connector, Failed};
use crate::cli::client::target::Target;

/// Open event stream.
pub(super) struct Opened {
    /// Body with the events.
    pub(super) body: Incoming,
    /// Must stay alive while the body is read.
    pub(super) connection: Connection,
}

/// Response other than an event stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum No {
    /// 204: the server ends this stream for good, without an error.
    Finished,
    /// Permanent: another attempt gives the same result.
    ForGood(String),
    /// Temporary: retry, not before `after`.
    ForNow {
        why: String,
        after: Option<Duration>,
    },
}

/// Requests the stream after `last_event_id` (empty: live). Follows redirects within the host. Each
/// attempt starts at `target` again, so that a redirect to a dead server is not permanent.
pub(super) async fn open(
    connector: &Connector,
    target: &Target,
    headers: &HeaderMap,
    last_event_id: &str,
) -> Result<Opened, No> {
    let mut target = target.clone();
    for _ in 0..REDIRECTS_MAX {
        let mut connection = connector.connect(&target).await?;
        let request = request(&target, &connection, headers, last_event_id)?;
        let sent = timeout(HEAD_TIMEOUT, connection.send(&target, request)).await;
        let response = sent.map_err(|_| {
            for_now(format!(
                "{} accepts connections but does not respond",
                target.authority()
            ))
        })?;
        let response = response.map_err(for_now)?;
        if let Some(location) = redirect(&response) {
            target = target.redirected(location).map_err(No::ForGood)?;
            report(&format!("redirected to {}", target.uri()));
            continue;
        }
        return match judge(response.status(), response.headers()) {
            Ok(()) => Ok(Opened {
                body: response.into_body(),
                connection,
            }),
            Err(no) => Err(explained(no, response).await),
        };
    }
    Err(No::ForGood(format!("more than {REDIRECTS_MAX} redirects")))
}

fn for_now(why: String) -> No {
    No::ForNow { why, after: None }
}

impl From<Failed> for No {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::ForNow(why) => for_now(why),
            Failed::ForGood(why) => Self::ForGood(why),
        }
    }
}

fn request(
    target: &Target,
    connection: &Connection,
    headers: &HeaderMap,
    last_event_id: &str,
) -> Result<Request<Empty<Bytes>>, No> {
    let mut request = Request::new(Empty::new());
    let all = request.headers_mut();
    all.insert(
        header::ACCEPT,
        HeaderValue::from_static("text/event-stream"),
    );
    all.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    all.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("sidestream/", env!("CARGO_PKG_VERSION"))),
    );
    if connection.version() == "HTTP/1.1" {
        let host = HeaderValue::from_str(target.authority());
        all.insert(
            header::HOST,
            host.map_err(|error| No::ForGood(error.to_string()))?,
        );
    }
    // Headers of the user replace the defaults.
    for name in headers.keys() {
        all.remove(name);
    }
    all.extend(headers.clone());
    if !last_event_id.is_empty() {
        // Without this error an id that no header can carry would silently lose events.
        let value = HeaderValue::from_bytes(last_event_id.as_bytes());
        all.insert(
            LAST_EVENT_ID,
            value.map_err(|_| {
                No::ForGood(format!("{last_event_id:?} cannot be sent as Last-Event-ID"))
            })?,
        );
    }
    Ok(request)
}

fn redirect(response: &Response<Incoming>) -> Option<&str> {
    let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
    moved
        .then(|| response.headers().get(header::LOCATION)?.to_str().ok())
        .flatten()
}

/// Classifies a response head: an event stream, or the kind of failure.
fn judge(status: StatusCode, headers: &HeaderMap) -> Result<(), No> {
    match status {
        StatusCode::OK => {
            let media_type = headers
                .get(header::CONTENT_TYPE)
                .and_then(|value| value.to_str().ok())
                .unwrap_or("");
            let essence = media_type.split(';').next().unwrap_or_default().trim();
            if essence.eq_ignore_ascii_case("text/event-stream") {
                Ok(())
            } else {
                Err(No::ForGood(format!(
                    "the response is {media_type:?}, not an event stream"
                )))
            }
        }
        StatusCode::NO_CONTENT => Err(No::Finished),
        StatusCode::TOO_MANY_REQUESTS => Err(No::ForNow {
            why: status.to_string(),
            after: retry_after(headers),
        }),
        status if status.is_server_error() => Err(No::ForNow {
            why: status.to_string(),
            after: retry_after(headers),
        }),
        status => Err(No::ForGood(status.to_string())),
    }
}

/// `Retry-After`: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    }
    let date = SystemTime::from(OffsetDateTime::parse(value, &Rfc2822).ok()?);
    // A past date means now.
    Some(
        date.duration_since(SystemTime::now())
            .unwrap_or_default()
            .min(RETRY_AFTER_MAX),
    )
}

/// Adds the explanation in the body of a rejection, if it is short and arrives soon.
async fn explained(no: No, response: Response<Incoming>) -> No {
    let body = Limited::new(response.into_body(), REJECTION_BYTES_MAX).collect();
    let Ok(Ok(body)) = timeout(REJECTION_TIMEOUT, body).await else {
        return no;
    };
    let Some(more) = reason(&body.to_bytes()) else {
        return no;
    };
    match no {
        No::Finished => No::Finished,
        No::ForGood(why) => No::ForGood(format!("{why}: {more}")),
        No::ForNow { why, after } => No::ForNow {
            why: format!("{why}: {more}"),
            after,
        },
    }
}

/// Message and hint of a rejection by Sidestream.
fn reason(body: &[u8]) -> Option<String> {
    let rejection: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = rejection["error"]["message"].as_str()?;
    let hint = rejection["error"]["hint"]
        .as_str()
        .map(|hint| format!(" ({hint})"))
        .unwrap_or_default();
    Some(format!("{message}{hint}"))
}

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// 5: usual are one of an ingress and one of the application; browsers allow 20.
const REDIRECTS_MAX: usize = 5;

/// 30 s: a server that accepted the request may wait for NATS, but not longer.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

const REJECTION_TIMEOUT: Duration = Duration::from_secs(2);
const REJECTION_BYTES_MAX: usize = 16 << 10;

/// 1 h: a longer `Retry-After` is a mistake.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    fn head(status: u16, headers: &[(&'static str, &'static str)]) -> Result<(), No> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, HeaderValue::from_static(value));
        }
        judge(StatusCode::from_u16(status).unwrap(), &map)
    }

    #[test]
    fn only_200_with_the_media_type_is_an_event_stream() {
        assert_eq!(head(200, &[("content-type", "text/event-stream")]), Ok(()));
        assert_eq!(
            head(200, &[("content-type", "Text/Event-Stream; charset=utf-8")]),
            Ok(())
        );
        assert!(matches!(
            head(200, &[("content-type", "text/html")]),
            Err(No::ForGood(_))
        ));
        assert!(matches!(head(200, &[]), Err(No::ForGood(_))));
        assert!(matches!(
            head(206, &[("content-type", "text/event-stream")]),
            Err(No::ForGood(_))
        ));
    }

    #[test]
    fn status_decides_if_the_request_is_retried() {
        assert_eq!(head(204, &[]), Err(No::Finished));
        for status in [400, 401, 403, 404, 406, 410, 416] {
            assert!(matches!(head(status, &[]), Err(No::ForGood(_))), "{status}");
        }
        for status in [429, 500, 502, 503] {
            assert!(
                matches!(head(status, &[]), Err(No::ForNow { after: None, .. })),
                "{status}"
            );
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let after = |value| match head(503, &[("retry-after", value)]) {
            Err(No::ForNow { after, .. }) => after,
            other => panic!("{other:?}"),
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(
            after("Fri, 31 Dec 9999 23:59:59 GMT"),
            Some(RETRY_AFTER_MAX)
        );
        assert_eq!(after("99999999999"), Some(RETRY_AFTER_MAX));
        assert_eq!(after("soon"), None);
    }

    #[test]
    fn rejection_is_reported_with_its_message_and_hint() {
        let body = br#"{"error":{"code":"subject_not_allowed","message":"not allowed","hint":"ask for less"}}"#;
        assert_eq!(reason(body).unwrap(), "not allowed (ask for less)");
        assert_eq!(reason(b"<html>"), None);
    }
}
