//! Access to the protected pages (`/`, `/connections`, `/config`, ...): by a token, a session of a
//! browser or a client certificate.
//!
//! ```text
//! no token, no client_ca        the pages are open
//! verified client certificate   admitted
//! `Authorization: Bearer`       admitted with the token, compared in constant time
//! cookie of a session           admitted until its end (`session`); the form of `/` has sent the token
//! ```
//!
//! Wrong tokens are limited per address and in total; above the limits no token is compared. Tokens
//! are never logged. [`Token`] is shared with `app`, which replaces it when a reload changes it.
//! With `admin.token_file` a task polls the file instead.

use std::fmt;
use std::io::{self, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use ring::hmac;
use ring::rand::SystemRandom;

use super::config::{NOT_A_TOKEN, is_token};
use super::session;
use crate::auth::Secret;
use crate::limit::{AddressLimiter, AddressLimits, LeakLimit};
use crate::net::request_head;

/// 20 wrong tokens at once and 1 per second for one address: an operator makes fewer mistakes, and a
/// program with an old token requests a page every few seconds.
const PER_ADDRESS: LeakLimit = LeakLimit {
    per_second: 1.0,
    burst: 20.0,
};

/// 100 at once and 10 per second in total.
const TOTAL: LeakLimit = LeakLimit {
    per_second: 10.0,
    burst: 100.0,
};

/// 2 s: a mounted Secret changes by a swapped symlink.
const POLL_EVERY: Duration = Duration::from_secs(2);

/// 4 KiB: half of the largest request head.
const TOKEN_BYTES_MAX: usize = 4 << 10;

/// Token of the protected pages. Clones share it.
#[derive(Clone, Default)]
pub struct Token(Arc<ArcSwapOption<Expected>>);

/// A token as its HMAC with a random key: comparing two of them takes the same time wherever the
/// tokens differ.
struct Expected {
    key: hmac::Key,
    tag: hmac::Tag,
}

/// Rules of the protected pages.
pub(super) struct Access {
    pub(super) token: Token,
    /// Certificates of clients are verified.
    pub(super) accepts_certificates: bool,
    failures: AddressLimiter,
}

/// Reason why a request for a protected page is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    /// The request has no token.
    NoToken,
    /// The token is wrong, or there are several.
    WrongToken,
    /// Too many wrong tokens; the time until the next one is compared.
    TooManyFailures(Duration),
    /// There is no token, and the client has presented no certificate.
    NoCertificate,
}

impl Token {
    /// Replaces the token. `None`: no token admits a client. Another token ends all sessions.
    ///
    /// # Errors
    /// If the system has no random numbers.
    pub fn set(&self, token: Option<&Secret>) -> io::Result<()> {
        if token.is_some_and(|token| self.is(&token.0)) {
            return Ok(());
        }
        let expected = token.map(|token| Expected::new(&token.0)).transpose()?;
        self.0.store(expected.map(Arc::new));
        Ok(())
    }

    fn is_set(&self) -> bool {
        self.0.load().is_some()
    }

    fn is(&self, presented: &str) -> bool {
        let expected = self.0.load();
        expected.as_ref().is_some_and(|expected| {
            hmac::verify(&expected.key, presented.as_bytes(), expected.tag.as_ref()).is_ok()
        })
    }

    /// Returns the cookie of a new session; `None` without a token.
    fn new_session(&self, now: SystemTime) -> Option<String> {
        let expected = self.0.load();
        let (expected, end) = (expected.as_ref()?, session::end(now).to_string());
        let signature = hmac::sign(&expected.key, signed(&end).as_bytes());
        Some(format!("{end}.{}", BASE64.encode(signature)))
    }

    /// Returns whether a cookie is that of a session which has not ended.
    fn has_session(&self, cookie: &str, now: SystemTime) -> bool {
        let expected = self.0.load();
        let (Some(expected), Some((end, signature))) =
            (expected.as_ref(), session::parse(cookie, now))
        else {
            return false;
        };
        BASE64.decode(signature).is_ok_and(|signature| {
            hmac::verify(&expected.key, signed(end).as_bytes(), &signature).is_ok()
        })
    }
}

/// Returns the signed text of a session. The line end is in no token, whose tag has the same key.
fn signed(end: &str) -> String {
    format!("session\n{end}")
}

impl Expected {
    fn new(token: &str) -> io::Result<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| io::Error::other("the system has no random numbers"))?;
        let tag = hmac::sign(&key, token.as_bytes());
        Ok(Self { key, tag })
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl Access {
    pub(super) fn new(token: Token, accepts_certificates: bool) -> Self {
        Self {
            token,
            accepts_certificates,
            failures: AddressLimiter::new(
                AddressLimiter::FAILURES,
                AddressLimits {
                    per_address: PER_ADDRESS,
                    total: TOTAL,
                },
            ),
        }
    }

    /// Checks that a request may read a protected page. `has_certificate`: the client has presented
    /// a certificate of `client_ca`.
    ///
    /// # Errors
    /// [`Denied`]
    pub(super) fn check(
        &self,
        peer: IpAddr,
        has_certificate: bool,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<(), Denied> {
        let has_token = self.token.is_set();
        if has_certificate || (!has_token && !self.accepts_certificates) {
            return Ok(());
        }
        if !has_token {
            return Err(Denied::NoCertificate);
        }
        let Some(presented) = request_head::bearer(headers) else {
            // A forged signature is not a guess of the token, and an old one is no failure.
            return if self.has_session(headers) {
                Ok(())
            } else {
                Err(Denied::NoToken)
            };
        };
        // A proxy in front may have verified the other one.
        let is_single = headers.get_all(AUTHORIZATION).iter().count() == 1;
        self.compare(peer, now, || is_single && self.token.is(presented))
    }

    /// Opens the session of a browser that presents the token. `None`: no token is needed.
    ///
    /// # Errors
    /// [`Denied`]
    pub(super) fn open_session(
        &self,
        peer: IpAddr,
        presented: &str,
        now: Instant,
    ) -> Result<Option<String>, Denied> {
        if !self.token.is_set() {
            return if self.accepts_certificates {
                Err(Denied::NoCertificate)
            } else {
                Ok(None)
            };
        }
        self.compare(peer, now, || self.token.is(presented))?;
        Ok(self.token.new_session(SystemTime::now()))
    }

    /// Returns whether a request has the cookie of a session that has not ended.
    pub(super) fn has_session(&self, headers: &HeaderMap) -> bool {
        let now = SystemTime::now();
        session::presented(headers).is_some_and(|cookie| self.token.has_session(cookie, now))
    }

    /// Returns whether a request needs a token or a certificate.
    pub(super) fn is_protected(&self) -> bool {
        self.token.is_set() || self.accepts_certificates
    }

    /// Compares a token within the limits of wrong ones.
    fn compare(
        &self,
        peer: IpAddr,
        now: Instant,
        is_right: impl FnOnce() -> bool,
    ) -> Result<(), Denied> {
        self.failures
            .check(peer, now)
            .map_err(Denied::TooManyFailures)?;
        if is_right() {
            return Ok(());
        }
        self.failures.record(peer, now);
        Err(Denied::WrongToken)
    }
}

/// Reads the token of a file; white space at its end is ignored.
///
/// # Errors
/// If the file cannot be read, or its content is not a token.
pub(super) fn read(file: &Path) -> io::Result<Secret> {
    let mut text = String::new();
    let limit = TOKEN_BYTES_MAX as u64 + 1;
    std::fs::File::open(file)?
        .take(limit)
        .read_to_string(&mut text)?;
    let token = text.trim_end();
    let problem = if text.len() > TOKEN_BYTES_MAX {
        "the file is longer than 4 KiB"
    } else if token.is_empty() {
        "the file is empty"
    } else if !is_token(token) {
        NOT_A_TOKEN
    } else {
        return Ok(Secret(token.to_owned()));
    };
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}

/// Polls the file of the token and reports every change: a new token, or an error after which the
/// current one stays in use. Does not return.
pub(super) async fn follow(
    token: Token,
    file: PathBuf,
    first: Secret,
    mut report: impl FnMut(Result<(), &io::Error>),
) {
    report(Ok(()));
    let mut seen = Ok(first);
    let mut ticks = tokio::time::interval(POLL_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let path = file.clone();
        // A mounted file can be slow to read, and must not delay probes.
        let Ok(now) = tokio::task::spawn_blocking(move || read(&path)).await else {
            return;
        };
        let now = now.map_err(|error| (error.to_string(), error));
        let is_same = match (&now, &seen) {
            (Ok(now), Ok(seen)) => now == seen,
            (Err((now, _)), Err(seen)) => now == seen,
            _ => false,
        };
        if is_same {
            continue;
        }
        let applied = match now {
            Ok(now) => token.set(Some(&now)).map(|()| now),
            Err((_, error)) => Err(error),
        };
        report(applied.as_ref().map(drop));
        if applied.is_ok() {
            tracing::info!(file = %file.display(), "admin token replaced");
        }
        seen = applied.map_err(|error| error.to_string());
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn headers(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_static(value));
        }
        headers
    }

    fn access(token: Option<&str>, accepts_certificates: bool) -> Access {
        let expected = Token::default();
        expected
            .set(token.map(|token| Secret(token.to_owned())).as_ref())
            .unwrap();
        Access::new(expected, accepts_certificates)
    }

    #[test]
    fn token_or_certificate_admits_and_without_both_rules_every_request_is_admitted() {
        let now = Instant::now();
        let check = |access: &Access, has_certificate, values: &[&'static str]| {
            access.check(PEER, has_certificate, &headers(values), now)
        };
        let open = access(None, false);
        assert_eq!(check(&open, false, &[]), Ok(()));
        assert_eq!(check(&open, false, &["Bearer any"]), Ok(()));

        let certificate = access(None, true);
        assert_eq!(
            check(&certificate, false, &["Bearer any"]),
            Err(Denied::NoCertificate)
        );
        assert_eq!(check(&certificate, true, &[]), Ok(()));

        for (accepts_certificates, has_certificate, values, expected) in [
            (false, false, &[][..], Err(Denied::NoToken)),
            (false, false, &["Basic right"][..], Err(Denied::NoToken)),
            (false, false, &["Bearer right"][..], Ok(())),
            (false, false, &["bEARER  right"][..], Ok(())),
            (false, false, &["Bearer wrong"][..], Err(Denied::WrongToken)),
            (false, false, &["Bearer righ"][..], Err(Denied::WrongToken)),
            (false, false, &["Bearer "][..], Err(Denied::WrongToken)),
            (
                false,
                false,
                &["Bearer right", "Bearer right"][..],
                Err(Denied::WrongToken),
            ),
            (true, true, &[][..], Ok(())),
            (true, true, &["Bearer wrong"][..], Ok(())),
            (true, false, &["Bearer right"][..], Ok(())),
            (true, false, &[][..], Err(Denied::NoToken)),
        ] {
            let access = access(Some("right"), accepts_certificates);
            assert_eq!(
                check(&access, has_certificate, values),
                expected,
                "{values:?}"
            );
        }
    }

    #[test]
    fn right_token_waits_after_too_many_wrong_ones_of_the_same_address() {
        let (access, now) = (access(Some("right"), false), Instant::now());
        let check = |token: &'static str, peer: [u8; 4], now| {
            access.check(peer.into(), false, &headers(&[token]), now)
        };
        for _ in 0..20 {
            assert_eq!(
                check("Bearer wrong", [10, 0, 0, 1], now),
                Err(Denied::WrongToken)
            );
        }
        let second = Duration::from_secs(1);
        for token in ["Bearer wrong", "Bearer right"] {
            let denied = check(token, [10, 0, 0, 1], now);
            assert_eq!(denied, Err(Denied::TooManyFailures(second)));
        }
        assert_eq!(check("Bearer right", [10, 0, 0, 2], now), Ok(()));
        assert_eq!(check("Bearer right", [10, 0, 0, 1], now + second), Ok(()));
    }

    #[test]
    fn replaced_token_is_the_only_one() {
        let token = Token::default();
        token.set(Some(&Secret("one".into()))).unwrap();
        assert!(token.is("one") && !token.is("two"));
        token.set(Some(&Secret("two".into()))).unwrap();
        assert!(token.is("two") && !token.is("one"));
        token.set(None).unwrap();
        assert!(!token.is_set() && !token.is(""));
        assert_eq!(format!("{token:?}"), "***");
    }

    #[test]
    fn session_lasts_until_its_end_or_another_token() {
        let (access, now) = (access(Some("right"), false), SystemTime::now());
        let opened = access.open_session(PEER, "right", Instant::now());
        let session = opened.unwrap().unwrap();
        let token = &access.token;
        assert!(token.has_session(&session, now));
        assert!(!token.has_session(&session, now + session::SESSION_MAX));
        let (end, signature) = session.split_once('.').unwrap();
        let later = end.parse::<u64>().unwrap() + 1;
        for forged in [
            format!("{later}.{signature}"),
            format!("{end}."),
            end.to_owned(),
            String::new(),
        ] {
            assert!(!token.has_session(&forged, now), "{forged}");
        }
        // A reload that changes nothing keeps the sessions.
        token.set(Some(&Secret("right".into()))).unwrap();
        assert!(token.has_session(&session, now));
        token.set(Some(&Secret("other".into()))).unwrap();
        assert!(!token.has_session(&session, now));
    }

    #[test]
    fn wrong_tokens_of_the_form_are_limited_with_those_of_the_header() {
        let (access, now) = (access(Some("right"), false), Instant::now());
        for attempt in 0..20 {
            let denied = match attempt % 2 {
                0 => access.open_session(PEER, "wrong", now).map(drop),
                _ => access.check(PEER, false, &headers(&["Bearer wrong"]), now),
            };
            assert_eq!(denied, Err(Denied::WrongToken));
        }
        let denied = access.open_session(PEER, "right", now);
        assert_eq!(denied, Err(Denied::TooManyFailures(Duration::from_secs(1))));
    }

    #[test]
    fn file_has_one_token_and_a_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        let token = |content: &str| {
            std::fs::write(&file, content).unwrap();
            read(&file).map_err(|error| error.to_string())
        };
        assert_eq!(token("abc\n"), Ok(Secret("abc".into())));
        assert_eq!(token("\n"), Err("the file is empty".into()));
        assert_eq!(token("two words"), Err(NOT_A_TOKEN.into()));
        let long = "x".repeat(5000);
        assert_eq!(token(&long), Err("the file is longer than 4 KiB".into()));
    }
}
