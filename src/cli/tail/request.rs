//! One request for an event stream: what is sent, and what the answer means.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, StatusCode};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc2822;
use tokio::time::timeout;

use super::connection::{Connection, Connector, Failed};
use super::target::Target;
use super::tell;

/// An event stream that has begun.
pub(super) struct Opened {
    /// Its bytes.
    pub(super) body: Incoming,
    /// Lives as long as the bytes are read.
    pub(super) connection: Connection,
}

/// Why an attempt gave no event stream.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum No {
    /// 204: the server wants this client to stop, and that is no error.
    Finished,
    /// Trying again changes nothing.
    ForGood(String),
    /// Try again, not before `after`.
    ForNow {
        why: String,
        after: Option<Duration>,
    },
}

/// Asks for the stream after `last_event_id` (empty: live). Redirects within the host are followed, and each attempt
/// begins at `target` again: a server that is gone must not stay pinned by its own redirect.
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
        let sent = timeout(HEAD_PATIENCE, connection.send(&target, request)).await;
        let response = sent.map_err(|_| {
            for_now(format!(
                "{} accepts, but does not answer",
                target.authority()
            ))
        })?;
        let response = response.map_err(for_now)?;
        if let Some(location) = redirect(&response) {
            target = target.redirected(location).map_err(No::ForGood)?;
            tell(&format!("redirected to {}", target.uri()));
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
    // What the person says stands for what we would have said.
    for name in headers.keys() {
        all.remove(name);
    }
    all.extend(headers.clone());
    if !last_event_id.is_empty() {
        // An id that no header can hold cannot be resumed from, and silence about it would lose events.
        let value = HeaderValue::from_bytes(last_event_id.as_bytes());
        all.insert(
            LAST_EVENT_ID,
            value.map_err(|_| No::ForGood(format!("{last_event_id:?} cannot be sent as an id")))?,
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

/// What a head means: go on with the body, or no.
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
                    "the answer is {media_type:?} and no event stream"
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
    // A date in the past means now.
    Some(
        date.duration_since(SystemTime::now())
            .unwrap_or_default()
            .min(RETRY_AFTER_MAX),
    )
}

/// Adds what the body says about a refusal, if it says it soon and briefly.
async fn explained(no: No, response: Response<Incoming>) -> No {
    let body = Limited::new(response.into_body(), REFUSAL_BYTES_MAX).collect();
    let Ok(Ok(body)) = timeout(REFUSAL_PATIENCE, body).await else {
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

/// The message and the hint of one of our refusals.
fn reason(body: &[u8]) -> Option<String> {
    let refusal: serde_json::Value = serde_json::from_slice(body).ok()?;
    let message = refusal["error"]["message"].as_str()?;
    let hint = refusal["error"]["hint"]
        .as_str()
        .map(|hint| format!(" ({hint})"))
        .unwrap_or_default();
    Some(format!("{message}{hint}"))
}

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Browsers allow 20; one of an ingress and one of the application are usual.
const REDIRECTS_MAX: usize = 5;

/// A server that accepted may have to wait for NATS; it is not reasonable beyond this.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);

const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
const REFUSAL_BYTES_MAX: usize = 16 << 10;

/// A longer pause is a mistake of somebody, and a person is waiting.
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
    fn each_status_says_whether_trying_again_makes_sense() {
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
    fn a_refusal_is_told_in_its_own_words() {
        let body = br#"{"error":{"code":"subject_not_allowed","message":"not allowed","hint":"ask for less"}}"#;
        assert_eq!(reason(body).unwrap(), "not allowed (ask for less)");
        assert_eq!(reason(b"<html>"), None);
    }
}
