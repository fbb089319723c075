//! Subject to subscribe to for a filter, as the stream's republish configuration maps it.
//!
//! Pure. The destination is read as nats-server reads it (`subject_transform.go`), wildcards and
//! functions included.

use crate::subject::Filter;

/// Republish configuration of a stream (NATS ADR-28).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Republish {
    /// Subjects that are republished.
    pub source: String,
    /// Destination: literal tokens, `$1` or `{{wildcard(1)}}` for a `*` of the source, `>` for the
    /// rest.
    pub destination: String,
    /// Messages are republished without payload.
    pub headers_only: bool,
}

impl Republish {
    /// Subject to subscribe to for everything that the filter selects; it may deliver more. `None`
    /// if the source does not cover the filter.
    pub(crate) fn subject_of(&self, filter: &Filter) -> Option<String> {
        let (stars, rest) = capture(&self.source, filter)?;
        let mut subject: Vec<&str> = Vec::new();
        for token in self.destination.split('.') {
            match wildcard(token) {
                Token::Rest => subject.extend(&rest),
                Token::Literal => subject.push(token),
                Token::Wildcard(number) => subject.push(stars.get(number.checked_sub(1)?)?),
                // Partitions and similar functions: any token, and any tokens after it.
                Token::Function => {
                    subject.push(">");
                    break;
                }
            }
        }
        Some(subject.join("."))
    }
}

/// Tokens of the filter for each `*` of the source, and those for its `>`.
fn capture<'f>(source: &str, filter: &'f Filter) -> Option<(Vec<&'f str>, Vec<&'f str>)> {
    let mut theirs = filter.tokens();
    let mut stars = Vec::new();
    for own in source.split('.') {
        match (own, theirs.next()?) {
            (">", first) => return Some((stars, std::iter::once(first).chain(theirs).collect())),
            ("*", token) if token != ">" => stars.push(token),
            (own, token) if own == token => {}
            _ => return None,
        }
    }
    theirs.next().is_none().then_some((stars, Vec::new()))
}

/// Token of a destination.
enum Token {
    Literal,
    Rest,
    Wildcard(usize),
    Function,
}

/// Parses a token as the server does.
fn wildcard(token: &str) -> Token {
    if token == ">" {
        return Token::Rest;
    }
    if let Some(number) = token
        .strip_prefix('$')
        .and_then(|number| number.parse().ok())
    {
        return Token::Wildcard(number);
    }
    let Some(function) = token
        .strip_prefix("{{")
        .and_then(|inner| inner.strip_suffix("}}"))
    else {
        return Token::Literal;
    };
    let call = function
        .trim()
        .strip_suffix(')')
        .and_then(|call| call.split_once('('));
    match call.map(|(name, argument)| (name.trim().to_ascii_lowercase(), argument.trim().parse())) {
        Some((name, Ok(number))) if name == "wildcard" => Token::Wildcard(number),
        _ => Token::Function,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(source: &str, destination: &str, filter: &str) -> Option<String> {
        let (source, destination) = (source.to_owned(), destination.to_owned());
        Republish {
            source,
            destination,
            headers_only: false,
        }
        .subject_of(&Filter::parse(filter).unwrap())
    }

    #[test]
    fn filter_maps_to_the_republish_destination() {
        for (source, destination, filter, expected) in [
            (">", "live.>", "orders.42.created", "live.orders.42.created"),
            (">", "live.>", "orders.*.created", "live.orders.*.created"),
            (">", "live.>", "orders.>", "live.orders.>"),
            ("orders.>", "live.>", "orders.42.>", "live.42.>"),
            ("orders.*.>", "live.$1.x.>", "orders.42.>", "live.42.x.>"),
            (
                "orders.*.*",
                "live.{{wildcard(2)}}.{{ Wildcard( 1 ) }}",
                "orders.*.created",
                "live.created.*",
            ),
            ("orders.created", "live", "orders.created", "live"),
            ("*.*", "live.{{partition(3,1)}}.$1", "a.b", "live.>"),
            ("*.*", "live.$x.$1.$2", "a.b", "live.$x.a.b"),
        ] {
            assert_eq!(
                subject(source, destination, filter).as_deref(),
                Some(expected),
                "{source} {destination} {filter}"
            );
        }
    }

    #[test]
    fn filter_that_is_not_fully_republished_has_no_subject() {
        for (source, filter) in [
            ("orders.>", "users.>"),
            ("orders.>", ">"),
            ("orders.*", "orders.>"),
            ("orders.*.created", "orders.42.*"),
            ("orders.*", "orders"),
            ("orders.*", "orders.42.x"),
        ] {
            assert_eq!(subject(source, "live", filter), None, "{source} {filter}");
        }
        assert_eq!(subject("*", "live.$2", "a"), None, "no second wildcard");
    }
}
