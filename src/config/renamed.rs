//! Keys and values that an earlier version had under another name.
//!
//! [`Walk`](super::walk::Walk) rejects them like any other unknown key or value, but the hint names the new word: an
//! operator who updates the image learns from the error what to write. A rename adds one row here and one in the
//! changelog.

/// Keys by their old path, where list indices are left out as in `routes[].path`, and the new key in the same map.
const KEYS: [(&str, &str); 2] = [
    ("registry", "presence"),
    ("routes[].slow.patience", "stall_timeout"),
];

/// Values by the path of their key, the old value and the new one.
const VALUES: [(&str, &str, &str); 1] = [("routes[].sources[].delivery", "republish", "republish")];

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
