//! Keys and values that had another name in an earlier version.
//!
//! The reader rejects them like any unknown key or value, but the hint has the new name. A rename
//! needs a row in this table, a test, and a line in the changelog.

/// Keys by their old path, where list indices are left out as in `routes[].path`, and the new key
/// in the same map.
const KEYS: [(&str, &str); 2] = [
    ("registry", "presence"),
    ("routes[].slow.patience", "stall_timeout"),
];

/// Values by the path of their key, the old value and the new one.
const VALUES: [(&str, &str, &str); 1] = [("routes[].sources[].delivery", "on_demand", "republish")];

/// Returns the new name of the key at `path`, if the key was renamed.
pub(super) fn key(path: &str) -> Option<&'static str> {
    KEYS.iter()
        .find(|(old, _)| *old == path)
        .map(|(_, new)| *new)
}

/// Returns the new word for the value `word` of the key at `path`, if the value was renamed.
pub(super) fn value(path: &str, word: &str) -> Option<&'static str> {
    VALUES
        .iter()
        .find(|(key, old, _)| *key == path && *old == word)
        .map(|(_, _, new)| *new)
}

/// Returns the hint for a renamed key or value.
pub(super) fn hint(old: &str, new: &str) -> String {
    format!("`{old}` was renamed: write `{new}`")
}
