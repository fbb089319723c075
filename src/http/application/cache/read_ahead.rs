//! Reads the body of a response for the cache, before its client receives the head.
//!
//! A response that may be stored is read whole: other requests wait for the application only, never
//! for a client that reads slowly, and the connection of the application is free. Above a bound of
//! bytes or time, the client receives what was read and then the rest as it comes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Frame, Incoming};
use tokio::time::{Instant, timeout_at};

use super::store::{Cache, Reservation};
use crate::http::application::response_body::{InProgress, PassedBody, ReadAhead};

/// 1 s: maximum time for a body. An application that writes for longer streams on purpose.
const READ_MAX: Duration = Duration::from_secs(1);

/// Body of a response that may be stored.
pub(super) enum Read {
    /// All of it.
    Whole(Bytes),
    /// It does not fit.
    Part(PassedBody),
}

/// Reads a body.
///
/// # Errors
/// The application has not sent all of it.
pub(super) async fn read(
    cache: &Arc<Cache>,
    mut body: Incoming,
    in_progress: InProgress,
) -> Result<Read, hyper::Error> {
    let deadline = Instant::now() + READ_MAX;
    let mut reserved = Reservation::new(cache);
    let length = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if !reserved.grow(length) {
        let body = PassedBody::new(body, in_progress);
        return Ok(Read::Part(body));
    }
    let mut bytes = Vec::with_capacity(length);
    let next = loop {
        let Ok(frame) = timeout_at(deadline, body.frame()).await else {
            break None;
        };
        let Some(frame) = frame.transpose()? else {
            return Ok(Read::Whole(bytes.into_boxed_slice().into()));
        };
        match frame.into_data() {
            Ok(data) if reserved.grow(bytes.len() + data.len()) => bytes.extend_from_slice(&data),
            Ok(data) => break Some(Frame::data(data)),
            // Trailers are not stored.
            Err(frame) => break Some(frame),
        }
    };
    let ahead = ReadAhead {
        bytes: bytes.into(),
        next,
        reserved,
    };
    Ok(Read::Part(PassedBody::after(ahead, body, in_progress)))
}
