//! Templates: text with variables in braces, filled from a request or from an event.
//!
//! [`TextTemplate`] makes a client's name or an event name. [`SubjectTemplate`] makes the filters
//! of a request: a variable fills exactly one token, so a request cannot widen the subject. The
//! exception is a template that is one whole variable; its values are filters, each of which has to
//! lie within the bounds of the source's [`Allow`].

mod narrow;

use std::borrow::Cow;
use std::fmt;

use super::{Allow, Bounds, ClaimPath, Filter, InvalidFilter, Unfilled, Variable, Variables};

/// Reason why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTemplate {
    /// A brace is not closed or not opened, or there is no name in it.
    #[error("a brace is not closed, not opened, or empty")]
    Brace,
    /// The variable does not exist.
    #[error(
        "`{{{0}}}` is not a variable; expected {{name}} (path), {{query.x}}, {{header.x}}, {{cookie.x}}, {{remote.ip}} or, in event names, {{subject.N}}"
    )]
    Unknown(String),
    /// A variable in a subject does not fill exactly one token.
    #[error("a variable in a subject must fill exactly one token")]
    PartOfToken,
    /// The text around the variables is not a valid subject.
    #[error("{}", .0.explain())]
    Subject(InvalidFilter),
}

/// Parses the text between braces.
fn parse_variable(name: &str) -> Result<Variable, InvalidTemplate> {
    let unknown = || InvalidTemplate::Unknown(name.to_owned());
    let word = |text: &str| {
        let is_valid = !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
        if is_valid {
            Ok(Box::from(text))
        } else {
            Err(unknown())
        }
    };
    // The name of a claim may have dots in quotation marks.
    if let Some(path) = name.strip_prefix("claim")
        && path.starts_with(['.', '['])
    {
        return ClaimPath::parse(path)
            .map(Variable::Claim)
            .ok_or_else(unknown);
    }
    match name.split_once('.') {
        None if name.is_empty() => Err(InvalidTemplate::Brace),
        None => word(name).map(Variable::Path),
        Some(("query", rest)) => word(rest).map(Variable::Query),
        Some(("header", rest)) => word(&rest.to_ascii_lowercase()).map(Variable::Header),
        Some(("cookie", rest)) => word(rest).map(Variable::Cookie),
        Some(("remote", "ip")) => Ok(Variable::RemoteIp),
        Some(("subject", number)) => match number.parse() {
            Ok(number @ 1..) => Ok(Variable::SubjectToken(number)),
            _ => Err(unknown()),
        },
        Some(_) => Err(unknown()),
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Piece {
    Text(Box<str>),
    Variable(Variable),
}

/// Returns the index of the brace that closes the variable at the start of a text. A brace between
/// quotation marks belongs to the name of a claim.
fn closing_brace(text: &str) -> Option<usize> {
    let mut is_quoted = false;
    let close = text.find(|char| {
        is_quoted ^= char == '"';
        char == '}' && !is_quoted
    });
    close.or_else(|| text.find('}')).filter(|close| *close > 0)
}

fn pieces(text: &str) -> Result<Vec<Piece>, InvalidTemplate> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at(open);
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        let close = closing_brace(from).ok_or(InvalidTemplate::Brace)?;
        pieces.push(Piece::Variable(parse_variable(&from[1..close])?));
        rest = &from[close + 1..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    Ok(pieces)
}

/// Text with variables anywhere in it: a client's name, an event name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TextTemplate(Box<[Piece]>);

impl TextTemplate {
    /// Parses a template.
    ///
    /// # Errors
    /// [`InvalidTemplate`] if braces or variables are invalid.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        Ok(Self(pieces(text)?.into()))
    }

    /// Iterates over the variables.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Variable(variable) => Some(variable),
            Piece::Text(_) => None,
        })
    }

    /// True if a variable is a claim.
    #[must_use]
    pub fn has_claims(&self) -> bool {
        self.variables()
            .any(|variable| matches!(variable, Variable::Claim(_)))
    }

    /// Returns the template with text in the place of its claims; the other variables stay. Equal
    /// text makes equal templates.
    ///
    /// # Errors
    /// [`Unfilled::Missing`] with the first claim that has no value.
    pub fn with_claims(&self, variables: &dyn Variables) -> Result<Self, Unfilled> {
        let mut pieces = Vec::with_capacity(self.0.len());
        let mut text = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(literal) => text.push_str(literal),
                Piece::Variable(claim @ Variable::Claim(_)) => {
                    let values = variables.values(claim);
                    let value = values
                        .first()
                        .ok_or_else(|| Unfilled::Missing(claim.clone()))?;
                    text.push_str(value);
                }
                Piece::Variable(_) => {
                    if !text.is_empty() {
                        pieces.push(Piece::Text(std::mem::take(&mut text).into()));
                    }
                    pieces.push(piece.clone());
                }
            }
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text.into()));
        }
        Ok(Self(pieces.into()))
    }

    /// Replaces each variable by its first value; `None` if a variable has none.
    #[must_use]
    pub fn fill(&self, variables: &dyn Variables) -> Option<String> {
        let mut out = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => out.push_str(text),
                Piece::Variable(variable) => {
                    let value = variables.values(variable).into_iter().next()?;
                    if value.is_empty() {
                        return None;
                    }
                    out.push_str(&value);
                }
            }
        }
        Some(out)
    }
}

/// As written.
impl fmt::Display for TextTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Variable(variable) => write!(f, "{variable}"),
        })
    }
}

/// Subject with variables: either each variable fills one token, or the whole is one variable.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectTemplate {
    tokens: Box<[Piece]>,
    text: Box<str>,
}

impl SubjectTemplate {
    /// Parses a subject template.
    ///
    /// # Errors
    /// [`InvalidTemplate`] if braces, variables or the subject are invalid.
    pub fn parse(text: &str) -> Result<Self, InvalidTemplate> {
        let mut tokens = Vec::new();
        // Not split at dots: `{query.subject}` has one too.
        let mut rest = text;
        loop {
            let end = if rest.starts_with('{') {
                closing_brace(rest).ok_or(InvalidTemplate::Brace)? + 1
            } else {
                rest.find('.').unwrap_or(rest.len())
            };
            let (token, after) = rest.split_at(end);
            match &pieces(token)?[..] {
                [one] => tokens.push(one.clone()),
                [] => return Err(InvalidTemplate::Subject(InvalidFilter::EmptyToken)),
                _ => return Err(InvalidTemplate::PartOfToken),
            }
            match after.strip_prefix('.') {
                Some(more) => rest = more,
                None if after.is_empty() => break,
                None => return Err(InvalidTemplate::PartOfToken),
            }
        }
        let template = Self {
            tokens: tokens.into(),
            text: text.into(),
        };
        let sample = template.with_wildcards();
        // The value of a whole variable is checked when it is filled; any other template has to be
        // a valid subject already.
        let sample = if template.is_whole_variable() {
            ">".to_owned()
        } else {
            sample
        };
        Filter::parse(&sample).map_err(InvalidTemplate::Subject)?;
        Ok(template)
    }

    /// As written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Iterates over the variables.
    pub fn variables(&self) -> impl Iterator<Item = &Variable> {
        self.tokens.iter().filter_map(|piece| match piece {
            Piece::Variable(variable) => Some(variable),
            Piece::Text(_) => None,
        })
    }

    /// True if the whole subject is one variable: only then may its value have dots and wildcards.
    #[must_use]
    pub fn is_whole_variable(&self) -> bool {
        matches!(&self.tokens[..], [Piece::Variable(_)])
    }

    fn with_wildcards(&self) -> String {
        let token = |piece: &Piece| match piece {
            Piece::Text(text) => text.to_string(),
            Piece::Variable(_) => "*".to_owned(),
        };
        self.tokens.iter().map(token).collect::<Vec<_>>().join(".")
    }

    /// Filters that cover everything the template can request: its variables as `*`, a whole
    /// variable as the filters of `allow`. If all entries of `allow` are claims, a whole variable
    /// can be any subject.
    #[must_use]
    pub fn reach(&self, allow: &Allow) -> Vec<Filter> {
        let reach = match (self.is_whole_variable(), allow) {
            (true, Allow { filters, .. }) if !filters.is_empty() => return filters.clone(),
            (true, Allow { claims, .. }) if !claims.is_empty() => ">".to_owned(),
            _ => self.with_wildcards(),
        };
        Filter::parse(&reach).into_iter().collect()
    }

    /// Returns the filters of a request.
    ///
    /// With bounds, the values of a whole-variable template are filters, each of which has to lie
    /// within them; every value of a repeated query parameter counts. Without bounds, each value
    /// has to be a single token.
    ///
    /// # Errors
    /// [`Unfilled`] if a value is missing or invalid.
    pub fn fill(
        &self,
        variables: &dyn Variables,
        bounds: &Bounds<'_>,
    ) -> Result<Vec<Filter>, Unfilled> {
        if let ([Piece::Variable(variable)], false) = (&self.tokens[..], bounds.is_empty()) {
            let values = variables.values(variable);
            if values.is_empty() {
                return Err(Unfilled::Missing(variable.clone()));
            }
            return values.iter().map(|value| allowed(value, bounds)).collect();
        }
        let mut text = String::with_capacity(self.text.len() + 16);
        for (index, piece) in self.tokens.iter().enumerate() {
            if index > 0 {
                text.push('.');
            }
            match piece {
                Piece::Text(token) => text.push_str(token),
                Piece::Variable(variable) => {
                    let values = variables.values(variable);
                    let value = values
                        .first()
                        .ok_or_else(|| Unfilled::Missing(variable.clone()))?;
                    if !is_token(value) {
                        return Err(Unfilled::Token(variable.clone()));
                    }
                    text.push_str(value);
                }
            }
        }
        allowed(&text, bounds).map(|filter| vec![filter])
    }
}

fn allowed(text: &str, bounds: &Bounds<'_>) -> Result<Filter, Unfilled> {
    let filter = Filter::parse(text).map_err(Unfilled::Filter)?;
    if bounds.admits(&filter) {
        Ok(filter)
    } else {
        Err(Unfilled::NotAllowed(filter))
    }
}

/// True if a value is a single token: not empty, no dot, wildcard, white space or control
/// character.
fn is_token(value: &str) -> bool {
    !value.is_empty()
        && !value.chars().any(|char| {
            matches!(char, '.' | '*' | '>') || char.is_whitespace() || char.is_control()
        })
}

/// Variables with the value `x`, to check a template before there is a request or an event.
pub struct SampleValues;

impl Variables for SampleValues {
    fn values(&self, _: &Variable) -> Vec<Cow<'_, str>> {
        vec!["x".into()]
    }
}

/// Variables of an event: the tokens of its subject.
pub struct SubjectTokens<'a>(pub &'a str);

impl Variables for SubjectTokens<'_> {
    fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
        match variable {
            Variable::SubjectToken(number) => {
                let token = self.0.split('.').nth(usize::from(*number) - 1);
                token.map(Cow::Borrowed).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Request(&'static [(&'static str, &'static str)]);

    impl Variables for Request {
        fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
            let name = match variable {
                Variable::Path(name) => name.to_string(),
                Variable::Query(name) => format!("query.{name}"),
                _ => return Vec::new(),
            };
            self.0
                .iter()
                .filter(|(key, _)| *key == name)
                .map(|(_, value)| (*value).into())
                .collect()
        }
    }

    fn fill(
        template: &str,
        values: &'static [(&'static str, &'static str)],
        allow: &[&str],
    ) -> Result<Vec<String>, Unfilled> {
        let allow: Vec<Filter> = allow
            .iter()
            .map(|text| Filter::parse(text).unwrap())
            .collect();
        let filters = SubjectTemplate::parse(template)
            .unwrap()
            .fill(&Request(values), &Bounds::from(&allow[..]))?;
        Ok(filters.iter().map(Filter::to_string).collect())
    }

    #[test]
    fn variable_fills_one_token() {
        assert_eq!(
            fill("orders.{id}.>", &[("id", "42")], &[]).unwrap(),
            ["orders.42.>"]
        );
        assert_eq!(
            fill("orders.{query.id}.new", &[("query.id", "42")], &[]).unwrap(),
            ["orders.42.new"]
        );
        for value in ["", "a.b", "*", ">", "a b", "a\0"] {
            let values: &'static [_] = vec![("id", value)].leak();
            assert_eq!(
                fill("orders.{id}", values, &[]),
                Err(Unfilled::Token(Variable::Path("id".into()))),
                "{value:?}"
            );
        }
        assert!(matches!(
            fill("orders.{id}", &[], &[]),
            Err(Unfilled::Missing(_))
        ));
        assert!(matches!(
            fill("{id}.x", &[("id", "$SYS")], &[]),
            Err(Unfilled::Filter(InvalidFilter::Reserved))
        ));
    }

    #[test]
    fn claims_become_text_and_equal_text_makes_equal_templates() {
        struct Claims(&'static [(&'static str, &'static str)]);
        impl Variables for Claims {
            fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
                let name = variable.to_string();
                let found = self.0.iter().filter(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).into()).collect()
            }
        }
        let template = TextTemplate::parse("a-{claim.a}{claim.b}.{subject.2}.{claim.a}").unwrap();
        assert!(template.has_claims());
        let claims = Claims(&[("{claim.a}", "x"), ("{claim.b}", "{subject.1}")]);
        let filled = template.with_claims(&claims).unwrap();
        assert!(!filled.has_claims());
        assert_eq!(
            filled.fill(&SubjectTokens("one.two")).unwrap(),
            "a-x{subject.1}.two.x",
            "a value is text, not a template"
        );
        let other = TextTemplate::parse("a-{claim.c}.{subject.2}{claim.d}").unwrap();
        let claims = Claims(&[("{claim.c}", "x{subject.1}"), ("{claim.d}", ".x")]);
        assert_eq!(other.with_claims(&claims).unwrap(), filled);
        let missing = template.with_claims(&Claims(&[("{claim.a}", "x")]));
        let b = Variable::Claim(ClaimPath::parse(".b").unwrap());
        assert_eq!(missing, Err(Unfilled::Missing(b)));
        let literal = TextTemplate::parse("{subject.1}").unwrap();
        assert!(!literal.has_claims());
        assert_eq!(literal.with_claims(&Claims(&[])), Ok(literal.clone()));
    }

    #[test]
    fn whole_variable_takes_filters_covered_by_allow() {
        let values: &[_] = &[
            ("query.subject", "orders.42.>"),
            ("query.subject", "orders.7"),
        ];
        assert_eq!(
            fill("{query.subject}", values, &["orders.>"]).unwrap(),
            ["orders.42.>", "orders.7"]
        );
        assert!(matches!(
            fill("{query.subject}", values, &["orders.*"]),
            Err(Unfilled::NotAllowed(_))
        ));
        assert!(matches!(
            fill("{query.subject}", &[("query.subject", ">")], &["orders.>"]),
            Err(Unfilled::NotAllowed(_))
        ));
    }

    #[test]
    fn reach_covers_everything_a_request_can_ask_for() {
        let reach = |text: &str, filters: &[&str], claims: &[&str]| {
            let claims = claims.iter().map(|text| ClaimPath::parse(text).unwrap());
            let filters = filters.iter().map(|text| Filter::parse(text).unwrap());
            let allow = Allow {
                filters: filters.collect(),
                claims: claims.collect(),
            };
            let template = SubjectTemplate::parse(text).unwrap();
            template
                .reach(&allow)
                .iter()
                .map(Filter::to_string)
                .collect::<Vec<_>>()
        };
        let claims = [".subscribe"];
        assert_eq!(reach("orders.{id}.>", &[], &[]), ["orders.*.>"]);
        assert_eq!(reach("orders.{id}.>", &[], &claims), ["orders.*.>"]);
        for claims in [&[], &claims[..]] {
            assert_eq!(
                reach("{query.subject}", &["orders.>", "x"], claims),
                ["orders.>", "x"]
            );
        }
        assert_eq!(reach("{id}", &[], &[]), ["*"]);
        assert_eq!(reach("{query.subject}", &[], &claims), [">"]);
    }

    #[test]
    fn invalid_template_reports_the_reason() {
        let invalid = |text: &str| SubjectTemplate::parse(text).unwrap_err();
        assert_eq!(invalid("a.{id"), InvalidTemplate::Brace);
        assert_eq!(invalid("a.{}"), InvalidTemplate::Brace);
        assert_eq!(invalid("a.x{id}"), InvalidTemplate::PartOfToken);
        assert_eq!(invalid("a.{id}x"), InvalidTemplate::PartOfToken);
        assert_eq!(
            invalid("a.{foo.bar}"),
            InvalidTemplate::Unknown("foo.bar".into())
        );
        assert_eq!(
            invalid("a..{id}"),
            InvalidTemplate::Subject(InvalidFilter::EmptyToken)
        );
        assert_eq!(
            invalid("a.>.{id}"),
            InvalidTemplate::Subject(InvalidFilter::Wildcard)
        );
        assert_eq!(
            invalid(""),
            InvalidTemplate::Subject(InvalidFilter::EmptyToken)
        );
    }

    #[test]
    fn claim_is_a_variable_with_a_path() {
        let parse = |text: &str| {
            let template = SubjectTemplate::parse(text).unwrap();
            let variables: Vec<_> = template.variables().map(Variable::to_string).collect();
            variables.join(" ")
        };
        for (template, variables) in [
            ("orders.{claim.sub}.>", "{claim.sub}"),
            ("a.{claim.org.id}.{id}", "{claim.org.id} {id}"),
            (
                r#"a.{claim["https://example.com/}"].x}.b"#,
                r#"{claim["https://example.com/}"].x}"#,
            ),
            ("{claim}.{claims}", "{claim} {claims}"),
        ] {
            assert_eq!(parse(template), variables);
        }
        assert_eq!(
            TextTemplate::parse(r#"{claim["a}"]}-{claim.sub}"#)
                .unwrap()
                .to_string(),
            r#"{claim["a}"]}-{claim.sub}"#
        );
        for text in ["a.{claim.}", "a.{claim[0]}", "a.{claim[\"x}", "a.{id\"}"] {
            assert!(
                matches!(
                    SubjectTemplate::parse(text),
                    Err(InvalidTemplate::Unknown(_))
                ),
                "{text}"
            );
        }
    }

    #[test]
    fn event_name_is_filled_from_the_subject() {
        let template = TextTemplate::parse("order-{subject.3}").unwrap();
        assert_eq!(
            template.fill(&SubjectTokens("orders.42.created")),
            Some("order-created".into())
        );
        assert_eq!(template.fill(&SubjectTokens("orders.42")), None);
        assert!(TextTemplate::parse("{subject.0}").is_err());
    }
}
