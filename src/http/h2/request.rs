//! One stream of an HTTP/2 connection: its request, its answer, and the event stream that stays.

use std::cell::RefCell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hyper::header::{CONTENT_LENGTH, DATE, HeaderValue};
use hyper::{Method, Request, Response};

use super::sink::{EncodedRun, SharedStream};
use super::stream::H2Stream;
use crate::http::accept::connection::HEAD_BYTES_MAX;
use crate::http::context::Context;
use crate::http::h2::group::H2StreamGroup;
use crate::http::h2::idle::{IdleTracker, UseGuard};
use crate::http::request::rejection::RejectionCode;
use crate::http::request::respond::{Answer, answer, reject};
use crate::http::stream::state::Peer;

/// What is the same for all streams of a connection.
pub(super) struct H2Shared {
    pub(super) context: Arc<Context>,
    pub(super) peer: Peer,
    /// The connection is one more than are served.
    pub(super) over_limit: bool,
    pub(super) group: Arc<H2StreamGroup>,
    pub(super) idle: Arc<IdleTracker>,
}

/// The task of one stream. No larger for what is only at its beginning: an event stream is open for hours.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is what is there for hours"
)]
pub(super) enum H2Request {
    Answers(
        Pin<Box<dyn Future<Output = Answered> + Send>>,
        SendResponse<EncodedRun>,
    ),
    Carries(H2Stream),
}

/// An answer, with what its event stream belongs to.
pub(super) struct Answered {
    answer: Answer,
    group: Arc<H2StreamGroup>,
    in_use: UseGuard,
    /// The request was HEAD: whatever its status, the answer has no content (RFC 9110, 9.3.2).
    is_head: bool,
}

impl H2Request {
    pub(super) fn new(
        shared: &H2Shared,
        request: Request<RecvStream>,
        respond: SendResponse<EncodedRun>,
    ) -> Self {
        let (context, group, idle) = (
            shared.context.clone(),
            shared.group.clone(),
            shared.idle.clone(),
        );
        let (peer, over_limit, in_use) = (shared.peer, shared.over_limit, shared.idle.begin());
        let answers = async move {
            let has_body = !request.body().is_end_stream();
            let answer = if head_bytes(&request) > HEAD_BYTES_MAX {
                reject(&context, &RejectionCode::HeadTooLarge.into(), &request)
            } else {
                answer(&context, peer, over_limit, &request, has_body).await
            };
            if matches!(answer, Answer::Closing(_)) {
                idle.close_if_unused();
            }
            Answered {
                answer,
                group,
                in_use,
                is_head: request.method() == Method::HEAD,
            }
        };
        Self::Answers(Box::pin(answers), respond)
    }
}

impl Future for H2Request {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<()> {
        if let Self::Answers(answers, respond) = &mut *self {
            let Poll::Ready(answered) = answers.as_mut().poll(task) else {
                // Whoever takes its request back is answered no more.
                return respond.poll_reset(task).map(drop);
            };
            match answered.send(respond) {
                Ok(Some(driver)) => *self = Self::Carries(driver),
                Ok(None) => return Poll::Ready(()),
                Err(error) => {
                    tracing::debug!(%error, "no answer on an HTTP/2 stream");
                    respond.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
            }
        }
        match &mut *self {
            Self::Carries(driver) => Pin::new(driver).poll(task),
            Self::Answers(..) => Poll::Ready(()),
        }
    }
}

impl Answered {
    /// Sends the answer, or its head and what carries its event stream.
    fn send(self, respond: &mut SendResponse<EncodedRun>) -> Result<Option<H2Stream>, h2::Error> {
        match self.answer {
            Answer::Text(response) | Answer::Closing(response) => {
                let (mut head, text) = response.into_parts();
                if !text.is_empty() {
                    head.headers
                        .insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
                }
                let is_all = self.is_head || text.is_empty();
                let mut send = send_head(respond, Response::from_parts(head, ()), is_all)?;
                if !is_all {
                    // What its window does not let out waits with the connection, which counts it among its streams.
                    self.group.uses_window(text.len());
                    send.send_data(EncodedRun::from(text), true)?;
                }
                Ok(None)
            }
            Answer::Events(head, mut stream) => {
                let send = send_head(respond, head, false)?;
                stream.join(self.group.clone(), send.stream_id().as_u32());
                let shared = SharedStream::new(send, self.group, stream.direct_path());
                Ok(Some(H2Stream::new(*stream, shared, self.in_use)))
            }
        }
    }
}

fn send_head(
    respond: &mut SendResponse<EncodedRun>,
    mut head: Response<()>,
    is_all: bool,
) -> Result<SendStream<EncodedRun>, h2::Error> {
    head.headers_mut().insert(DATE, date());
    respond.send_response(head, is_all)
}

/// The size of a head as HTTP/2 counts it (RFC 9113, 6.5.2): 32 bytes for each field beside its name and value.
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

/// The time in the format of HTTP, made once a second.
fn date() -> HeaderValue {
    thread_local! {
        static MADE: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
    }
    let second = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .as_ref()
        .map_or(0, Duration::as_secs);
    MADE.with_borrow_mut(|made| match made {
        Some((known, date)) if *known == second => date.clone(),
        _ => {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            let date = HeaderValue::from_maybe_shared(Bytes::from(text))
                .unwrap_or(HeaderValue::from_static(""));
            made.insert((second, date)).1.clone()
        }
    })
}
