//! A request as routes read it: variables, last event id, and browser detection.
//!
//! [`Request`] borrows from the head. Templates read path segments, query parameters, headers and
//! cookies of an [`AuthenticatedRequest`], which adds the claims of its principal.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use hyper::HeaderMap;
use hyper::header::{ACCEPT, COOKIE, USER_AGENT};
use percent_encoding::percent_decode_str;

use super::client_address::client_address;
use crate::auth::Principal;
use crate::encoding::Framing;
use crate::http::config::Config;
use crate::http::stream::state::Peer;
use crate::subject::{ClaimPath, Variable, Variables};

/// Connection of a request, as far as the answer depends on it.
#[derive(Clone)]
pub(in crate::http) struct Caller {
    pub(in crate::http) peer: Peer,
    /// The connection exceeds `limits.connections`: it receives responses, but no event stream.
    pub(in crate::http) over_limit: bool,
    /// Verified certificate (DER) of the client, shared by the requests of the connection.
    pub(in crate::http) certificate: Option<Arc<[u8]>>,
}

/// Parts of a request that a route reads.
pub(in crate::http) struct Request<'r> {
    /// Raw values of the path's variables.
    pub(in crate::http) path: Vec<(&'r str, &'r str)>,
    pub(in crate::http) query: &'r str,
    pub(in crate::http) headers: &'r HeaderMap,
    /// Address of the client, found through trusted proxies.
    pub(in crate::http) remote: IpAddr,
    /// Verified certificate (DER) of the client.
    pub(in crate::http) certificate: Option<&'r [u8]>,
}

/// Request with the principal that `request::authenticate` has determined.
///
/// Only this type implements [`Variables`]: no variable is filled before the client is known.
pub(in crate::http) struct AuthenticatedRequest<'r> {
    pub(in crate::http) request: Request<'r>,
    pub(in crate::http) principal: Principal,
}

impl Variables for AuthenticatedRequest<'_> {
    fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
        let request = &self.request;
        match variable {
            Variable::Path(name) => {
                let raw = request.path.iter().find(|(known, _)| *known == &**name);
                // A value that is not UTF-8 cannot be part of a subject.
                raw.and_then(|(_, raw)| percent_decode_str(raw).decode_utf8().ok())
                    .into_iter()
                    .collect()
            }
            Variable::Query(name) => request.query_values(name).collect(),
            Variable::Header(name) => request
                .headers
                .get_all(&**name)
                .iter()
                .filter_map(|value| value.to_str().ok().map(Cow::Borrowed))
                .collect(),
            Variable::Cookie(name) => request
                .cookie_value(name)
                .map(Cow::Borrowed)
                .into_iter()
                .collect(),
            Variable::RemoteIp => vec![Cow::Owned(request.remote.to_string())],
            Variable::Claim(path) => self.principal.claim_text(path).into_iter().collect(),
            Variable::SubjectToken(_) => Vec::new(),
        }
    }

    fn claim_list(&self, claim: &ClaimPath) -> Option<Vec<Cow<'_, str>>> {
        self.principal.claim_texts(claim)
    }
}

impl<'r> Request<'r> {
    /// Returns the parts of a request. `path`: the raw values of the path's variables.
    pub(in crate::http) fn new<B>(
        config: &Config,
        caller: &'r Caller,
        request: &'r hyper::Request<B>,
        path: Vec<(&'r str, &'r str)>,
    ) -> Self {
        let headers = request.headers();
        Self {
            path,
            query: request.uri().query().unwrap_or_default(),
            headers,
            remote: client_address(
                caller.peer.remote().ip(),
                headers,
                &config.trusted_proxies,
                config.forwarded_header,
            ),
            certificate: caller.certificate.as_deref(),
        }
    }

    pub(super) fn query_values(&self, name: &str) -> impl Iterator<Item = Cow<'r, str>> {
        form_urlencoded::parse(self.query.as_bytes())
            .filter(move |(known, _)| known == name)
            .map(|(_, value)| value)
    }

    pub(super) fn cookie_value(&self, name: &str) -> Option<&str> {
        let pairs = self
            .headers
            .get_all(COOKIE)
            .iter()
            .filter_map(|value| value.to_str().ok());
        pairs
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value)
    }

    /// Returns the client's last event id. The header wins over the query, because a browser
    /// repeats its first URL on every reconnect.
    ///
    /// In the query it has one of [`LAST_EVENT_ID_NAMES`] or the name that the route adds. The last
    /// of several parameters counts: libraries append their current position to the configured URL.
    pub(in crate::http) fn last_event_id(&self, added: Option<&str>) -> Option<Cow<'_, [u8]>> {
        let header = self
            .headers
            .get("last-event-id")
            .map(|value| Cow::Borrowed(value.as_bytes()));
        header
            .filter(|id| !id.is_empty())
            .or_else(|| self.last_event_id_in_query(added))
    }

    fn last_event_id_in_query(&self, added: Option<&str>) -> Option<Cow<'_, [u8]>> {
        form_urlencoded::parse(self.query.as_bytes())
            .filter(|(name, id)| is_position(name, added) && !id.is_empty())
            .last()
            .map(|(_, id)| Cow::Owned(id.into_owned().into_bytes()))
    }
}

/// Returns whether a query parameter is a position. `added` is the name that the route adds.
pub(super) fn is_position(name: &str, added: Option<&str>) -> bool {
    LAST_EVENT_ID_NAMES.contains(&name) || added == Some(name)
}

/// Query parameters in which client libraries send a position: ours, that of event-source-polyfill
/// and reconnecting-eventsource, and the old and the new one of Mercure.
const LAST_EVENT_ID_NAMES: [&str; 4] = [
    "last_event_id",
    "lastEventId",
    "Last-Event-ID",
    "lastEventID",
];

/// Returns whether the client may be the `EventSource` of a browser, which stops for good after any
/// status but 200.
///
/// An `EventSource` sends `Accept: text/event-stream`, without another framing, and a `User-Agent`
/// that begins with `Mozilla/`. `Sec-Fetch-*` does not help: the `fetch` of Node sends it, browsers omit it over
/// plain HTTP, and old browsers never send it.
pub(in crate::http) fn is_browser(headers: &HeaderMap) -> bool {
    headers
        .get(USER_AGENT)
        .is_some_and(|agent| agent.as_bytes().starts_with(b"Mozilla/"))
        && accepts_by_name(headers, Framing::Sse)
        && !accepts_by_name(headers, Framing::Ndjson)
}

/// Returns whether a media range of `Accept` is the media type of a framing.
fn accepts_by_name(headers: &HeaderMap, framing: Framing) -> bool {
    let is_named = |range: &[u8]| {
        let media_type = range.split(|byte| *byte == b';').next().unwrap_or_default();
        media_type
            .trim_ascii()
            .eq_ignore_ascii_case(framing.media_type().unwrap_or_default().as_bytes())
    };
    headers
        .get_all(ACCEPT)
        .iter()
        .any(|value| value.as_bytes().split(|byte| *byte == b',').any(is_named))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subject::{Bounds, Filter, SubjectTemplate, Unfilled};

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    fn request<'r>(headers: &'r HeaderMap, query: &'r str) -> Request<'r> {
        Request {
            path: vec![("id", "a%20b")],
            query,
            headers,
            remote: [192, 0, 2, 1].into(),
            certificate: None,
        }
    }

    #[test]
    fn variables_are_decoded() {
        let headers = headers(&[("cookie", "a=1; tenant=blue"), ("x-user", "me")]);
        let request = AuthenticatedRequest {
            request: request(&headers, "x=1&x=a%2Eb&y=+"),
            principal: Principal::Anonymous,
        };
        let values = |variable: Variable| request.values(&variable).join("|");
        assert_eq!(values(Variable::Path("id".into())), "a b");
        assert_eq!(values(Variable::Query("x".into())), "1|a.b");
        assert_eq!(values(Variable::Query("y".into())), " ");
        assert_eq!(values(Variable::Cookie("tenant".into())), "blue");
        assert_eq!(values(Variable::Header("x-user".into())), "me");
        assert_eq!(values(Variable::RemoteIp), "192.0.2.1");
        assert_eq!(values(Variable::Query("z".into())), "");
    }

    #[test]
    fn claims_fill_subjects_under_the_rules_of_all_variables() {
        let headers = HeaderMap::new();
        let claims = serde_json::json!({
            "sub": "alice", "tenant": 42, "domain": "a.b", "admin": true, "empty": "",
            "https://example.com/roles": { "first": "reader" },
        });
        let request = AuthenticatedRequest {
            request: request(&headers, ""),
            principal: Principal::with_claims(claims),
        };
        let fill = |text: &str| {
            let unbounded = Bounds::from(&[][..]);
            let filters = SubjectTemplate::parse(text)
                .unwrap()
                .fill(&request, &unbounded)?;
            Ok(filters.iter().map(Filter::to_string).collect::<String>())
        };
        assert_eq!(
            fill(r#"{claim.tenant}.{claim.sub}.{claim["https://example.com/roles"].first}.>"#),
            Ok("42.alice.reader.>".into())
        );
        for missing in ["admin", "none", "sub.name"] {
            let unfilled = fill(&format!("orders.{{claim.{missing}}}")).unwrap_err();
            assert!(
                matches!(&unfilled, Unfilled::Missing(Variable::Claim(path)) if path.to_string() == format!(".{missing}")),
                "{unfilled:?}"
            );
        }
        for invalid in ["domain", "empty"] {
            let unfilled = fill(&format!("orders.{{claim.{invalid}}}")).unwrap_err();
            assert!(matches!(unfilled, Unfilled::Token(_)), "{unfilled:?}");
        }
    }

    #[test]
    fn header_wins_over_the_query_and_an_empty_id_is_ignored() {
        let id = |pairs: &[(&'static str, &str)], query: &str| {
            let headers = headers(pairs);
            request(&headers, query)
                .last_event_id(Some("from"))
                .map(|id| String::from_utf8(id.into_owned()).unwrap())
        };
        for name in [
            "last_event_id",
            "lastEventId",
            "lastEventID",
            "Last-Event-ID",
            "last%5fevent%5fid",
            "from",
        ] {
            assert_eq!(
                id(&[], &format!("a=b&{name}=c%2Dd")),
                Some("c-d".into()),
                "{name}"
            );
        }
        assert_eq!(id(&[], "LASTEVENTID=a&since=b"), None);
        assert_eq!(
            id(&[], "last_event_id=first&x=y&lastEventId=last&lastEventID="),
            Some("last".into())
        );
        assert_eq!(
            id(&[("last-event-id", "a")], "last_event_id=b"),
            Some("a".into())
        );
        assert_eq!(
            id(&[("last-event-id", "")], "last_event_id=b"),
            Some("b".into())
        );
        assert_eq!(id(&[], "last_event_id="), None);
        assert_eq!(id(&[], ""), None);
    }

    #[test]
    fn browser_is_detected_by_accept_and_user_agent() {
        let (browser, node) = ("Mozilla/5.0 (X11; Linux x86_64)", "node");
        for (accept, agent, expected) in [
            ("text/event-stream", browser, true),
            ("Text/Event-Stream;q=0.9, */*", browser, true),
            ("*/*", browser, false),
            ("text/html", browser, false),
            ("text/event-stream", node, false),
            ("text/event-stream", "curl/8 Mozilla/5.0", false),
        ] {
            let all = headers(&[
                ("accept", accept),
                ("user-agent", agent),
                ("sec-fetch-mode", "cors"),
            ]);
            assert_eq!(is_browser(&all), expected, "{accept} {agent}");
        }
        assert!(!is_browser(&headers(&[("user-agent", browser)])));
        assert!(!is_browser(&headers(&[
            ("accept", "text/event-stream"),
            ("sec-fetch-mode", "cors")
        ])));
    }
}
