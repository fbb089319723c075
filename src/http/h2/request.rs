//! The task of one HTTP/2 stream: its request, its response, then its event stream.
//!
//! ```text
//! Responding: request::respond::answer -> response head -> rejection body, or
//! Streaming:  H2Stream, until the event stream ends
//! ```
//!
//! The future of the response is boxed and released before the event stream begins: a task that
//! lasts for hours is not larger for its first milliseconds.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hyper::body::Body as _;
use hyper::header::{CONTENT_LENGTH, DATE, HeaderValue};
use hyper::{Method, Request, Response};

use super::idle::{IdleTracker, UseGuard};
use super::passed::H2Passed;
use super::read_budget::ReadBudget;
use super::sink::{DataChunk, SharedStream};
use super::stream::{H2Input, H2Stream};
use crate::http::accept::connection::HEAD_BYTES_MAX;
use crate::http::application::pass::{application_of, pass};
use crate::http::application::request_body::{RequestBody, RequestBytes};
use crate::http::context::Context;
use crate::http::request::answer::{Answer, reject};
use crate::http::request::call::is_call;
use crate::http::request::rejection_code::RejectionCode;
use crate::http::request::request::Caller;
use crate::http::request::respond::{answer, answer_call};
use crate::http::request::upgrade::is_websocket;
use crate::http::stream::group::StreamGroup;

/// 65,535: window of a stream by default (RFC 9113, 6.9.2).
const WINDOW_DEFAULT: usize = 65_535;

/// State that all streams of a connection share.
pub(super) struct H2Shared {
    pub(super) context: Arc<Context>,
    pub(super) caller: Caller,
    pub(super) group: Arc<StreamGroup>,
    pub(super) idle: Arc<IdleTracker>,
    pub(super) budget: Arc<ReadBudget>,
}

/// Task of one stream.
pub(super) enum H2Request {
    Responding(
        Pin<Box<dyn Future<Output = Answered> + Send>>,
        SendResponse<DataChunk>,
    ),
    Streaming(H2Stream),
    Passed(Box<H2Passed>),
}

/// Rest of a response whose head was sent.
enum Sent {
    All,
    Streaming(H2Stream),
    Passed(Box<H2Passed>),
}

/// Answer to a request, with the parts of the connection that its event stream needs.
pub(super) struct Answered {
    answer: Answer,
    /// The client's side of a WebSocket.
    messages: Option<RecvStream>,
    group: Arc<StreamGroup>,
    in_use: UseGuard,
    /// The request is HEAD: its response has no content, whatever the status (RFC 9110, 9.3.2).
    is_head: bool,
}

impl H2Request {
    pub(super) fn new(
        shared: &H2Shared,
        request: Request<RecvStream>,
        respond: SendResponse<DataChunk>,
    ) -> Self {
        let context = shared.context.clone();
        let caller = shared.caller.clone();
        let (group, idle) = (shared.group.clone(), shared.idle.clone());
        let budget = shared.budget.clone();
        let in_use = idle.begin();
        let response = async move {
            let is_head = request.method() == Method::HEAD;
            let (answer, messages) = if head_bytes(&request) > HEAD_BYTES_MAX {
                let rejection = RejectionCode::HeadTooLarge.into();
                (reject(&context, &rejection, &request), None)
            } else {
                http2_answer(&context, &caller, request, &budget).await
            };
            match &answer {
                Answer::Closing(_) => idle.close_if_unused(),
                Answer::Probe(_, probe) if probe.ends_connection() => idle.close(),
                _ => {}
            }
            Answered {
                answer,
                messages,
                group,
                in_use,
                is_head,
            }
        };
        Self::Responding(Box::pin(response), respond)
    }
}

impl Future for H2Request {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        if let Self::Responding(response, respond) = &mut *self {
            let Poll::Ready(answered) = response.as_mut().poll(task) else {
                // A client that resets its request receives no response.
                return respond.poll_reset(task).map(drop);
            };
            match answered.send(respond) {
                Ok(Sent::Streaming(stream)) => *self = Self::Streaming(stream),
                Ok(Sent::Passed(passed)) => *self = Self::Passed(passed),
                Ok(Sent::All) => return Poll::Ready(()),
                Err(error) => {
                    tracing::debug!(%error, "response on an HTTP/2 stream failed");
                    respond.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
            }
        }
        match &mut *self {
            Self::Streaming(stream) => Pin::new(stream).poll(task),
            Self::Passed(passed) => Pin::new(passed).poll(task),
            Self::Responding(..) => Poll::Ready(()),
        }
    }
}

impl Answered {
    /// Sends the response, or its head and the task of its event stream.
    fn send(self, respond: &mut SendResponse<DataChunk>) -> Result<Sent, h2::Error> {
        match self.answer {
            Answer::Text(response) | Answer::Closing(response) => {
                let (mut head, text) = response.into_parts();
                // A successful CONNECT has no length (RFC 9110, 8.6).
                if !text.is_empty() && self.messages.is_none() {
                    head.headers
                        .insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
                }
                let is_all = self.is_head || text.is_empty();
                let mut send = send_head(respond, Response::from_parts(head, ()), is_all)?;
                if !is_all {
                    // Text that does not fit the window waits in the connection, which counts it
                    // among its streams.
                    self.group.use_window(text.len());
                    send.send_data(DataChunk::from(text), true)?;
                }
                Ok(Sent::All)
            }
            Answer::Passed(response) => {
                let (head, body) = response.into_parts();
                let is_all = self.is_head || body.is_end_stream();
                let send = send_head(respond, Response::from_parts(head, ()), is_all)?;
                if is_all {
                    return Ok(Sent::All);
                }
                let passed = H2Passed::new(send, body, self.group, self.in_use);
                Ok(Sent::Passed(Box::new(passed)))
            }
            Answer::Probe(head, probe) => {
                let mut send = send_head(respond, head, self.is_head)?;
                send.reserve_capacity(WINDOW_DEFAULT);
                let body = probe.into_body(Some(send.capacity()));
                let passed = H2Passed::new(send, body, self.group, self.in_use);
                Ok(Sent::Passed(Box::new(passed)))
            }
            // HTTP/2 has no upgrade (RFC 9113, 8.6): the application was not asked for one.
            Answer::Tunnel(..) => {
                respond.send_reset(Reason::INTERNAL_ERROR);
                Ok(Sent::All)
            }
            Answer::Events(head, mut stream) => {
                let send = send_head(respond, head, false)?;
                stream.join(&self.group, send.stream_id().as_u32());
                let shared = SharedStream::new(send, self.group, stream.direct_path());
                let input = self.messages.map(H2Input::new);
                let stream = H2Stream::new(*stream, shared, self.in_use, input);
                Ok(Sent::Streaming(stream))
            }
        }
    }
}

/// Answers a request, by the application if no route has its path. A gRPC call has a body, too. The body is returned if it has the
/// messages of a WebSocket.
async fn http2_answer(
    context: &Arc<Context>,
    caller: &Caller,
    request: Request<RecvStream>,
    budget: &Arc<ReadBudget>,
) -> (Answer, Option<RecvStream>) {
    let routes = context.routes();
    let application = application_of(&routes, &request);
    if application.is_some() || is_call(&routes, request.uri().path()) {
        // The message of a call has a few bytes, and a client that opens a hundred calls at once is the
        // burst that the budget is for.
        let upload = application.is_some().then(|| budget.upload());
        let request = request.map(|body| {
            RequestBody::new(RequestBytes::Http2 {
                body,
                _upload: upload,
            })
        });
        let answer = match application {
            Some(application) => pass(context, &routes, &application, caller, request).await,
            None => Box::pin(answer_call(context, &routes, caller, request)).await,
        };
        return (answer, None);
    }
    let has_body = !request.body().is_end_stream();
    // In a box of its own: it is several times as large as the future of a passed request.
    let answer = Box::pin(answer(context, caller, &request, has_body)).await;
    let is_websocket = is_websocket(&request);
    (answer, is_websocket.then(|| request.into_body()))
}

fn send_head(
    respond: &mut SendResponse<DataChunk>,
    mut head: Response<()>,
    is_all: bool,
) -> Result<SendStream<DataChunk>, h2::Error> {
    head.headers_mut().insert(DATE, date());
    respond.send_response(head, is_all)
}

/// Returns the size of a head as HTTP/2 counts it (RFC 9113, 6.5.2): 32 bytes for each field in
/// addition to its name and value.
fn head_bytes<B>(request: &Request<B>) -> usize {
    let fields = request
        .headers()
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 32);
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |target| target.as_str().len());
    target + fields.sum::<usize>()
}

/// Returns the current time in the format of HTTP, computed once per second.
fn date() -> HeaderValue {
    thread_local! {
        static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let second = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .as_ref()
        .map_or(0, Duration::as_secs);
    LAST.with_borrow_mut(|last| match last {
        Some((known, date)) if *known == second => date.clone(),
        _ => {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            let date = HeaderValue::from_maybe_shared(Bytes::from(text))
                .unwrap_or(HeaderValue::from_static(""));
            last.insert((second, date)).1.clone()
        }
    })
}
