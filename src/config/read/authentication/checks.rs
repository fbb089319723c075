//! Checks that several kinds of providers share.

use hyper::Uri;

use crate::auth::config::is_loopback;
use crate::config::reader::map::MapReader;

/// Reports that a map has none of several keys, or more than one.
pub(super) fn report_unless_one(keys: &MapReader<'_>, present: &[&str], none: &str, hint: &str) {
    match present {
        [] => keys.map_error(none, Some(hint)),
        [_] => {}
        [first, others @ ..] => {
            for other in others {
                let message = format!("`{other}` and `{first}` are both set");
                keys.error(other, message, Some(hint));
            }
        }
    }
}

/// Returns whether others on the path can read and change what is sent to a URL.
pub(super) fn is_unprotected(url: &Uri) -> bool {
    url.scheme_str() == Some("http") && !is_loopback(url)
}

/// Returns whether a text is a token of RFC 9110, which every client can send as a name.
pub(super) fn is_token(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
