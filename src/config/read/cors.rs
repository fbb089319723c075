//! Reads `cors:` of a route: the origins whose pages may read it in a browser.

use crate::config::reader::ValueReader;
use crate::http::config::CorsConfig;

pub(super) fn cors(value: &ValueReader<'_>) -> Option<CorsConfig> {
    value.map(|keys| {
        let default = CorsConfig::default();
        let origins = keys.get_or("origins", default.origins, |value| value.list(origin));
        let credentials = keys.get_or("credentials", default.credentials, ValueReader::boolean);
        let any = origins.iter().any(|origin| origin == "*");
        if any && origins.len() > 1 {
            keys.error("origins", "`*` is every origin: write it alone", None);
        }
        if any && credentials {
            // Fetch, CORS protocol: browsers reject such a response.
            keys.error(
                "credentials",
                "`credentials` cannot be combined with the origin `*`",
                Some("name the origins"),
            );
        }
        Some(CorsConfig {
            origins,
            credentials,
        })
    })
}

fn origin(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("an origin", |text| {
        let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
        let is_valid = host.is_some_and(|host| {
            !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && !b"/?#@*".contains(&byte))
        });
        if is_valid || text == "*" {
            Ok(text.to_owned())
        } else {
            Err("an origin is written as a browser sends it: `https://app.example.com`, in lower case, without a slash at its end; or `*`")
        }
    })
}
