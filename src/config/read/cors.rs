//! Reads `cors:` of a route: the other origins that a browser may read it from.

use super::super::walk::Place;
use crate::http::config::CorsConfig;

pub(super) fn cors(place: &Place<'_>) -> Option<CorsConfig> {
    place.map(|keys| {
        let default = CorsConfig::default();
        let origins = keys.or("origins", default.origins, |place| place.list(origin));
        let credentials = keys.or("credentials", default.credentials, Place::boolean);
        let any = origins.iter().any(|origin| origin == "*");
        if any && origins.len() > 1 {
            keys.problem("origins", "`*` stands alone: it is every origin", None);
        }
        if any && credentials {
            // Fetch, CORS protocol: a browser refuses the answer.
            keys.problem(
                "credentials",
                "`credentials` does not go with the origin `*`",
                Some("name the origins"),
            );
        }
        Some(CorsConfig {
            origins,
            credentials,
        })
    })
}

fn origin(place: &Place<'_>) -> Option<String> {
    place.parsed("an origin", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let sound = host.is_some_and(|host| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@*".contains(&byte))
        });
        if sound || text == "*" {
            Ok(text.to_owned())
        } else {
            Err("an origin is written as a browser sends it: `https://app.example.com`, in lower case, without a slash at its end; or `*`")
        }
    })
}
