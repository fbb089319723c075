//! Answers to requests: a text, or the head of an event stream; responses of rejections.
//!
//! The result, [`Answer`], does not know its protocol: `accept::connection` makes a hyper response
//! of it, `h2::request` HTTP/2 frames. Both run on the task of the connection or HTTP/2 stream.

use bytes::{Bytes, BytesMut};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    RETRY_AFTER, SEC_WEBSOCKET_VERSION, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, Response, StatusCode};

use super::body::Body;
use super::call;
use super::challenge::Challenge;
use super::probe::Probe;
use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::rejection_row::Row;
use super::request::is_browser;
use super::upgrade::{self, Handshake};
use crate::encoding::Framing;
use crate::encoding::grpc::Trailers;
use crate::encoding::websocket::{close_code, put_close_frame};
use crate::http::application::response_body::PassedBody;
use crate::http::application::tunnel::Tunnel;
use crate::http::config::CloseStyle;
use crate::http::context::Context;
use crate::http::stream::event_stream::EventStream;
use crate::presence::Protocol;

/// Answer to a request, before its body is bound to a protocol.
pub(in crate::http) enum Answer {
    /// A head and a short text.
    Text(Response<Bytes>),
    /// The same, and the connection is closed: the client retries on a new one, perhaps to another
    /// pod.
    Closing(Response<Bytes>),
    /// A head and an event stream.
    Events(Response<()>, Box<EventStream>),
    /// The response of the application.
    Passed(Response<PassedBody>),
    /// The response to a probe of `sidestream doctor`.
    Probe(Response<()>, Box<Probe>),
    /// The head with which the application switches to another protocol.
    Tunnel(Response<()>, Tunnel),
}

/// Rest of an answer for which an HTTP/1 connection keeps a state.
pub(in crate::http) enum Waiting {
    /// The body of the application's response.
    Passed(PassedBody),
    /// An event stream.
    Events(EventStream),
    /// A tunnel to the application.
    Tunnel(Tunnel),
    /// The last bytes of a WebSocket that is closed at once.
    Last(Bytes),
}

/// Browsers must not interpret a publisher's text as a script or a page, whatever it contains.
const NO_SNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
/// Methods of every route.
pub(super) const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");
/// Compressions of messages that the server reads.
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");
/// Switches off response buffering in nginx and proxies based on it.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// Asks intermediaries to forward the content as it arrives
/// (draft-ietf-httpbis-incremental, a Structured Field that is true).
const INCREMENTAL: HeaderName = HeaderName::from_static("incremental");

/// Answer to OPTIONS; the caller adds the headers of a CORS preflight. `methods`: those of the
/// path.
pub(super) fn options(methods: HeaderValue) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, methods);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    response
}

/// Answer to a client that has every event of a finite event stream. An `EventSource` stops for good.
pub(super) fn finished() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// Last bytes of a WebSocket whose client has every event of a finite event stream: a regular close.
pub(super) fn finished_websocket() -> Bytes {
    let mut out = BytesMut::new();
    put_close_frame(&mut out, close_code::END, "end");
    out.freeze()
}

/// Response of a gRPC call without a message: its head has the status (trailers-only).
pub(super) fn end_of_call(framing: Framing, trailers: &Trailers<'_>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.extend(call::fields(trailers));
    if let Some(media_type) = framing.media_type() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}

/// Answer with JSON that no cache keeps.
pub(super) fn json(status: StatusCode, body: Bytes) -> Response<Bytes> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(CONTENT_TYPE, JSON);
    headers.insert(CACHE_CONTROL, NO_STORE);
    response
}

/// Adds the headers of an event stream.
pub(super) fn event_stream_head(
    headers: &mut HeaderMap,
    framing: Framing,
    protocol: Protocol,
    close: CloseStyle,
) {
    if let Some(media_type) = framing.media_type() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    }
    if framing == Framing::LongPoll {
        // A document of its own: the connection serves the next poll.
        headers.insert(CACHE_CONTROL, NO_STORE);
        headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
        return;
    }
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-store, no-transform"),
    );
    headers.insert(X_CONTENT_TYPE_OPTIONS, NO_SNIFF);
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers.insert(INCREMENTAL, HeaderValue::from_static("?1"));
    // A connection serves no request after an event stream, and a proxy must not send one into its
    // end. A route with `close: abort` does not announce the end: undici, the fetch of Node, would
    // report an announced end as a clean one.
    let is_announced = close == CloseStyle::Clean || framing.is_grpc();
    if protocol == Protocol::Http10 || (protocol == Protocol::Http11 && is_announced) {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
}

/// Counts a rejected request and returns its response.
pub(in crate::http) fn reject<B>(
    context: &Context,
    rejection: &Rejection,
    request: &hyper::Request<B>,
) -> Answer {
    let row = rejection.code.row();
    record(context, row, rejection.code, request);
    let is_http2 = request.version() == hyper::Version::HTTP_2;
    // An `EventSource` sends GET.
    let is_browser =
        || row.is_temporary && request.method() != Method::POST && is_browser(request.headers());
    let framing = rejection
        .stream
        .or_else(|| is_browser().then_some(Framing::Sse));
    if let Some(framing) = framing {
        let mut response = Response::new(rejection.stream_body(framing));
        let protocol = if is_http2 {
            Protocol::H2
        } else {
            Protocol::Http11
        };
        event_stream_head(response.headers_mut(), framing, protocol, CloseStyle::Clean);
        return row.answer(response);
    }
    let mut response = json(row.response_status(), rejection.body());
    let headers = response.headers_mut();
    match rejection.code {
        RejectionCode::MethodNotAllowed => drop(headers.insert(ALLOW, METHODS)),
        RejectionCode::UpgradeRequired if !is_http2 => upgrade::add_upgrade(headers),
        // RFC 6455, 4.4.
        RejectionCode::BadHandshake => {
            headers.insert(SEC_WEBSOCKET_VERSION, upgrade::VERSION);
        }
        _ => {}
    }
    for value in rejection.challenge.iter().flat_map(Challenge::values) {
        headers.append(WWW_AUTHENTICATE, value);
    }
    if row.is_temporary {
        let seconds = rejection.retry_after().as_secs() + 1;
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if !is_http2 && row.closes_connection {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    row.answer(response)
}

/// Counts a rejected request, and returns a WebSocket that is closed with the reason.
pub(in crate::http) fn reject_websocket<B>(
    context: &Context,
    rejection: &Rejection,
    request: &hyper::Request<B>,
    handshake: &Handshake,
) -> Answer {
    let row = rejection.code.row();
    record(context, row, rejection.code, request);
    let body = rejection.stream_body(Framing::WebSocket);
    row.answer(handshake.head().map(|()| body))
}

/// Counts a rejected call of gRPC, and returns its response.
pub(super) fn reject_call<B>(
    context: &Context,
    rejection: &Rejection,
    request: &hyper::Request<B>,
    framing: Framing,
) -> Answer {
    let row = rejection.code.row();
    record(context, row, rejection.code, request);
    let mut response = end_of_call(framing, &rejection.trailers());
    let headers = response.headers_mut();
    if rejection.code == RejectionCode::UnsupportedMediaType {
        headers.insert(GRPC_ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if request.version() != hyper::Version::HTTP_2 && row.closes_connection {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    row.answer(response)
}

fn record<B>(context: &Context, row: Row, code: RejectionCode, request: &hyper::Request<B>) {
    context.count_rejection(code);
    let path = request.uri().path();
    tracing::debug!(code = row.code, path, "request rejected");
}

impl Row {
    /// Returns the answer to a request that is rejected with this row. An HTTP/2 connection has
    /// other event streams: only a temporary rejection closes it.
    fn answer(&self, response: Response<Bytes>) -> Answer {
        if self.is_temporary {
            Answer::Closing(response)
        } else {
            Answer::Text(response)
        }
    }
}

/// Counts a head that hyper could not parse and returns the bytes of the whole response, the last
/// one of its connection.
pub(in crate::http) fn unparsed_response(context: &Context, code: RejectionCode) -> Vec<u8> {
    context.count_rejection(code);
    let status = code.row().response_status();
    let body = Rejection::from(code).body();
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
         x-content-type-options: nosniff\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body[..]].concat()
}

impl Answer {
    pub(in crate::http) fn status(&self) -> StatusCode {
        match self {
            Self::Text(response) | Self::Closing(response) => response.status(),
            Self::Events(response, _) | Self::Tunnel(response, _) => response.status(),
            Self::Probe(response, _) => response.status(),
            Self::Passed(response) => response.status(),
        }
    }

    pub(in crate::http) fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Text(response) | Self::Closing(response) => response.headers_mut(),
            Self::Events(response, _) | Self::Tunnel(response, _) => response.headers_mut(),
            Self::Probe(response, _) => response.headers_mut(),
            Self::Passed(response) => response.headers_mut(),
        }
    }

    /// Response for hyper. `park` stores the event stream, or the tunnel, until its socket is
    /// reclaimed.
    pub(in crate::http) fn into_response(
        self,
        park: impl FnOnce(Waiting) -> Body,
    ) -> Response<Body> {
        match self {
            Self::Text(response) | Self::Closing(response)
                if response.status() == StatusCode::SWITCHING_PROTOCOLS =>
            {
                response.map(|bytes| park(Waiting::Last(bytes)))
            }
            Self::Text(response) | Self::Closing(response) => response.map(Body::Text),
            Self::Events(head, stream) => head.map(|()| park(Waiting::Events(*stream))),
            Self::Passed(response) => response.map(|body| park(Waiting::Passed(body))),
            Self::Probe(head, probe) => head.map(|()| park(Waiting::Passed(probe.into_body(None)))),
            Self::Tunnel(head, tunnel) => head.map(|()| park(Waiting::Tunnel(tunnel))),
        }
    }
}
