//! Beginning of the event stream of a client without an id: `?since=`, `?last=`, or as the route says.
//!
//! A position of the client always wins: a browser repeats its first URL on every reconnect, with the
//! id of its last event. The parameters are then not read at all. Without `begin_by_client` on the
//! route they are parameters like any other.

use std::num::NonZeroU64;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::rejection::Rejection;
use super::rejection_code::RejectionCode;
use super::request::Request;
use crate::feed::Begin;
use crate::http::config::{BeginByClient, LAST_QUERY, RouteBegin, RouteConfig, SINCE_QUERY};
use crate::http::stream::event_stream::opening::Beginning;

/// Returns where the event stream of a request without an id begins.
///
/// # Errors
/// [`RejectionCode::BadBegin`] for a value that cannot be read, [`RejectionCode::BeginOutOfRange`]
/// for one that the route does not allow.
pub(in crate::http) fn beginning(
    route: &RouteConfig,
    request: &Request<'_>,
    now: SystemTime,
) -> Result<Beginning, Rejection> {
    let of_route = Beginning {
        begin: match route.begin {
            RouteBegin::Live => None,
            RouteBegin::First => Some(Begin::First),
            RouteBegin::Latest => Some(Begin::Latest),
        },
        is_cut: false,
    };
    let Some(bounds) = &route.begin_by_client else {
        return Ok(of_route);
    };
    let mut asked = request
        .query_values(SINCE_QUERY)
        .map(|value| (SINCE_QUERY, value))
        .chain(
            request
                .query_values(LAST_QUERY)
                .map(|value| (LAST_QUERY, value)),
        );
    let Some((name, value)) = asked.next() else {
        return Ok(of_route);
    };
    if asked.next().is_some() {
        return Err(bad("only one of `since` and `last`, once"));
    }
    match name {
        SINCE_QUERY => since(&value, bounds, now),
        _ => last(&value, bounds),
    }
}

fn since(value: &str, bounds: &BeginByClient, now: SystemTime) -> Result<Beginning, Rejection> {
    let oldest = now - bounds.max_age;
    if let Some(ago) = duration(value) {
        if ago > bounds.max_age {
            let most = bounds.max_age.as_secs_f64();
            return Err(out_of_range(format!("`since` is at most {most} s ago")));
        }
        return Ok(Beginning {
            begin: Some(Begin::Since(now - ago)),
            is_cut: false,
        });
    }
    let time = OffsetDateTime::parse(value, &Rfc3339)
        .map_err(|_| bad("`since` is neither a time nor a duration"))?;
    let time = SystemTime::from(time);
    Ok(Beginning {
        begin: Some(Begin::Since(time.max(oldest))),
        is_cut: time < oldest,
    })
}

fn last(value: &str, bounds: &BeginByClient) -> Result<Beginning, Rejection> {
    let is_number = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number {
        return Err(bad("`last` is not a number"));
    }
    // A number that does not fit is above every bound.
    let count = value.parse().unwrap_or(u64::MAX);
    if count > bounds.max_events {
        let most = bounds.max_events;
        return Err(out_of_range(format!("`last` is at most {most}")));
    }
    Ok(Beginning {
        // The last 0 events: with the next one.
        begin: NonZeroU64::new(count).map(Begin::Last),
        is_cut: false,
    })
}

/// Parses a whole number with `ms`, `s`, `m` or `h`, as in the configuration.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    if number.is_empty() {
        return None;
    }
    // A number that does not fit is above every bound.
    let number: u64 = number.parse().unwrap_or(u64::MAX);
    Some(Duration::from_millis(number.saturating_mul(factor)))
}

fn bad(message: &str) -> Rejection {
    Rejection::new(RejectionCode::BadBegin, message.to_owned())
}

fn out_of_range(message: String) -> Rejection {
    Rejection::new(RejectionCode::BeginOutOfRange, message)
}

#[cfg(test)]
mod tests {
    use hyper::HeaderMap;

    use super::*;
    use crate::http::config::PathTemplate;

    const NOW: Duration = Duration::from_secs(1_795_946_400); // 2026-11-29T10:00:00Z

    fn route(bounds: Option<BeginByClient>, begin: RouteBegin) -> RouteConfig {
        RouteConfig {
            begin,
            begin_by_client: bounds,
            ..RouteConfig::new(PathTemplate::parse("/events").unwrap(), Vec::new())
        }
    }

    fn ask(route: &RouteConfig, query: &str) -> Result<Beginning, &'static str> {
        let headers = HeaderMap::new();
        let request = Request {
            path: Vec::new(),
            query,
            headers: &headers,
            remote: [192, 0, 2, 1].into(),
            certificate: None,
        };
        beginning(route, &request, SystemTime::UNIX_EPOCH + NOW)
            .map_err(|rejection| rejection.code.row().code)
    }

    fn at(seconds_ago: u64) -> Option<Begin> {
        let time = SystemTime::UNIX_EPOCH + NOW - Duration::from_secs(seconds_ago);
        Some(Begin::Since(time))
    }

    #[test]
    fn beginning_is_read_from_the_query_within_the_bounds_of_the_route() {
        let bounds = BeginByClient {
            max_age: Duration::from_secs(3600),
            max_events: 1000,
        };
        let route = route(Some(bounds), RouteBegin::Live);
        let begins = |query: &str| ask(&route, query).map(|beginning| beginning.begin);
        assert_eq!(begins(""), Ok(None));
        assert_eq!(begins("since=5m"), Ok(at(300)));
        assert_eq!(begins("since=1h"), Ok(at(3600)));
        assert_eq!(begins("since=0s&x=1"), Ok(at(0)));
        assert_eq!(begins("since=2026-11-29T09:59:00Z"), Ok(at(60)));
        assert_eq!(begins("since=2026-11-29T10:59:00%2B01:00"), Ok(at(60)));
        assert_eq!(begins("last=50"), Ok(NonZeroU64::new(50).map(Begin::Last)));
        assert_eq!(begins("last=0"), Ok(None));
        for query in [
            "since=",
            "since=5",
            "since=m",
            "since=-5m",
            "since=1d",
            "since=yesterday",
            "since=2026-11-29",
            "last=",
            "last=-1",
            "last=1.5",
            "last=x",
            "last=1&last=1",
            "since=5m&last=1",
        ] {
            assert_eq!(ask(&route, query), Err("bad_begin"), "{query}");
        }
        for query in [
            "since=61m",
            "since=99999999999999999999h",
            "last=1001",
            "last=99999999999999999999",
        ] {
            assert_eq!(ask(&route, query), Err("begin_out_of_range"), "{query}");
        }
    }

    #[test]
    fn time_before_the_bound_begins_at_the_bound_and_is_cut() {
        let bounds = BeginByClient {
            max_age: Duration::from_secs(3600),
            max_events: 1000,
        };
        let route = route(Some(bounds), RouteBegin::First);
        let cut = Beginning {
            begin: at(3600),
            is_cut: true,
        };
        assert_eq!(ask(&route, "since=2026-11-29T08:00:00Z"), Ok(cut));
        assert_eq!(ask(&route, "").map(|one| one.begin), Ok(Some(Begin::First)));
    }

    #[test]
    fn parameters_mean_nothing_without_begin_by_client() {
        let route = route(None, RouteBegin::First);
        for query in ["since=x", "last=x", "last=5"] {
            let beginning = ask(&route, query).unwrap();
            assert_eq!(beginning.begin, Some(Begin::First), "{query}");
        }
    }
}
