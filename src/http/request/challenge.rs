//! `WWW-Authenticate` of rejections on routes that authenticate (RFC 6750, section 3).

use hyper::header::HeaderValue;

/// Challenge of RFC 6750, section 3, or of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Challenge {
    /// The request has no credentials: no error is named.
    NoCredentials,
    /// The credentials are invalid, for this reason.
    InvalidToken(&'static str),
    /// The credentials are valid and do not allow the request.
    InsufficientScope,
    /// Values that an authentication endpoint has sent.
    OfEndpoint(Vec<HeaderValue>),
}

impl Challenge {
    /// Returns the values of `WWW-Authenticate`.
    pub(in crate::http) fn values(&self) -> Vec<HeaderValue> {
        match self {
            Self::NoCredentials => vec![NO_CREDENTIALS],
            Self::InsufficientScope => vec![bearer(r#"error="insufficient_scope""#)],
            Self::InvalidToken(reason) => {
                // RFC 6750, section 3: printable ASCII without quotation marks and backslashes.
                let is_valid =
                    |char: &char| matches!(char, ' '..='~') && !matches!(char, '"' | '\\');
                let reason: String = reason.chars().filter(is_valid).collect();
                let error = format!(r#"error="invalid_token", error_description="{reason}""#);
                vec![bearer(&error)]
            }
            Self::OfEndpoint(values) => values.clone(),
        }
    }
}

const NO_CREDENTIALS: HeaderValue = HeaderValue::from_static(r#"Bearer realm="sidestream""#);

fn bearer(error: &str) -> HeaderValue {
    HeaderValue::try_from(format!(r#"Bearer realm="sidestream", {error}"#))
        .unwrap_or(NO_CREDENTIALS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenge_names_an_error_only_if_there_were_credentials() {
        let text = |challenge: Challenge| challenge.values()[0].to_str().unwrap().to_owned();
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
