//! Settings of the application (`application:` in the configuration).

use std::time::Duration;

/// Application that receives the requests for paths without a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApplicationConfig {
    /// Host and port.
    pub authority: Box<str>,
    /// HTTP version that it speaks.
    pub version: ApplicationVersion,
    /// Time for a TCP connection.
    pub connect_timeout: Duration,
    /// Time without progress until the head of the response.
    pub response_timeout: Duration,
    /// Time after which an unused connection is closed.
    pub idle_timeout: Duration,
    /// Maximum number of requests in progress.
    pub connections: usize,
    /// Cache of responses that the application marks cacheable.
    pub cache: CacheConfig,
}

/// Bounds of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Maximum of bytes over all responses, heads included; 0: no cache.
    pub bytes: usize,
    /// Maximum of bytes of one response.
    pub object_bytes: usize,
}

impl Default for CacheConfig {
    /// 64 MiB for the pages, scripts and images of an application; 4 MiB keeps one large download
    /// from evicting all of them.
    fn default() -> Self {
        Self {
            bytes: 64 << 20,
            object_bytes: 4 << 20,
        }
    }
}

/// HTTP version of the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApplicationVersion {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 in clear text, with prior knowledge.
    H2c,
}

impl ApplicationVersion {
    /// Returns the scheme of an address.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Http1 => "http",
            Self::H2c => "h2c",
        }
    }
}

impl ApplicationConfig {
    /// 256 requests: several times the workers of common application servers.
    pub const CONNECTIONS: usize = 256;

    /// Returns an application at this address, with all defaults.
    #[must_use]
    pub fn new(authority: Box<str>, version: ApplicationVersion) -> Self {
        Self {
            authority,
            version,
            // It runs in the same pod: a second is much.
            connect_timeout: Duration::from_secs(1),
            response_timeout: Duration::from_secs(60),
            // 90 s: below the keep-alive of Go (none) and above a page that polls every minute.
            idle_timeout: Duration::from_secs(90),
            connections: Self::CONNECTIONS,
            cache: CacheConfig::default(),
        }
    }

    /// Returns host and port for a TCP connection; the port is 80 if the address has none.
    #[must_use]
    pub fn socket_address(&self) -> String {
        match self.authority.rsplit_once(':') {
            Some((_, port)) if !port.ends_with(']') => self.authority.to_string(),
            _ => format!("{}:80", self.authority),
        }
    }

    /// Parses an address such as `http://127.0.0.1:3000`.
    ///
    /// # Errors
    /// Returns a sentence about the text.
    pub fn parse_address(text: &str) -> Result<(Box<str>, ApplicationVersion), &'static str> {
        const FORM: &str =
            "an address is written as `http://127.0.0.1:3000` or `h2c://127.0.0.1:3000`";
        let (scheme, rest) = text.split_once("://").ok_or(FORM)?;
        let version = match scheme {
            "http" => ApplicationVersion::Http1,
            "h2c" => ApplicationVersion::H2c,
            "https" => return Err("the application is beside the sidecar: use `http://`"),
            _ => return Err(FORM),
        };
        let authority = rest.strip_suffix('/').unwrap_or(rest);
        let parsed: hyper::http::uri::Authority = authority.parse().map_err(|_| FORM)?;
        if parsed.host().is_empty() || authority.contains('@') {
            return Err(FORM);
        }
        Ok((authority.into(), version))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_is_80_without_one() {
        for (authority, expected) in [
            ("app", "app:80"),
            ("app:3000", "app:3000"),
            ("[::1]", "[::1]:80"),
            ("[::1]:3000", "[::1]:3000"),
        ] {
            let config = ApplicationConfig::new(authority.into(), ApplicationVersion::Http1);
            assert_eq!(config.socket_address(), expected);
        }
    }

    #[test]
    fn address_has_a_scheme_a_host_and_perhaps_a_port() {
        for (text, expected) in [
            (
                "http://127.0.0.1:3000",
                Some(("127.0.0.1:3000", ApplicationVersion::Http1)),
            ),
            ("http://app/", Some(("app", ApplicationVersion::Http1))),
            (
                "h2c://[::1]:80",
                Some(("[::1]:80", ApplicationVersion::H2c)),
            ),
            ("127.0.0.1:3000", None),
            ("https://app", None),
            ("http://", None),
            ("http://me@app", None),
            ("http://app/path", None),
            ("unix:///run/app", None),
        ] {
            let parsed = ApplicationConfig::parse_address(text).ok();
            let parsed = parsed
                .as_ref()
                .map(|(authority, version)| (&**authority, *version));
            assert_eq!(parsed, expected, "{text}");
        }
    }
}
