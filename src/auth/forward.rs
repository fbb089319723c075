//! Provider that asks an HTTP endpoint, as nginx `auth_request` and Traefik ForwardAuth do.
//!
//! ```text
//! request -> Question -> key -> cache -----------------------------------> Identity
//!                          '-> call in flight with the same key --'   ^
//!                          '-> limits of the address -> endpoint -> Answer -> cache
//! ```
//!
//! | file | job |
//! | --- | --- |
//! | `question` | what is sent, and the cache key: the digest of exactly that |
//! | `endpoint` | one bounded call; connections are kept |
//! | `answer` | status, headers and body of a response to an answer: claims, times |
//! | `answers` | answers in the cache and calls in flight |
//! | `report` | health check, metrics and log |
//!
//! The endpoint decides by what it receives and by nothing else, so an answer is used only for a
//! request from which exactly the same would be sent.

mod answer;
mod answers;
mod endpoint;
mod question;
mod report;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;

use super::clock::Now;
use super::config::ForwardConfig;
use super::{AuthFailure, Credentials, Identity, Principal, Provider};
use crate::lifecycle::health::Health;
use crate::telemetry::Metrics;
use answer::{Allowed, Answer};
use answers::{Answers, Call, Start};
use endpoint::Endpoint;
use question::Question;
pub(super) use report::forget;
use report::{Outcome, Reports};

/// 1 s: a client whose call failed returns after this time and a random one.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Provider that asks an endpoint.
#[derive(Debug)]
pub(super) struct ForwardProvider {
    name: Box<str>,
    config: ForwardConfig,
    endpoint: Arc<Endpoint>,
    answers: Arc<Answers>,
    reports: Arc<Reports>,
}

impl ForwardProvider {
    /// Returns a provider with an empty cache.
    pub(super) fn new(
        name: &str,
        config: &ForwardConfig,
        health: &Health,
        metrics: &Metrics,
    ) -> Self {
        let reports = Arc::new(Reports::new(name, health, metrics));
        Self {
            name: name.into(),
            config: config.clone(),
            endpoint: Arc::new(Endpoint::new(config, Arc::clone(&reports))),
            answers: Arc::new(Answers::new(config.cache_entries)),
            reports,
        }
    }

    pub(super) fn config(&self) -> &ForwardConfig {
        &self.config
    }

    /// Returns whether this provider decides about a request: it has one of the copied headers, or
    /// no other provider can decide.
    fn decides(&self, credentials: &dyn Credentials, is_last: bool) -> bool {
        let headers = credentials.headers();
        is_last
            || self
                .config
                .send
                .iter()
                .any(|name| headers.contains_key(name))
    }

    async fn decide(&self, credentials: &dyn Credentials) -> Result<Principal, AuthFailure> {
        let question = Question {
            target: credentials.target(),
            headers: credentials.headers(),
            send: &self.config.send,
        };
        let key = question.key();
        let (answer, outcome) = match self.answers.cached(&key, Instant::now()) {
            Some(allowed) => (Answer::Allowed(allowed), Outcome::Cached),
            None => {
                let answer = self.ask(&question, key, credentials).await?;
                let outcome = answer.outcome();
                (answer, outcome)
            }
        };
        self.reports.count(outcome);
        match answer {
            Answer::Allowed(allowed) => Ok(self.principal(&allowed, &question)),
            Answer::Rejected(rejection) => Err(AuthFailure::Rejected(rejection)),
            Answer::Failed | Answer::Busy => Err(AuthFailure::Unavailable {
                retry_after: RETRY_AFTER,
            }),
        }
    }

    /// Asks the endpoint, or waits for a call that asks the same.
    async fn ask(
        &self,
        question: &Question<'_>,
        key: question::Key,
        credentials: &dyn Credentials,
    ) -> Result<Answer, AuthFailure> {
        let admit = || {
            credentials.admit_call().map_err(|retry_after| {
                self.reports.count(Outcome::Limited);
                AuthFailure::TooManyCalls { retry_after }
            })
        };
        if let Some(call) = self.answers.in_flight(&key) {
            let answer = call.await;
            if answer.is_for_several() {
                return Ok(answer);
            }
            admit()?;
            return Ok(self.call(question).await);
        }
        admit()?;
        match self.answers.start(key, self.call_and_store(question, key)) {
            Start::Cached(allowed) => Ok(Answer::Allowed(allowed)),
            Start::Started(call) => Ok(call.await),
            Start::Joined(call) => {
                let answer = call.await;
                if answer.is_for_several() {
                    return Ok(answer);
                }
                Ok(self.call(question).await)
            }
        }
    }

    fn call_and_store(&self, question: &Question<'_>, key: question::Key) -> Call {
        let (call, answers) = (self.call(question), Arc::clone(&self.answers));
        let longest = self.config.cache_for;
        Box::pin(async move {
            let answer = call.await;
            if let Answer::Allowed(allowed) = &answer {
                let now = Now::read();
                let lifetime = allowed.lifetime(longest, now.wall);
                if !lifetime.is_zero()
                    && let Some(until) = now.instant.checked_add(lifetime)
                {
                    answers.store(key, Arc::clone(allowed), until);
                }
            }
            answer
        })
    }

    fn call(&self, question: &Question<'_>) -> Call {
        let (endpoint, request) = (
            Arc::clone(&self.endpoint),
            question.request(&self.config.url),
        );
        Box::pin(async move {
            match request {
                Some(request) => endpoint.call(request).await,
                None => Answer::Failed,
            }
        })
    }

    /// Returns the principal of an answer. A client without `sub` is named by its address, as on a
    /// route without authentication: cookies and tokens are secrets, and so is their digest.
    fn principal(&self, allowed: &Allowed, question: &Question<'_>) -> Principal {
        let claims = allowed.claims();
        let subject = match claims.get("sub") {
            Some(serde_json::Value::String(text)) if !text.is_empty() => text.as_str().into(),
            Some(serde_json::Value::Number(number)) => number.to_string().into(),
            _ => question.target.client.to_string().into(),
        };
        let expires = allowed.expires;
        Principal::Identified(Box::new(Identity {
            provider: self.name.clone(),
            subject,
            claims,
            expires: expires.and_then(|expires| Now::read().expiry(expires, Duration::ZERO)),
        }))
    }
}

impl Provider for ForwardProvider {
    fn name(&self) -> &str {
        &self.name
    }

    fn authenticate<'r>(
        &'r self,
        credentials: &'r dyn Credentials,
        is_last: bool,
    ) -> BoxFuture<'r, Result<Option<Principal>, AuthFailure>> {
        Box::pin(async move {
            if self.decides(credentials, is_last) {
                self.decide(credentials).await.map(Some)
            } else {
                Ok(None)
            }
        })
    }
}
