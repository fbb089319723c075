//! Shared cache of responses that the application marks cacheable (RFC 9111, RFC 9211).
//!
//! ```text
//! send: bypass                       -> application                      fwd=bypass, fwd=method
//!       fresh response               -> client                           hit
//!       another request is in flight -> wait, then look once more
//!       stale response               -> conditional request -> 304       fwd=stale; fwd-status=304
//!       no response                  -> application -> read_ahead        fwd=uri-miss; stored
//!                                       -> not stored                    fwd=uri-miss
//! ```
//!
//! A response is stored before its client receives the head. A request that waits never receives the
//! response to another one: it looks into the cache once more, so what is not stored is not shared.
//! Event sources do not come here.
//!
//! | file | job |
//! | --- | --- |
//! | `wanted` | demands of a request: what bypasses, which responses it accepts |
//! | `stored` | one response: storage, freshness, selection, conditions, update by a 304 |
//! | `store` | objects within a bound of bytes, requests in flight, invalidation |
//! | `read_ahead` | the body of a response, within a bound of bytes and time |
//! | `status` | `Cache-Status` |

mod read_ahead;
mod status;
mod store;
mod stored;
#[cfg(test)]
mod tests;
mod wanted;

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};

use super::client::Application;
use super::fields;
use super::request_body::{RequestBody, RequestBytes};
use super::response_body::{InProgress, PassedBody};
use crate::http::request::rejection_code::RejectionCode;
use read_ahead::{Read, read};
pub(super) use status::Reason;
use store::{Begun, Key, Recording};
pub(super) use store::{Cache, Reservation};
use stored::{Moment, Stored};
use wanted::Wanted;

/// Response to a request.
pub(super) enum Sent {
    /// As its client receives it.
    Complete(Response<PassedBody>),
    /// As the application has sent it. `None`: there is no cache.
    Application(Response<Incoming>, InProgress, Option<Reason>),
}

/// Result of a search for a stored response.
enum Found {
    Fresh(Arc<Stored>),
    Ask(Ask),
}

/// Request that is sent to the application.
struct Ask {
    reason: Reason,
    /// Response that the application may confirm.
    stale: Option<Arc<Stored>>,
    recording: Recording,
}

/// Answers a request from the cache, or sends it to the application.
pub(super) async fn send(
    cache: &Arc<Cache>,
    application: &Application,
    head: Parts,
    body: RequestBody,
) -> Result<Sent, RejectionCode> {
    let key = Key::of(&head);
    let wanted = Wanted::of(&head.headers);
    if let Some(reason) = wanted::bypass(&head, !body.is_empty(), &wanted) {
        cache.metrics.bypass.inc();
        return bypass(cache, application, &key, head, body, reason).await;
    }
    match find(cache, &key, &head, &wanted).await {
        Found::Fresh(stored) => {
            cache.metrics.hit.inc();
            let mut answer = stored.answer_at(&head, Instant::now());
            status::add_hit(answer.headers_mut());
            Ok(complete(answer))
        }
        Found::Ask(_) if wanted.only_if_cached => {
            cache.metrics.miss.inc();
            Err(RejectionCode::NotCached)
        }
        Found::Ask(ask) => match ask.stale.clone() {
            Some(stale) => revalidate(application, ask, head, &stale).await,
            None => fetch(application, ask, head).await,
        },
    }
}

/// Searches a fresh response. Without one, waits while another request for it is in flight.
async fn find(cache: &Arc<Cache>, key: &Key, head: &Parts, wanted: &Wanted) -> Found {
    let headers = &head.headers;
    let is_get = head.method == Method::GET;
    let mut recording = None;
    let mut may_wait = is_get && !wanted.is_strict() && !wanted.only_if_cached;
    loop {
        let object = cache.get(key);
        let stored = object.as_ref().and_then(|object| object.select(headers));
        let now = Instant::now();
        if let Some(stored) = stored.filter(|stored| stored.satisfies(wanted, now)) {
            return Found::Fresh(Arc::clone(stored));
        }
        let stale = stored.filter(|stored| is_get && stored.has_validator());
        if let Some(recording) = recording {
            let reason = match (&object, stored) {
                (None, _) => Reason::UriMiss,
                (Some(_), None) => Reason::VaryMiss,
                (Some(_), Some(stored)) if stored.is_fresh(now) => Reason::Request,
                (Some(_), Some(_)) => Reason::Stale,
            };
            let stale = stale.cloned();
            return Found::Ask(Ask {
                reason,
                stale,
                recording,
            });
        }
        // The response to the condition of a client is for this client.
        may_wait &= stale.is_some() || !wanted::is_conditional(headers);
        match cache.begin(key, object.as_ref(), headers, !may_wait) {
            // Looks once more: the request before it may just have landed.
            Begun::Recording(begun) => recording = Some(begun),
            Begun::Wait(flight) => may_wait = flight.landed().await,
        }
    }
}

/// Sends a request that the cache can neither answer nor store. Its success invalidates the object
/// if its method is unsafe (RFC 9111, 4.4).
async fn bypass(
    cache: &Cache,
    application: &Application,
    key: &Key,
    head: Parts,
    body: RequestBody,
    reason: Reason,
) -> Result<Sent, RejectionCode> {
    let is_safe = head.method.is_safe();
    let (response, in_progress) = application.send(|| head.clone(), body).await?;
    let status = response.status();
    if !is_safe && (status.is_success() || status.is_redirection()) {
        cache.invalidate(key);
    }
    Ok(Sent::Application(response, in_progress, Some(reason)))
}

/// Sends a request, and stores its response if the application permits it.
async fn fetch(application: &Application, ask: Ask, head: Parts) -> Result<Sent, RejectionCode> {
    ask.recording.cache().metrics.miss.inc();
    let asked = Moment::now();
    let (response, in_progress) = ask_application(application, &ask, &head).await?;
    keep(ask, &head, response, in_progress, asked).await
}

/// Asks the application if a stale response is still valid (RFC 9111, 4.3).
async fn revalidate(
    application: &Application,
    ask: Ask,
    head: Parts,
    stale: &Stored,
) -> Result<Sent, RejectionCode> {
    let metrics = &ask.recording.cache().metrics;
    let mut conditional = head.clone();
    stale.set_condition(&mut conditional.headers);
    let asked = Moment::now();
    let (response, in_progress) = ask_application(application, &ask, &conditional).await?;
    if response.status() != StatusCode::NOT_MODIFIED {
        metrics.miss.inc();
        return keep(ask, &head, response, in_progress, asked).await;
    }
    let Some(refreshed) = stale.refreshed(&head, &response, asked) else {
        // It is about another response: without the condition, the application sends the whole.
        drop((response, in_progress));
        ask.recording.remove();
        return fetch(application, ask, head).await;
    };
    metrics.revalidated.inc();
    let stored = Arc::new(refreshed.stored);
    if refreshed.is_storable {
        ask.recording.store(&stored);
    } else {
        ask.recording.remove();
        ask.recording.set_not_cacheable();
    }
    let mut answer = stored.answer_at(&head, Instant::now());
    status::add_revalidated(answer.headers_mut(), ask.reason);
    Ok(complete(answer))
}

async fn ask_application(
    application: &Application,
    ask: &Ask,
    head: &Parts,
) -> Result<(Response<Incoming>, InProgress), RejectionCode> {
    let body = RequestBody::new(RequestBytes::Empty);
    let sent = application.send(|| head.clone(), body).await;
    sent.map_err(|failure| {
        ask.recording.release();
        failure.into()
    })
}

/// Stores a response of the application if it permits that, and returns it.
async fn keep(
    ask: Ask,
    request: &Parts,
    response: Response<Incoming>,
    in_progress: InProgress,
    asked: Moment,
) -> Result<Sent, RejectionCode> {
    let Ask {
        recording, reason, ..
    } = ask;
    let Some(stored) = Stored::new(request, &response, asked) else {
        recording.set_not_cacheable();
        return Ok(Sent::Application(response, in_progress, Some(reason)));
    };
    let (mut head, body) = response.into_parts();
    fields::for_client(&mut head.headers);
    let body = match read(recording.cache(), body, in_progress).await {
        Ok(Read::Whole(bytes)) => {
            let stored = Arc::new(stored.with_body(bytes));
            if recording.store(&stored) {
                reason.add_stored(&mut head.headers);
            } else {
                reason.add_to(&mut head.headers);
            }
            PassedBody::stored(stored.body.clone())
        }
        Ok(Read::Part(body)) => {
            recording.set_not_cacheable();
            reason.add_to(&mut head.headers);
            body
        }
        Err(error) => {
            tracing::debug!(%error, "response of the application was cut");
            recording.release();
            return Err(RejectionCode::ApplicationInvalid);
        }
    };
    Ok(Sent::Complete(Response::from_parts(head, body)))
}

fn complete(answer: Response<Bytes>) -> Sent {
    Sent::Complete(answer.map(PassedBody::stored))
}
