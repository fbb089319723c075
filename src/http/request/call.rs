//! Calls of gRPC and gRPC-Web: `POST /sidestream.v1.Events/Subscribe`.
//!
//! ```text
//! body (bounded, with a deadline) -> one message -> GET of the path that it names (Call::request)
//!                                                   with `Last-Event-ID` -> respond, as any request
//! ```
//!
//! The head of the call is that of the request: credentials, cookies, addresses and the headers that
//! templates read are metadata of the call. A rejection is a response without content whose head has
//! the status of the call (trailers-only), so that its HTTP status is 200.

use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::header::{
    ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, StatusCode, Uri, Version};
use prost::Message as _;
use tokio::time::timeout;

use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use crate::encoding::Framing;
use crate::encoding::grpc::{COMPRESSED, HEAD_LEN, Status, SubscribeRequest, Trailers};
use crate::http::application::request_body::RequestBody;
use crate::http::route::Routes;

/// Call whose message was read.
pub(in crate::http) struct Call {
    /// Deadline that its client has set.
    pub(in crate::http) deadline: Option<Instant>,
    /// Request for the event stream that the message names.
    pub(in crate::http) request: Request<()>,
}

/// Path of the method.
const PATH: &str = "/sidestream.v1.Events/Subscribe";

/// 8 KiB: longest message. A path and its query are as long as the head of a request allows.
const MESSAGE_BYTES_MAX: usize = 8 * 1024;

/// 10 s: time for the message, as for the head of a request.
const MESSAGE_MAX: Duration = Duration::from_secs(10);

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Headers of the call that the request for the event stream does not have.
const REMOVED: [HeaderName; 9] = [
    ACCEPT,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    GRPC_ENCODING,
    GRPC_TIMEOUT,
    LAST_EVENT_ID,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Request headers of gRPC-Web clients that a CORS preflight allows in addition to those of routes.
pub(in crate::http) const REQUEST_HEADERS: [&str; 3] =
    ["x-grpc-web", "x-user-agent", "grpc-timeout"];

/// Response headers that pages may read: those of a rejection.
pub(in crate::http) const EXPOSED: HeaderValue =
    HeaderValue::from_static("grpc-status, grpc-message, sidestream-code, grpc-retry-pushback-ms");

/// Returns whether a path is that of the method, and a route offers calls.
pub(in crate::http) fn is_call(routes: &Routes, path: &str) -> bool {
    let offers = |route: &Framing| *route == Framing::GrpcWeb;
    path == PATH
        && routes
            .routes
            .iter()
            .any(|route| route.config.framings.iter().any(offers))
}

/// Returns the framing of a call.
///
/// # Errors
/// The content is not protobuf of gRPC or gRPC-Web, or the version of HTTP has no trailers.
pub(in crate::http) fn framing<B>(request: &Request<B>) -> Result<Framing, Rejection> {
    let content_type = request.headers().get(CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok());
    let essence = content_type.unwrap_or_default().split(';').next();
    let essence = essence.unwrap_or_default().trim().to_ascii_lowercase();
    let unsupported = |message| Rejection::new(RejectionCode::UnsupportedMediaType, message);
    match &*essence {
        "application/grpc-web" | "application/grpc-web+proto" => Ok(Framing::GrpcWeb),
        "application/grpc" | "application/grpc+proto" if request.version() == Version::HTTP_2 => {
            Ok(Framing::Grpc)
        }
        "application/grpc" | "application/grpc+proto" => Err(unsupported(
            "gRPC needs HTTP/2: use it, or application/grpc-web+proto",
        )),
        "application/grpc-web-text" | "application/grpc-web-text+proto" => Err(unsupported(
            "the text format of gRPC-Web is not supported: use application/grpc-web+proto",
        )),
        _ => Err(RejectionCode::UnsupportedMediaType.into()),
    }
}

impl Call {
    /// Reads the message of a call. `head`: the head of the call.
    ///
    /// # Errors
    /// The message is not complete in time, too large, compressed, or not valid.
    pub(in crate::http) async fn read(
        head: &Request<()>,
        body: RequestBody,
    ) -> Result<Self, Rejection> {
        let now = Instant::now();
        let headers = head.headers();
        let deadline = match headers.get(GRPC_TIMEOUT) {
            Some(value) => {
                let timeout = value.to_str().ok().and_then(parse_timeout);
                let timeout = timeout.ok_or_else(|| bad_message("`grpc-timeout` is not valid"))?;
                now.checked_add(timeout)
            }
            None => None,
        };
        let encoding = headers.get(GRPC_ENCODING);
        let is_encoded = encoding.is_some_and(|encoding| encoding != "identity");
        let message = parse_message(read_body(body).await?, is_encoded)?;
        Ok(Self {
            deadline,
            request: request(head, &message)?,
        })
    }
}

async fn read_body(body: RequestBody) -> Result<Bytes, Rejection> {
    let read = Limited::new(body, HEAD_LEN + MESSAGE_BYTES_MAX).collect();
    match timeout(MESSAGE_MAX, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(RejectionCode::MessageTooLarge.into())
        }
        Ok(Err(_)) => Err(bad_message("the message is not complete")),
        Err(_) => Err(RejectionCode::BodyTimeout.into()),
    }
}

/// Returns the only message of a body. `is_encoded`: the header names a compression.
fn parse_message(mut body: Bytes, is_encoded: bool) -> Result<SubscribeRequest, Rejection> {
    if body.len() < HEAD_LEN {
        return Err(bad_message("the call has no message"));
    }
    let (flag, length) = (body.get_u8(), body.get_u32() as usize);
    if length > MESSAGE_BYTES_MAX {
        return Err(RejectionCode::MessageTooLarge.into());
    }
    if length != body.len() {
        return Err(bad_message("the call has another content than one message"));
    }
    match flag {
        0 => {}
        COMPRESSED if is_encoded => {
            let message = "a compressed message is not supported";
            return Err(Rejection::new(RejectionCode::UnsupportedMediaType, message));
        }
        _ => return Err(bad_message("the flag of the message is not valid")),
    }
    SubscribeRequest::decode(body).map_err(|_| bad_message("the message is not protobuf"))
}

/// Returns the request for the event stream that a message names.
fn request(head: &Request<()>, message: &SubscribeRequest) -> Result<Request<()>, Rejection> {
    let invalid = || bad_message("`path` is not the path of a route, with its query");
    if !message.path.starts_with('/') {
        return Err(invalid());
    }
    let path = PathAndQuery::try_from(&*message.path).map_err(|_| invalid())?;
    let mut uri = head.uri().clone().into_parts();
    uri.path_and_query = Some(path);
    let mut headers = head.headers().clone();
    REMOVED.iter().for_each(|name| drop(headers.remove(name)));
    if !message.last_event_id.is_empty() {
        let id = HeaderValue::from_str(&message.last_event_id);
        let id = id.map_err(|_| bad_message("`last_event_id` is not an id"))?;
        headers.insert(LAST_EVENT_ID, id);
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::GET;
    *request.version_mut() = head.version();
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| invalid())?;
    *request.headers_mut() = headers;
    Ok(request)
}

fn bad_message(message: &str) -> Rejection {
    Rejection::new(RejectionCode::BadMessage, message)
}

/// Parses the value of `grpc-timeout`: at most eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    let number: u64 = is_number.then(|| number.parse().ok()).flatten()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

impl Rejection {
    /// Returns the trailers of a call that is rejected.
    pub(in crate::http) fn trailers(&self) -> Trailers<'_> {
        let row = self.code.row();
        let message = self.message.as_deref().unwrap_or(row.message);
        Trailers {
            status: status(row.response_status()),
            message: message.into(),
            code: row.code,
            retry: row.is_temporary.then(|| self.retry_after()),
        }
    }
}

/// Returns the status of a call for the status of a response.
fn status(status: StatusCode) -> Status {
    match status {
        StatusCode::UNAUTHORIZED => Status::Unauthenticated,
        StatusCode::FORBIDDEN => Status::PermissionDenied,
        StatusCode::NOT_FOUND => Status::NotFound,
        StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::NOT_ACCEPTABLE
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UPGRADE_REQUIRED
        | StatusCode::NOT_IMPLEMENTED => Status::Unimplemented,
        StatusCode::GONE => Status::FailedPrecondition,
        StatusCode::RANGE_NOT_SATISFIABLE => Status::OutOfRange,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::PAYLOAD_TOO_LARGE => Status::ResourceExhausted,
        StatusCode::REQUEST_TIMEOUT
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Status::Unavailable,
        status if status.is_server_error() => Status::Internal,
        _ => Status::InvalidArgument,
    }
}

/// Returns trailers as fields of HTTP.
pub(in crate::http) fn fields(trailers: &Trailers<'_>) -> HeaderMap {
    trailers
        .fields()
        // Names and values are ASCII: messages are percent-encoded, and codes are labels.
        .filter_map(|(name, value)| {
            let value = HeaderValue::try_from(value).ok()?;
            Some((HeaderName::from_static(name), value))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(flag: u8, message: &[u8]) -> Bytes {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[flag][..], &length, message].concat().into()
    }

    fn code(parsed: Result<SubscribeRequest, Rejection>) -> Option<RejectionCode> {
        parsed.err().map(|rejection| rejection.code)
    }

    #[test]
    fn content_type_decides_the_framing() {
        let framing_of = |content_type: &'static str, version| {
            let mut request = Request::new(());
            *request.version_mut() = version;
            let value = HeaderValue::from_static(content_type);
            request.headers_mut().insert(CONTENT_TYPE, value);
            framing(&request).ok()
        };
        for (content_type, on_http2, on_http11) in [
            ("application/grpc", Some(Framing::Grpc), None),
            ("application/grpc+proto", Some(Framing::Grpc), None),
            (
                "Application/gRPC-Web; charset=utf-8",
                Some(Framing::GrpcWeb),
                Some(Framing::GrpcWeb),
            ),
            (
                "application/grpc-web+proto",
                Some(Framing::GrpcWeb),
                Some(Framing::GrpcWeb),
            ),
            ("application/grpc-web-text", None, None),
            ("application/grpc+json", None, None),
            ("application/json", None, None),
            ("", None, None),
        ] {
            assert_eq!(framing_of(content_type, Version::HTTP_2), on_http2);
            assert_eq!(framing_of(content_type, Version::HTTP_11), on_http11);
        }
    }

    #[test]
    fn body_is_exactly_one_message_without_compression() {
        let message = SubscribeRequest {
            path: "/a?b=c".into(),
            last_event_id: "x-1".into(),
        };
        let encoded = message.encode_to_vec();
        let parse = |bytes: Bytes| parse_message(bytes, false);
        assert_eq!(parse(framed(0, &encoded)), Ok(message));
        let is_bad = Some(RejectionCode::BadMessage);
        let two = [framed(0, &encoded), framed(0, &encoded)].concat();
        for body in [
            Bytes::new(),
            Bytes::from_static(&[0, 0, 0, 0]),
            framed(0, &encoded).slice(..8),
            two.into(),
            framed(0, b"\xff"),
            framed(1, &encoded),
            framed(2, &encoded),
        ] {
            assert_eq!(code(parse(body.clone())), is_bad, "{body:?}");
        }
        let compressed = parse_message(framed(1, &encoded), true);
        assert_eq!(code(compressed), Some(RejectionCode::UnsupportedMediaType));
        let large = parse(Bytes::from_static(&[0, 0xff, 0, 0, 0]));
        assert_eq!(code(large), Some(RejectionCode::MessageTooLarge));
    }

    #[test]
    fn message_becomes_a_request_of_the_route() {
        let mut head = Request::new(());
        *head.uri_mut() = "http://a.example/sidestream.v1.Events/Subscribe"
            .parse()
            .unwrap();
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("last-event-id", "other"),
            ("authorization", "Bearer x"),
        ] {
            head.headers_mut().insert(name, value.parse().unwrap());
        }
        let ask = |path: &str, id: &str| {
            let message = SubscribeRequest {
                path: path.into(),
                last_event_id: id.into(),
            };
            request(&head, &message)
        };
        let asked = ask("/orders/4%202?last=5", "x-1").unwrap();
        assert_eq!(asked.uri(), "http://a.example/orders/4%202?last=5");
        assert_eq!(asked.headers()["last-event-id"], "x-1");
        assert_eq!(asked.headers()["authorization"], "Bearer x");
        assert!(!asked.headers().contains_key(CONTENT_TYPE));
        let without_id = ask("/orders", "").unwrap();
        assert!(!without_id.headers().contains_key("last-event-id"));
        for (path, id) in [
            ("", ""),
            ("orders", ""),
            ("http://b.example/orders", ""),
            ("/a b", ""),
            ("/orders", "a\nb"),
        ] {
            let asked = ask(path, id).map_err(|rejection| rejection.code);
            assert_eq!(asked.err(), Some(RejectionCode::BadMessage), "{path} {id}");
        }
    }

    #[test]
    fn timeout_has_a_unit() {
        for (text, expected) in [
            ("5S", Some(Duration::from_secs(5))),
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("5", None),
            ("-5S", None),
            ("123456789S", None),
            ("5\u{fc}", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }
}
