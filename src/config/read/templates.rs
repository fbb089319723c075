//! Reads the templates of a route, `client` and `event`, and checks that their variables exist.
//!
//! `client` and the subjects of a source are filled from a request: path, query, headers, cookies,
//! and claims if the route authenticates its clients. `event` is filled from the subject of an
//! event and from claims: an event is encoded once for all clients with equal claims.

use crate::config::reader::ValueReader;
use crate::event::EventName;
use crate::http::config::{PathTemplate, TICKET_QUERY};
use crate::subject::template::{InvalidTemplate, SampleValues};
use crate::subject::{TextTemplate, Variable};

/// Properties of a route that decide which variables its templates may have.
#[derive(Clone, Copy)]
pub(super) struct Scope<'r> {
    /// Path of the route; `None` if it is invalid.
    pub(super) path: Option<&'r PathTemplate>,
    /// The route has `authenticate`.
    pub(super) authenticates: bool,
    /// Requests can have a ticket.
    pub(super) has_tickets: bool,
}

pub(super) fn client(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<TextTemplate> {
    let template = text_template(value)?;
    check_request_variables(value, template.variables(), scope);
    Some(template)
}

pub(super) fn event(value: &ValueReader<'_>, scope: Scope<'_>) -> Option<TextTemplate> {
    let template = text_template(value)?;
    let is_shared =
        |variable: &Variable| matches!(variable, Variable::SubjectToken(_) | Variable::Claim(_));
    if !template.variables().all(is_shared) {
        value.error(
            "`event` has a variable of a request",
            Some(
                "an event has one name for all clients: use only `{subject.N}` and `{claim.NAME}`",
            ),
        );
        return None;
    }
    if template.has_claims() && !scope.authenticates {
        report_claim_without_identity(value);
    }
    let is_valid = template
        .fill(&SampleValues)
        .and_then(|name| EventName::parse(&name))
        .is_some();
    if !is_valid {
        value.error(
            "invalid event name",
            Some("a name has 1 to 128 bytes, no control characters and no space at its start; it does not begin with `sidestream.` or end in `;base64`"),
        );
    }
    Some(template)
}

fn text_template(value: &ValueReader<'_>) -> Option<TextTemplate> {
    let text = value.text()?;
    value.parsed_or(
        "a template",
        |_| TextTemplate::parse(&text),
        |error| explain(value, &error),
    )
}

/// Describes an invalid template. Text from the environment is not quoted.
pub(super) fn explain(value: &ValueReader<'_>, error: &InvalidTemplate) -> String {
    match error {
        InvalidTemplate::Unknown(_) if value.is_filled() => {
            "unknown variable in this template".into()
        }
        error => error.to_string(),
    }
}

/// Checks that a request of the route has these variables.
pub(super) fn check_request_variables<'v>(
    value: &ValueReader<'_>,
    variables: impl Iterator<Item = &'v Variable>,
    scope: Scope<'_>,
) {
    for variable in variables {
        match (variable, scope.path) {
            (Variable::SubjectToken(_), _) => value.error(
                "`{subject.N}` is only allowed in `event`",
                Some("a request has no subject"),
            ),
            // A ticket is a secret: it must not become part of a subject or of a log line.
            (Variable::Query(name), _) if scope.has_tickets && **name == *TICKET_QUERY => value
                .error(
                    "`{query.ticket}` is not available: the parameter has a ticket",
                    Some("use another name for this parameter"),
                ),
            // Without an identity no request could ever fill it.
            (Variable::Claim(_), _) if !scope.authenticates => {
                report_claim_without_identity(value);
            }
            (Variable::Path(name), Some(path))
                if path.variables().all(|known| known != &**name) =>
            {
                report_unknown_path_variable(value, name, path);
            }
            _ => {}
        }
    }
}

/// Reports a claim that no request could ever fill.
fn report_claim_without_identity(value: &ValueReader<'_>) {
    value.error(
        "a claim needs `authenticate` on this route",
        Some("name a provider of `authentication.providers`, such as `authenticate: [idp]`"),
    );
}

fn report_unknown_path_variable(value: &ValueReader<'_>, name: &str, path: &PathTemplate) {
    let names: Vec<String> = path
        .variables()
        .map(|name| format!("`{{{name}}}`"))
        .collect();
    let hint = if names.is_empty() {
        "the path has no variables".into()
    } else {
        format!("the path has {}", names.join(", "))
    };
    let name = if value.is_filled() {
        "this variable".into()
    } else {
        format!("`{{{name}}}`")
    };
    value.error(
        format!("{name} is not a variable of the route's path"),
        Some(&hint),
    );
}
