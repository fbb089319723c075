//! URL of an event stream: parsing, encoding, and the redirects that are allowed.

use hyper::Uri;

/// An `http` or `https` URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) struct Target {
    uri: Uri,
    /// Without the brackets of an IPv6 address.
    pub(in crate::cli) host: String,
    pub(in crate::cli) port: u16,
    pub(in crate::cli) tls: bool,
}

impl Target {
    /// Parses a typed URL. Characters that a URL may not contain (`>` in a subject) are encoded.
    ///
    /// # Errors
    /// A message for the user.
    pub(in crate::cli) fn parse(text: &str) -> Result<Self, String> {
        // The fragment is never sent to a server.
        let text = text.split('#').next().unwrap_or_default();
        let tls = match text
            .trim()
            .split_once("://")
            .map(|(scheme, _)| scheme.to_ascii_lowercase())
            .as_deref()
        {
            Some("http") => false,
            Some("https") => true,
            _ => {
                return Err(format!(
                    "{text}: the URL of an event stream begins with http:// or https://"
                ));
            }
        };
        let uri: Uri = encoded(text)
            .parse()
            .map_err(|error| format!("{text}: {error}"))?;
        let host = uri
            .host()
            .unwrap_or_default()
            .trim_matches(['[', ']'])
            .to_owned();
        if host.is_empty() {
            return Err(format!("{text}: a host is missing"));
        }
        if uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'))
        {
            return Err(
                "a user name in a URL is not sent to any server: use --header 'Authorization: ...'"
                    .into(),
            );
        }
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self {
            uri,
            host,
            port,
            tls,
        })
    }

    /// The whole URL: the request target of HTTP/2.
    pub(in crate::cli) fn uri(&self) -> &Uri {
        &self.uri
    }

    /// The request target of HTTP/1.1.
    pub(in crate::cli) fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }

    /// The `Host` header.
    pub(in crate::cli) fn authority(&self) -> &str {
        self.uri
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    /// Resolves a redirect from this URL to `location`.
    ///
    /// # Errors
    /// A message for the user, also if the redirect leads to another host or from TLS to clear
    /// text: the headers may contain a secret.
    pub(in crate::cli) fn redirected(&self, location: &str) -> Result<Self, String> {
        let next = Self::parse(&self.resolve(location))?;
        let upgraded = next.tls && !self.tls && self.port == 80 && next.port == 443;
        let same = next.host.eq_ignore_ascii_case(&self.host)
            && (next.port == self.port && next.tls == self.tls || upgraded);
        if same {
            Ok(next)
        } else {
            Err(format!(
                "the server redirects to another host or port: {}",
                next.uri
            ))
        }
    }

    /// RFC 3986, section 5.2, without the removal of dot segments, which is left to the server.
    fn resolve(&self, location: &str) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        let authority = self.authority();
        let path = self.uri.path();
        if location.contains("://") {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.starts_with('?') {
            format!("{scheme}://{authority}{path}{location}")
        } else {
            let folder = path.rfind('/').map_or("/", |end| &path[..=end]);
            format!("{scheme}://{authority}{folder}{location}")
        }
    }
}

/// Percent-encodes characters that are invalid in a URL; everything else, `%` included, is
/// unchanged.
fn encoded(text: &str) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.trim().bytes() {
        match byte {
            0..=b' ' | b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' | 0x7F.. => {
                url.push_str(&format!("%{byte:02X}"));
            }
            _ => url.push(char::from(byte)),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        Target::parse(text).unwrap()
    }

    #[test]
    fn typed_url_is_parsed_and_encoded() {
        let typed = target("http://localhost:8080/events?subject=demo.>&subject=größe#top");
        assert_eq!(
            (typed.host.as_str(), typed.port, typed.tls),
            ("localhost", 8080, false)
        );
        assert_eq!(
            typed.path_and_query(),
            "/events?subject=demo.%3E&subject=gr%C3%B6%C3%9Fe"
        );
        assert_eq!(typed.authority(), "localhost:8080");
        assert_eq!(target("https://pod.example").port, 443);
        assert_eq!(target("http://[::1]/x").host, "::1");
        assert_eq!(
            target("http://h/a%20b").path_and_query(),
            "/a%20b",
            "encoded characters are not encoded twice"
        );
    }

    #[test]
    fn invalid_url_is_rejected_with_a_reason() {
        for (text, reason) in [
            ("localhost:8080/events", "begins with http://"),
            ("/events", "begins with http://"),
            ("ftp://h/x", "begins with http://"),
            ("http://user:secret@h/", "--header"),
        ] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn redirect_within_the_host_is_resolved() {
        let here = target("http://h:81/a/b?c");
        for (location, url) in [
            ("/x?y", "http://h:81/x?y"),
            ("x", "http://h:81/a/x"),
            ("?d", "http://h:81/a/b?d"),
            ("//H:81/z", "http://H:81/z"),
            ("http://h:81/", "http://h:81/"),
        ] {
            assert_eq!(here.redirected(location).unwrap().uri().to_string(), url);
        }
        assert!(
            target("http://h/").redirected("https://h/").is_ok(),
            "to TLS on the usual ports"
        );
    }

    #[test]
    fn redirect_to_another_host_or_port_or_out_of_tls_is_rejected() {
        for (from, to) in [
            ("http://h/", "http://g/"),
            ("http://h/", "http://h:81/"),
            ("https://h/", "http://h/"),
            ("http://h/", "//g"),
        ] {
            let error = target(from).redirected(to).unwrap_err();
            assert!(error.contains("another host"), "{error}");
        }
    }
}
