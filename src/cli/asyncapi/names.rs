//! Names of objects of the document, and references to them.

use serde_json::{Map, Value, json};

/// Name of the security scheme of listeners that need a client certificate.
pub(super) const CLIENT_CERTIFICATE: &str = "clientCertificate";

/// Returns a reference to an object of the document.
pub(super) fn reference(path: &[&str]) -> Value {
    // RFC 6901 and RFC 3986: the names of the configuration are printable ASCII at most.
    let escaped = path.iter().map(|part| {
        let part = part.replace('~', "~0").replace('/', "~1");
        part.replace('%', "%25").replace(' ', "%20")
    });
    let path: Vec<String> = escaped.collect();
    json!({ "$ref": format!("#/{}", path.join("/")) })
}

/// Returns a name of letters, digits, `.`, `-` and `_` for a text, as keys of components have.
pub(super) fn id(text: &str) -> String {
    let text = text.trim_matches('/').replace(['{', '}'], "");
    let allowed = |char: char| match char {
        '/' => '.',
        char if char.is_ascii_alphanumeric() || ".-_".contains(char) => char,
        _ => '_',
    };
    text.chars().map(allowed).collect()
}

/// Returns this name, or one with a number if it is in use.
pub(super) fn unused(used: &Map<String, Value>, name: &str) -> String {
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    let mut names = std::iter::once(name.to_owned()).chain(numbered);
    let free = names.find(|name| !used.contains_key(name));
    free.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_characters_of_component_keys_only_and_differ() {
        assert_eq!(id("/events/orders/{id}"), "events.orders.id");
        assert_eq!(id("/a b/ü~%"), "a_b.___");
        let used = Map::from_iter([
            ("a".to_owned(), Value::Null),
            ("a-2".to_owned(), Value::Null),
        ]);
        assert_eq!(unused(&used, "a"), "a-3");
        assert_eq!(unused(&used, "b"), "b");
    }
}
