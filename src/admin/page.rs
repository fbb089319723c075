//! Page for operators: its files, and the form that opens a session.
//!
//! ```text
//! GET  /             the page; without a token, the form
//! GET  /page/NAME    files of the page, open: they have no data
//! POST /page/login   token of the form -> cookie of a session (`session`), back to /
//! POST /page/logout  ends it
//! GET  /page/events  snapshots of the pod, as an event stream (`viewers`)
//! GET  /page/routes  routes that can be tapped;  /page/tap  events of one (`tap`)
//! ```
//!
//! The files are part of the binary. The page loads nothing from another host, has no inline script
//! and writes text of clients only as text: its policy forbids everything else.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Body;
use hyper::header::{
    CONTENT_SECURITY_POLICY, HOST, HeaderName, HeaderValue, LOCATION, ORIGIN, REFERRER_POLICY,
    SET_COOKIE,
};
use hyper::http::uri::Authority;
use hyper::{HeaderMap, Request, StatusCode, Uri};

use super::access::{Access, Denied};
use super::response::{Answer, error, response};
use super::session;

/// 8 KiB of a form: a token has at most 4 KiB, encoded a little more.
const FORM_BYTES_MAX: usize = 8 << 10;

/// 3 s for the form, as for the head of a request.
const FORM_DEADLINE: Duration = Duration::from_secs(3);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Nothing from elsewhere, no inline script or style, and no text that becomes markup.
const POLICY: HeaderValue = HeaderValue::from_static(
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
     require-trusted-types-for 'script'; trusted-types 'none'",
);

/// Text of the form that the message replaces.
const MESSAGE: &str = "<!-- message -->";

const PAGE: &str = include_str!("page/index.html");
const LOGIN: &str = include_str!("page/login.html");
const CERTIFICATE: &str = include_str!("page/certificate.html");

/// Files of the page: name, media type, content.
const FILES: [(&str, &str, &str); 9] = [
    ("style.css", CSS, include_str!("page/style.css")),
    ("theme.js", SCRIPT, include_str!("page/theme.js")),
    ("main.js", SCRIPT, include_str!("page/main.js")),
    ("dom.js", SCRIPT, include_str!("page/dom.js")),
    ("history.js", SCRIPT, include_str!("page/history.js")),
    ("overview.js", SCRIPT, include_str!("page/overview.js")),
    ("tables.js", SCRIPT, include_str!("page/tables.js")),
    ("search.js", SCRIPT, include_str!("page/search.js")),
    ("tap.js", SCRIPT, include_str!("page/tap.js")),
];

/// Form of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Opens a session.
    Login,
    /// Ends it.
    Logout,
}

/// Returns the form that is sent to a path.
pub(super) fn form(path: &str) -> Option<Form> {
    match path {
        "/page/login" => Some(Form::Login),
        "/page/logout" => Some(Form::Logout),
        _ => None,
    }
}

/// Returns a file of the page.
pub(super) fn file(path: &str) -> Option<Answer> {
    let name = path.strip_prefix("/page/")?;
    let found = FILES.iter().find(|(known, ..)| *known == name);
    found.map(|(_, media_type, text)| document(StatusCode::OK, media_type, (*text).into()))
}

/// Returns the page.
pub(super) fn page() -> Answer {
    document(StatusCode::OK, HTML, PAGE.into())
}

/// Returns the form in the place of the page.
pub(super) fn denied(status: StatusCode, denied: Denied) -> Answer {
    let message = match denied {
        Denied::NoToken => "",
        Denied::WrongToken => "The token is wrong.",
        Denied::TooManyFailures(_) => "Too many wrong tokens. Try again in a while.",
        Denied::NoCertificate => return document(status, HTML, CERTIFICATE.into()),
    };
    document(status, HTML, LOGIN.replace(MESSAGE, message).into())
}

/// Answers a form.
///
/// # Errors
/// [`Denied`], to which the form is the answer
pub(super) async fn submit<B>(
    access: &Access,
    peer: IpAddr,
    is_tls: bool,
    form: Form,
    request: Request<B>,
) -> Result<Answer, Denied>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (head, body) = request.into_parts();
    if form == Form::Logout {
        return Ok(to_page(&session::set_cookie(&head.headers, "", is_tls)));
    }
    let body = Limited::new(body, FORM_BYTES_MAX).collect();
    let Ok(Ok(body)) = tokio::time::timeout(FORM_DEADLINE, body).await else {
        let hint = "send the token in at most 8 KiB, within 3 s";
        let message = "the form is not complete or too long";
        return Ok(error(StatusCode::BAD_REQUEST, "bad_form", message, hint));
    };
    let body = body.to_bytes();
    let token = form_urlencoded::parse(&body).find(|(name, _)| name == "token");
    let token = token.map(|(_, token)| token).unwrap_or_default();
    let now = Instant::now();
    let session = access.open_session(peer, token.trim(), now)?;
    tracing::info!(client.addr = %peer, "session of the admin page opened");
    let cookie = session.unwrap_or_default();
    Ok(to_page(&session::set_cookie(
        &head.headers,
        &cookie,
        is_tls,
    )))
}

/// Returns whether a page of another origin has sent a form: it could use up the attempts of its
/// user.
pub(super) fn is_cross_origin(headers: &HeaderMap) -> bool {
    const SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
    let site = headers.get(SITE).map(HeaderValue::as_bytes);
    if site.is_some_and(|site| !matches!(site, b"same-origin" | b"none")) {
        return true;
    }
    let Some(origin) = headers.get(ORIGIN) else {
        return false;
    };
    let origin = Uri::try_from(origin.as_bytes()).ok();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    origin
        .as_ref()
        .and_then(Uri::authority)
        .map(Authority::as_str)
        != host
}

fn to_page(cookie: &str) -> Answer {
    let mut answer = document(StatusCode::SEE_OTHER, HTML, Bytes::new());
    let headers = answer.headers_mut();
    headers.insert(LOCATION, HeaderValue::from_static("/"));
    if let Ok(cookie) = HeaderValue::from_str(cookie) {
        headers.insert(SET_COOKIE, cookie);
    }
    answer
}

fn document(status: StatusCode, media_type: &'static str, text: Bytes) -> Answer {
    let mut answer = response(status, media_type, Full::from(text).boxed_unsync());
    let headers = answer.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    // Not `no-referrer`, with which a form has the origin `null`.
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn form_of_another_origin_is_recognised() {
        for (name, value, expected) in [
            ("origin", "http://localhost:9090", false),
            ("origin", "https://localhost:9090", false),
            ("origin", "http://localhost:9091", true),
            ("origin", "https://evil.example", true),
            ("origin", "null", true),
            ("sec-fetch-site", "same-origin", false),
            ("sec-fetch-site", "same-site", true),
            ("sec-fetch-site", "cross-site", true),
            ("x", "y", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("localhost:9090"));
            headers.insert(name, HeaderValue::from_static(value));
            assert_eq!(is_cross_origin(&headers), expected, "{name}: {value}");
        }
    }

    #[test]
    fn files_have_no_inline_script_or_style_and_name_no_other_host() {
        let pages = [
            ("index", PAGE),
            ("login", LOGIN),
            ("certificate", CERTIFICATE),
        ];
        for (name, page) in pages {
            for forbidden in [
                "<script>",
                "<style",
                " style=",
                " onclick=",
                "http://",
                "https://",
            ] {
                let page = page.replace("http://www.w3.org/2000/svg", "");
                assert!(!page.contains(forbidden), "{name}: {forbidden}");
            }
        }
        for (name, _, text) in FILES {
            for forbidden in [
                "innerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "https://",
            ] {
                assert!(!text.contains(forbidden), "{name}: {forbidden}");
            }
        }
        assert!(LOGIN.contains(MESSAGE));
    }
}
