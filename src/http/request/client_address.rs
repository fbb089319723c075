//! Client address: the peer of the connection, or the address that trusted proxies forward.
//!
//! Each proxy appends the address of its own peer to `X-Forwarded-For` or `Forwarded`, so the
//! header is read from the right. The first element is written by our peer and believed if the peer
//! is trusted; the next one is believed if the first element is the address of a trusted proxy, and
//! so on. The walk stops at the first address that is not trusted, which is the client, and at the
//! first element that is not an address. Everything further left could be forged by the client.
//!
//! Only the configured header is read (`trusted_proxies` and `forwarded_header`). A proxy maintains
//! one of the two and forwards the other one as the client wrote it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::HeaderMap;
use hyper::header::FORWARDED;
use ipnet::IpNet;

use crate::http::config::ForwardedHeader;

/// Returns the address of the client of a request that arrived from `peer`.
pub(in crate::http) fn client_address(
    peer: IpAddr,
    headers: &HeaderMap,
    trusted: &[IpNet],
    header: ForwardedHeader,
) -> IpAddr {
    let mut client = peer.to_canonical();
    let name = match header {
        ForwardedHeader::XForwardedFor => "x-forwarded-for",
        ForwardedHeader::Forwarded => FORWARDED.as_str(),
    };
    // Several header lines are one list, in their order (RFC 9110, 5.3).
    for line in headers.get_all(name).iter().rev() {
        let mut elements = Elements::of(line.as_bytes());
        loop {
            if !is_trusted(client, trusted) {
                return client;
            }
            let Some(element) = elements.next() else {
                break;
            };
            let parsed = match header {
                ForwardedHeader::XForwardedFor => element.and_then(x_forwarded_for),
                ForwardedHeader::Forwarded => element.and_then(forwarded),
            };
            match parsed {
                Some(address) => client = address,
                None => return client,
            }
        }
    }
    client
}

/// Returns whether an address is one of a trusted proxy.
pub(in crate::http) fn is_trusted(address: IpAddr, trusted: &[IpNet]) -> bool {
    let address = address.to_canonical();
    trusted.iter().any(|network| network.contains(&address))
}

/// Returns the last element of a list.
pub(super) fn last_element(list: &[u8]) -> Option<&str> {
    Elements::of(list).next()?
}

/// Returns the value of a parameter of an element of `Forwarded`. `None` if it has several.
pub(super) fn only_parameter<'e>(element: &'e str, name: &str) -> Option<&'e str> {
    let mut found = None;
    for parameter in Elements::parameters(element.as_bytes()) {
        let Some((known, value)) = parameter?.split_once('=') else {
            continue;
        };
        if known.trim_end().eq_ignore_ascii_case(name) && found.replace(value).is_some() {
            return None;
        }
    }
    unquote(found?.trim_start())
}

/// Parts of a list, from the right. Separators within quotes do not separate (RFC 9110, 5.6.4).
///
/// The client writes the left end of the list. Reading from the right, a quote that the client
/// opens and does not close cannot change how the element of a trusted proxy is read.
struct Elements<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Elements<'a> {
    fn of(list: &'a [u8]) -> Self {
        Self {
            rest: Some(list),
            separator: b',',
        }
    }

    fn parameters(element: &'a [u8]) -> Self {
        Self {
            rest: Some(element),
            separator: b';',
        }
    }
}

impl<'a> Iterator for Elements<'a> {
    /// `None`: an element with an unbalanced quote.
    type Item = Option<&'a str>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.rest.take()?;
        let mut is_quoted = false;
        let mut at = rest.len();
        while at > 0 {
            at -= 1;
            match rest[at] {
                b'"' => {
                    let escapes = rest[..at]
                        .iter()
                        .rev()
                        .take_while(|byte| **byte == b'\\')
                        .count();
                    match (is_quoted, escapes % 2 == 1) {
                        // Part of the quoted text.
                        (true, true) => {}
                        (false, true) => return Some(None),
                        (_, false) => is_quoted = !is_quoted,
                    }
                    at -= escapes;
                }
                byte if byte == self.separator && !is_quoted => {
                    self.rest = Some(&rest[..at]);
                    return Some(std::str::from_utf8(&rest[at + 1..]).ok().map(str::trim));
                }
                _ => {}
            }
        }
        Some(
            std::str::from_utf8(rest)
                .ok()
                .map(str::trim)
                .filter(|_| !is_quoted),
        )
    }
}

/// Parses an element of `X-Forwarded-For`: an address with or without a port. Some proxies quote it
/// as in `Forwarded`.
fn x_forwarded_for(element: &str) -> Option<IpAddr> {
    node(unquote(element)?)
}

/// Parses an element of `Forwarded` (RFC 7239, 4): the address in its only `for` parameter.
fn forwarded(element: &str) -> Option<IpAddr> {
    let mut named = None;
    for parameter in Elements::parameters(element.as_bytes()) {
        let parameter = parameter?;
        if parameter.is_empty() {
            continue;
        }
        let (name, value) = parameter.split_once('=')?;
        if name.trim_end().eq_ignore_ascii_case("for") && named.replace(value).is_some() {
            return None;
        }
    }
    node(unquote(named?.trim_start())?)
}

/// Returns the text within quotes, or the text itself if it has no quotes.
fn unquote(text: &str) -> Option<&str> {
    let inner = match text.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => text,
    };
    (!inner.contains(['"', '\\'])).then_some(inner)
}

/// Parses `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`. The
/// port may be obfuscated (RFC 7239, 6). Returns `None` for `unknown` and obfuscated names, which
/// are not addresses.
fn node(text: &str) -> Option<IpAddr> {
    let (address, port): (IpAddr, Option<&str>) = match text.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']')?;
            let port = if after.is_empty() {
                None
            } else {
                Some(after.strip_prefix(':')?)
            };
            (address.parse::<Ipv6Addr>().ok()?.into(), port)
        }
        // An IPv6 address without brackets has no port.
        None if text.matches(':').count() > 1 => (text.parse::<Ipv6Addr>().ok()?.into(), None),
        None => {
            let (address, port) = text
                .split_once(':')
                .map_or((text, None), |(address, port)| (address, Some(port)));
            (address.parse::<Ipv4Addr>().ok()?.into(), port)
        }
    };
    port.is_none_or(is_port).then(|| address.to_canonical())
}

fn is_port(text: &str) -> bool {
    match text.strip_prefix('_') {
        Some(name) => {
            !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        }
        None => text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1";

    /// Returns the client address of a request from a trusted proxy with these header lines.
    fn found(header: ForwardedHeader, lines: &[(&'static str, &str)]) -> String {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(
                *name,
                hyper::header::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
        }
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        client_address(PROXY.parse().unwrap(), &headers, &trusted, header).to_string()
    }

    fn x_forwarded_for_is(lines: &[&str]) -> String {
        let lines: Vec<_> = lines
            .iter()
            .map(|line| ("x-forwarded-for", *line))
            .collect();
        found(ForwardedHeader::XForwardedFor, &lines)
    }

    fn forwarded_is(lines: &[&str]) -> String {
        let lines: Vec<_> = lines.iter().map(|line| ("forwarded", *line)).collect();
        found(ForwardedHeader::Forwarded, &lines)
    }

    /// The client's address is 192.0.2.7 or 2001:db8::7 in each row; the client has forged 6.6.6.6.
    #[test]
    fn x_forwarded_for_is_read_from_the_right_in_every_form() {
        for (lines, client) in [
            (&["192.0.2.7"][..], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6,192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 6.6.6.6", "192.0.2.7, 10.0.0.9"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7, 10.0.0.9, fd00::1"], "192.0.2.7"),
            (&["6.6.6.6, 192.0.2.7:1234"], "192.0.2.7"),
            (&["6.6.6.6, \"192.0.2.7:1234\""], "192.0.2.7"),
            (&["6.6.6.6, ::ffff:192.0.2.7"], "192.0.2.7"),
            (&["6.6.6.6, 2001:db8::7"], "2001:db8::7"),
            (&["6.6.6.6, [2001:db8::7]"], "2001:db8::7"),
            (&["6.6.6.6, [2001:db8::7]:443"], "2001:db8::7"),
            (&["6.6.6.6, \"[2001:db8::7]:443\""], "2001:db8::7"),
            (&["6.6.6.6, [2001:db8::7]:443, [fd00::1]:80"], "2001:db8::7"),
            (&["\", 192.0.2.7"], "192.0.2.7"),
            (&["\"6.6.6.6, 192.0.2.7"], "192.0.2.7"),
            (&["\u{fc}, 192.0.2.7"], "192.0.2.7"),
            (&["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
            (&["10.0.0.2"], "10.0.0.2"),
        ] {
            assert_eq!(x_forwarded_for_is(lines), client, "{lines:?}");
        }
    }

    #[test]
    fn invalid_element_ends_the_walk_at_the_last_known_proxy() {
        for element in [
            "",
            " ",
            "unknown",
            "_hidden",
            "_hidden:80",
            "localhost",
            "192.0.2",
            "192.0.2.7.8",
            "192.0.2.7:",
            "192.0.2.7:x",
            "192.0.2.7:99999",
            "192.0.2.7:+1",
            "[192.0.2.7]",
            "[2001:db8::7",
            "2001:db8::7]",
            "[2001:db8::7]x",
            "[2001:db8::7]:",
            "[2001:db8::7]:99999",
            "[]",
            "fe80::1%eth0",
            "\"192.0.2.7",
            "192.0.2.7\"",
            "\"",
            "\"\"",
            "\\\"",
            "for=192.0.2.7",
            "6.6.6.6;192.0.2.7",
            "6.6.6.6 192.0.2.7",
            "\u{fc}",
            "0x7f.1",
            "1.2.3.04",
        ] {
            let list = format!("6.6.6.6, {element}");
            assert_eq!(x_forwarded_for_is(&[&list]), PROXY, "{list:?}");
            let list = format!("6.6.6.6, {element}, 10.0.0.9");
            assert_eq!(x_forwarded_for_is(&[&list]), "10.0.0.9", "{list:?}");
            assert_eq!(
                x_forwarded_for_is(&["6.6.6.6", element]),
                PROXY,
                "{element:?} in a line of its own"
            );
        }
    }

    #[test]
    fn forwarded_is_read_from_the_right_in_every_form() {
        for (lines, client) in [
            (&["for=192.0.2.7"][..], "192.0.2.7"),
            (&["For=192.0.2.7;proto=https;by=10.0.0.1"], "192.0.2.7"),
            (&["proto=https; for=192.0.2.7 ; by=_me"], "192.0.2.7"),
            (&["for=192.0.2.7;"], "192.0.2.7"),
            (&["for=6.6.6.6, for=192.0.2.7"], "192.0.2.7"),
            (&["for=6.6.6.6", "for=192.0.2.7"], "192.0.2.7"),
            (
                &["for=6.6.6.6, for=192.0.2.7, for=10.0.0.9;proto=http"],
                "192.0.2.7",
            ),
            (&["for=6.6.6.6, for=\"192.0.2.7:1234\""], "192.0.2.7"),
            (&["for=6.6.6.6, for=\"192.0.2.7:_port\""], "192.0.2.7"),
            (&["for=6.6.6.6, for=\"[2001:db8::7]\""], "2001:db8::7"),
            (
                &["for=6.6.6.6, for=\"[2001:db8::7]:99\";proto=https"],
                "2001:db8::7",
            ),
            // An unbalanced quote of the client, and a comma in the `Host` that a proxy quotes.
            (&["for=\", for=192.0.2.7"], "192.0.2.7"),
            (&["for=\"6.6.6.6, for=192.0.2.7"], "192.0.2.7"),
            (&["for=192.0.2.7;host=\"a, for=6.6.6.6\""], "192.0.2.7"),
            (
                &["for=\", for=192.0.2.7;host=\"a, for=6.6.6.6\""],
                "192.0.2.7",
            ),
            (&["for=192.0.2.7;host=\"a\\\", for=6.6.6.6\""], "192.0.2.7"),
            (&["for=192.0.2.7;host=\"a\\\\\", for=10.0.0.9"], "192.0.2.7"),
            (&["for=192.0.2.7;host=\";for=6.6.6.6\""], "192.0.2.7"),
        ] {
            assert_eq!(forwarded_is(lines), client, "{lines:?}");
        }
    }

    #[test]
    fn element_of_forwarded_without_one_address_ends_the_walk() {
        for element in [
            "",
            "for=unknown",
            "for=_hidden",
            "for=\"_hidden:80\"",
            "for=",
            "for=\"\"",
            "proto=https",
            "for",
            "192.0.2.7",
            "for=192.0.2.7;for=6.6.6.6",
            "for=6.6.6.6;FOR=192.0.2.7",
            "for=\"[2001:db8::7\"",
            "for=\"6.6.6.6\\\"\"",
            "host=\\\";for=6.6.6.6",
            "for=\"unknown\"",
        ] {
            let list = format!("for=6.6.6.6, {element}");
            assert_eq!(forwarded_is(&[&list]), PROXY, "{list:?}");
            let list = format!("for=6.6.6.6, {element}, for=10.0.0.9");
            assert_eq!(forwarded_is(&[&list]), "10.0.0.9", "{list:?}");
        }
    }

    #[test]
    fn header_that_is_not_configured_is_ignored() {
        let both = [
            ("x-forwarded-for", "192.0.2.7"),
            ("forwarded", "for=192.0.2.8"),
        ];
        assert_eq!(found(ForwardedHeader::XForwardedFor, &both), "192.0.2.7");
        assert_eq!(found(ForwardedHeader::Forwarded, &both), "192.0.2.8");
        assert_eq!(found(ForwardedHeader::XForwardedFor, &both[1..]), PROXY);
        assert_eq!(found(ForwardedHeader::Forwarded, &both[..1]), PROXY);
    }

    #[test]
    fn only_trusted_peers_name_the_client() {
        let trusted: Vec<IpNet> = vec!["10.0.0.0/8".parse().unwrap()];
        let headers: HeaderMap = [("x-forwarded-for", "192.0.2.7")]
            .into_iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>();
        for (peer, client) in [
            ("10.0.0.1", "192.0.2.7"),
            ("::ffff:10.0.0.1", "192.0.2.7"),
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "2001:db8::1"),
        ] {
            let address = |trusted: &[IpNet]| {
                client_address(
                    peer.parse().unwrap(),
                    &headers,
                    trusted,
                    ForwardedHeader::XForwardedFor,
                )
                .to_string()
            };
            assert_eq!(address(&trusted), client);
            assert_eq!(
                address(&[]),
                peer.parse::<IpAddr>().unwrap().to_canonical().to_string()
            );
        }
    }

    proptest! {
        /// The element that a trusted proxy appends decides, whatever the client has written.
        #[test]
        fn forged_elements_do_not_change_the_address(written in "[ -~\u{80}-\u{ff}]{0,40}") {
            for separator in [",", ", "] {
                let line = format!("{written}{separator}192.0.2.7");
                prop_assert_eq!(x_forwarded_for_is(&[&line]), "192.0.2.7");
                let line = format!("{written}{separator}for=192.0.2.7;host=\"a\\\",\\\\\"");
                prop_assert_eq!(forwarded_is(&[&line]), "192.0.2.7");
            }
            prop_assert_eq!(x_forwarded_for_is(&[&written, "192.0.2.7"]), "192.0.2.7");
            prop_assert_eq!(forwarded_is(&[&written, "for=192.0.2.7"]), "192.0.2.7");
        }
    }
}
