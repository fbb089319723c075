//! Variables of templates, and where their values come from.

use std::borrow::Cow;
use std::fmt;

use super::{ClaimPath, Filter, InvalidFilter};

/// Variable in braces.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Variable {
    /// `{name}`: segment of the request's path.
    Path(Box<str>),
    /// `{query.name}`: query parameter.
    Query(Box<str>),
    /// `{header.name}`: request header, its name in lower case.
    Header(Box<str>),
    /// `{cookie.name}`: cookie.
    Cookie(Box<str>),
    /// `{remote.ip}`: address of the client.
    RemoteIp,
    /// `{claim.name}`: claim of the principal.
    Claim(ClaimPath),
    /// `{subject.N}`: token of an event's subject, counted from 1.
    SubjectToken(u8),
}

/// Values of variables, from a request or an event.
pub trait Variables {
    /// Returns all values of a variable: usually one or none; a query parameter may be repeated.
    fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>>;

    /// Returns the texts of a claim that is a list, or one text; `None` if the claim is missing or
    /// something else. Only a principal has claims.
    fn claim_list(&self, _claim: &ClaimPath) -> Option<Vec<Cow<'_, str>>> {
        None
    }
}

/// Reason why a request does not fill a subject template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfilled {
    /// The variable has no value in this request. If it is [`Variable::Claim`], the principal does
    /// not have the claim, or its value is neither a string nor a number.
    Missing(Variable),
    /// The value is not a single token.
    Token(Variable),
    /// The result is not a valid filter.
    Filter(InvalidFilter),
    /// The filter does not lie within the bounds of the request.
    NotAllowed(Filter),
}

/// As written, with braces.
impl fmt::Display for Variable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(name) => write!(f, "{{{name}}}"),
            Self::Query(name) => write!(f, "{{query.{name}}}"),
            Self::Header(name) => write!(f, "{{header.{name}}}"),
            Self::Cookie(name) => write!(f, "{{cookie.{name}}}"),
            Self::RemoteIp => f.write_str("{remote.ip}"),
            Self::Claim(path) => write!(f, "{{claim{path}}}"),
            Self::SubjectToken(number) => write!(f, "{{subject.{number}}}"),
        }
    }
}
