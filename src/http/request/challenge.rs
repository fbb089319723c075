//! `WWW-Authenticate` of rejections on routes that authenticate (RFC 6750, section 3).

use hyper::header::HeaderValue;

/// Challenge of RFC 6750, section 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::http) enum Challenge {
    /// The request has no credentials: no error is named.
    NoCredentials,
    /// The credentials are invalid, for this reason.
    InvalidToken(&'static str),
    /// The credentials are valid and do not allow the request.
    InsufficientScope,
}

impl Challenge {
    /// Returns the value of `WWW-Authenticate`.
    pub(in crate::http) fn value(self) -> HeaderValue {
        const NO_CREDENTIALS: HeaderValue =
            HeaderValue::from_static(r#"Bearer realm="sidestream""#);
        let error = match self {
            Self::NoCredentials => return NO_CREDENTIALS,
            Self::InsufficientScope => r#"error="insufficient_scope""#.to_owned(),
            Self::InvalidToken(reason) => {
                // RFC 6750, section 3: printable ASCII without quotation marks and backslashes.
                let is_valid =
                    |char: &char| matches!(char, ' '..='~') && !matches!(char, '"' | '\\');
                let reason: String = reason.chars().filter(is_valid).collect();
                format!(r#"error="invalid_token", error_description="{reason}""#)
            }
        };
        HeaderValue::try_from(format!(r#"Bearer realm="sidestream", {error}"#))
            .unwrap_or(NO_CREDENTIALS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_names_an_error_only_if_there_were_credentials() {
        let text = |challenge: Challenge| challenge.value().to_str().unwrap().to_owned();
        assert_eq!(
            text(Challenge::NoCredentials),
            r#"Bearer realm="sidestream""#
        );
        assert_eq!(
            text(Challenge::InvalidToken("the token has \"expired\"")),
            r#"Bearer realm="sidestream", error="invalid_token", error_description="the token has expired""#
        );
        assert_eq!(
            text(Challenge::InsufficientScope),
            r#"Bearer realm="sidestream", error="insufficient_scope""#
        );
    }
}
