//! Fills `${NAME}` and `${NAME:-default}` in the values of the tree from the environment.
//!
//! The tree is parsed before, so no value can change its structure. Filled texts are marked, and no
//! message or excerpt shows them.

use super::problem::Report;
use super::tree::{Node, Scalar, Value};

/// Lookup of a variable by name.
pub type Lookup<'e> = &'e dyn Fn(&str) -> Option<String>;

/// 1 MiB of filled texts per file: the maximum size of the file itself.
const FILLED_BYTES_MAX: usize = 1 << 20;

/// Fills every value of the tree. Keys are not filled.
pub(super) fn fill(root: &mut Node, environment: Lookup<'_>, report: &Report<'_>) {
    let mut left = FILLED_BYTES_MAX;
    fill_node(
        root,
        &mut |node, scalar| match filled(&scalar.text, environment, left) {
            Ok(Some(text)) => {
                left -= text.len().min(left);
                *scalar = Scalar {
                    text,
                    plain: scalar.plain,
                    filled: true,
                };
            }
            Ok(None) => {}
            Err((message, hint)) => report.error(node, message, hint),
        },
    );
}

fn fill_node(node: &mut Node, each: &mut dyn FnMut(super::location::Location, &mut Scalar)) {
    match &mut node.value {
        Value::Scalar(scalar) => each(node.at, scalar),
        Value::List(items) => items.iter_mut().for_each(|item| fill_node(item, each)),
        Value::Map(entries) => entries
            .iter_mut()
            .for_each(|entry| fill_node(&mut entry.node, each)),
    }
}

/// Message and hint for a text that cannot be filled.
type Fault = (String, Option<String>);

/// Returns the text with its variables filled, or nothing if it has no variable and no `$$`.
fn filled(text: &str, environment: Lookup<'_>, bytes_max: usize) -> Result<Option<String>, Fault> {
    if !text.contains("$$") && !text.contains("${") {
        return Ok(None);
    }
    let mut out = String::new();
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        let after = &rest[dollar + 1..];
        if let Some(more) = after.strip_prefix('$') {
            out.push('$');
            rest = more;
        } else if let Some(inner) = after.strip_prefix('{') {
            let end = closing(inner)
                .ok_or_else(|| fault("`${` is not closed", "write `$$` for a dollar sign"))?;
            out.push_str(&value(&inner[..end], environment)?);
            rest = &inner[end + 1..];
        } else {
            out.push('$');
            rest = after;
        }
        if out.len() > bytes_max {
            return Err(fault(
                "the environment fills in more than 1 MiB",
                "check the length of the variables",
            ));
        }
    }
    out.push_str(rest);
    Ok(Some(out))
}

fn fault(message: &str, hint: &str) -> Fault {
    (message.to_owned(), Some(hint.to_owned()))
}

/// Returns the position of the closing brace. A default may have braces of its own.
fn closing(inner: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, byte) in inner.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Returns the value as a shell would: the default also replaces a variable that is set and empty.
fn value(inner: &str, environment: Lookup<'_>) -> Result<String, Fault> {
    let (name, default) = match inner.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inner, None),
    };
    let first = name.bytes().next();
    let is_valid = first.is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_valid {
        return Err(fault(
            "invalid reference to the environment",
            "write `${NAME}` or `${NAME:-default}`",
        ));
    }
    if default.is_some_and(|default| default.contains("${")) {
        return Err(fault(
            "a default cannot have a variable",
            "write one variable and a fixed default",
        ));
    }
    let set = environment(name);
    match (set, default) {
        (Some(value), None) => Ok(chomped(value)),
        (Some(value), Some(_)) if !value.is_empty() => Ok(chomped(value)),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => {
            let hint = format!("set it, or give a default: `${{{name}:-...}}`");
            Err((
                format!("the environment variable `{name}` is not set"),
                Some(hint),
            ))
        }
    }
}

/// Removes the line end, which secrets from files often have.
fn chomped(mut value: String) -> String {
    let kept = value.trim_end_matches(['\r', '\n']).len();
    value.truncate(kept);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(text: &str) -> Result<Option<String>, String> {
        let environment = |name: &str| match name {
            "HOST" => Some("nats".to_owned()),
            "EMPTY" => Some(String::new()),
            "FROM_FILE" => Some("secret\n".to_owned()),
            "TRICKY" => Some("${HOST}: {a: [".to_owned()),
            _ => None,
        };
        filled(text, &environment, 100).map_err(|(message, _)| message)
    }

    #[test]
    fn variables_defaults_and_dollars_are_filled_as_in_a_shell() {
        let ok = |text: &str| fill(text).unwrap().unwrap_or_else(|| text.to_owned());
        assert_eq!(ok("nats://${HOST}:4222"), "nats://nats:4222");
        assert_eq!(ok("${NONE:-a}${HOST:-b}${EMPTY:-c}${EMPTY}"), "anatsc");
        assert_eq!(ok("${NONE:-{query.client}}"), "{query.client}");
        assert_eq!(ok("${NONE:-}"), "");
        assert_eq!(ok("${FROM_FILE}"), "secret");
        assert_eq!(ok("a$b$"), "a$b$");
        assert_eq!(ok("$$${HOST}$${HOST}"), "$nats${HOST}");
        // Filled text is not filled again.
        assert_eq!(ok("${TRICKY}"), "${HOST}: {a: [");
    }

    #[test]
    fn text_that_cannot_be_filled_is_an_error() {
        assert_eq!(
            fill("${NONE}").unwrap_err(),
            "the environment variable `NONE` is not set"
        );
        assert_eq!(fill("${HOST").unwrap_err(), "`${` is not closed");
        for text in ["${}", "${1A}", "${A B}", "${HOST:x}", "${:-x}"] {
            assert_eq!(
                fill(text).unwrap_err(),
                "invalid reference to the environment",
                "{text}"
            );
        }
        assert!(fill("${NONE:-${HOST}}").is_err());
        assert!(fill(&"${HOST}".repeat(40)).unwrap_err().contains("1 MiB"));
    }
}
