//! Names of this process in NATS: connection and consumer names, inboxes, connection roles.

/// Prefix of our inboxes: one permission, `_INBOX_sse.>`, covers the inboxes of all pods and of no
/// other client.
pub(super) const INBOX: &str = "_INBOX_sse.";

/// Role of the connection for core subjects.
pub(super) const CORE: &str = "core";
/// Role of the connection for requests.
pub(super) const CONTROL: &str = "control";

/// Name under which this process appears in NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Pod name, as part of connection and consumer names.
    pub pod: String,
    /// Distinguishes this process from all other processes, earlier ones of the pod included.
    pub boot: String,
}

impl Identity {
    /// Returns an identity of this pod with a new boot id.
    #[must_use]
    pub fn new(pod: &str) -> Self {
        // 48 bits of a generator seeded by the system: two restarts do not get the same id.
        Self {
            pod: token(pod, 64),
            boot: format!("{:012x}", fastrand::u64(..) >> 16),
        }
    }
}

/// Replaces every character that is not allowed in a NATS name or subject token with `_`.
pub(crate) fn token(text: &str, length_max: usize) -> String {
    let is_allowed = |char: char| char.is_ascii_alphanumeric() || char == '-' || char == '_';
    let name: String = text
        .chars()
        .take(length_max)
        .map(|char| if is_allowed(char) { char } else { '_' })
        .collect();
    if name.is_empty() {
        "_".to_owned()
    } else {
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_contain_only_characters_that_nats_allows() {
        assert_eq!(token("api-7f.x y>*", 64), "api-7f_x_y__");
        assert_eq!(token("", 64), "_");
        assert_eq!(token(&"x".repeat(300), 64).len(), 64);
        assert_ne!(Identity::new("a").boot, Identity::new("a").boot);
    }
}
