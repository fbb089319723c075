//! Cross-origin access of browsers: the CORS protocol of the Fetch standard.
//!
//! [`answer`] adds headers to every response of a route, rejections included; [`preflight`] answers
//! OPTIONS. The allowed origins are those of the route's `cors.origins`.

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_MAX_AGE, HeaderValue, ORIGIN, VARY,
};

use crate::http::config::CorsConfig;
use crate::subject::Variable;

/// Headers that fetch-based clients send in addition to the CORS-safelisted ones.
const REQUEST_HEADERS: &str = "last-event-id, authorization, cache-control, content-type, accept";

/// Returns the request headers that a route allows: those of all clients, and those that its
/// templates read.
pub(in crate::http) fn request_headers<'v>(
    variables: impl Iterator<Item = &'v Variable>,
) -> HeaderValue {
    let mut names: Vec<&str> = REQUEST_HEADERS.split(", ").collect();
    for variable in variables {
        if let Variable::Header(name) = variable
            && !names.contains(&&**name)
        {
            names.push(name);
        }
    }
    // Header names in templates consist of letters, digits, `-` and `_`.
    HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static(REQUEST_HEADERS))
}

/// One day in seconds; browsers lower it to their own maximum.
const MAX_AGE: &str = "86400";

/// Adds the headers for a request of this origin. Rejections need them too: without them a browser
/// hides the status from the page.
pub(in crate::http) fn answer(config: &CorsConfig, request: &HeaderMap, response: &mut HeaderMap) {
    if config.origins.is_empty() {
        return;
    }
    if config.origins.iter().any(|origin| origin == "*") {
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        return;
    }
    // Caches must not serve the answer for one origin to another, even if no origin was allowed.
    response.append(VARY, HeaderValue::from_static("origin"));
    let Some(origin) = request.get(ORIGIN) else {
        return;
    };
    if config
        .origins
        .iter()
        .any(|allowed| allowed.as_bytes() == origin.as_bytes())
    {
        response.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if config.credentials {
            response.insert(
                ACCESS_CONTROL_ALLOW_CREDENTIALS,
                HeaderValue::from_static("true"),
            );
        }
    }
}

/// Adds the headers of a preflight response if the origin is allowed. `methods` and `allowed`: those
/// of the path, and its request headers.
pub(in crate::http) fn preflight(
    config: &CorsConfig,
    methods: HeaderValue,
    allowed: &HeaderValue,
    request: &HeaderMap,
    response: &mut HeaderMap,
) {
    answer(config, request, response);
    if response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
        response.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        response.insert(ACCESS_CONTROL_ALLOW_HEADERS, allowed.clone());
        response.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    }
}

/// Adds the headers of a preflight response if one of several routes allows the origin, with the
/// request headers of all routes that do. `routes`: their settings and request headers.
pub(in crate::http) fn preflight_of_any<'r>(
    routes: impl Iterator<Item = (&'r CorsConfig, &'r HeaderValue)>,
    methods: HeaderValue,
    more: &[&'r str],
    request: &HeaderMap,
    response: &mut HeaderMap,
) {
    let mut names = more.to_vec();
    for (config, headers) in routes {
        let mut allowed = HeaderMap::new();
        answer(config, request, &mut allowed);
        if !allowed.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            continue;
        }
        let headers = headers.to_str().unwrap_or_default().split(", ");
        for name in headers {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        // A route with credentials names the origin, which serves a route without them, too.
        let has_credentials = allowed.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS);
        if has_credentials || !response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            response.extend(allowed);
        }
    }
    response.insert(VARY, HeaderValue::from_static("origin"));
    if response.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN)
        && let Ok(names) = HeaderValue::from_str(&names.join(", "))
    {
        response.insert(ACCESS_CONTROL_ALLOW_METHODS, methods);
        response.insert(ACCESS_CONTROL_ALLOW_HEADERS, names);
        response.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(
        origins: &[&str],
        credentials: bool,
        origin: &'static str,
    ) -> (Option<String>, bool, bool) {
        let config = CorsConfig {
            origins: origins.iter().map(ToString::to_string).collect(),
            credentials,
        };
        let request = HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
        let mut response = HeaderMap::new();
        preflight(
            &config,
            HeaderValue::from_static("GET, HEAD"),
            &request_headers(std::iter::empty()),
            &request,
            &mut response,
        );
        let origin = response
            .get(ACCESS_CONTROL_ALLOW_ORIGIN)
            .map(|value| value.to_str().unwrap().to_owned());
        (
            origin,
            response.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS),
            response.contains_key(VARY),
        )
    }

    #[test]
    fn preflight_for_several_routes_is_allowed_by_one_of_them() {
        let config = |origin: &str, credentials| CorsConfig {
            origins: vec![origin.to_owned()],
            credentials,
        };
        let routes = [
            config("*", false),
            config("https://app.example", true),
            config("https://other.example", false),
        ];
        let headers = ["x-a", "x-b", "x-c"].map(HeaderValue::from_static);
        let request = |origin| HeaderMap::from_iter([(ORIGIN, HeaderValue::from_static(origin))]);
        let preflight = |routes: &[CorsConfig], origin: &'static str| {
            let mut response = HeaderMap::new();
            let routes = routes.iter().zip(&headers);
            let methods = HeaderValue::from_static("POST");
            preflight_of_any(routes, methods, &["x-a"], &request(origin), &mut response);
            let value = |name| {
                let value: Option<&HeaderValue> = response.get(name);
                value.map(|value| value.to_str().unwrap().to_owned())
            };
            (
                value(ACCESS_CONTROL_ALLOW_ORIGIN),
                value(ACCESS_CONTROL_ALLOW_HEADERS),
                value(ACCESS_CONTROL_ALLOW_CREDENTIALS),
            )
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            preflight(&routes, "https://app.example"),
            (some("https://app.example"), some("x-a, x-b"), some("true"))
        );
        assert_eq!(
            preflight(&routes, "https://any.example"),
            (some("*"), some("x-a"), None)
        );
        assert_eq!(
            preflight(&routes[1..], "https://any.example"),
            (None, None, None)
        );
    }

    #[test]
    fn origin_is_allowed_by_its_exact_name_or_by_a_star() {
        let app = "https://app.example";
        assert_eq!(
            allowed(&[app], true, "https://app.example"),
            (Some(app.into()), true, true)
        );
        assert_eq!(
            allowed(&[app], true, "https://app.example.evil"),
            (None, false, true)
        );
        assert_eq!(
            allowed(&[app], false, "http://app.example"),
            (None, false, true)
        );
        assert_eq!(
            allowed(&["*"], false, "https://any.example"),
            (Some("*".into()), false, false)
        );
        assert_eq!(
            allowed(&[], false, "https://any.example"),
            (None, false, false)
        );
    }
}
