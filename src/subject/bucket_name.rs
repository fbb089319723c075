//! Name of a NATS KV bucket: one token of the subjects `$KV.<bucket>.<key>`.

/// Name of a bucket: letters, digits, `_` and `-`, as NATS requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketName(Box<str>);

impl BucketName {
    /// Parses a name; the error is a sentence.
    ///
    /// # Errors
    /// If NATS would reject the name.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        // 128: half the length of a file name on the server's disk, for the stream name with its
        // prefix.
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        match name.len() {
            1..=128 if name.bytes().all(is_sound) => Ok(Self(name.into())),
            _ => Err("a bucket name has 1 to 128 letters, digits, `_` and `-`"),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Name of the bucket's stream.
    #[must_use]
    pub fn stream(&self) -> String {
        format!("KV_{}", self.0)
    }

    /// Subject of a message, without the key at its end.
    #[must_use]
    pub fn subject_prefix(&self) -> String {
        format!("$KV.{}.", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_names_follow_the_rules_of_nats() {
        for name in ["clients", "SSE_clients-2", &"b".repeat(128)] {
            assert_eq!(BucketName::parse(name).unwrap().as_str(), name);
        }
        for name in ["", "a.b", "a b", "a>", "é", &"b".repeat(129)] {
            BucketName::parse(name).unwrap_err();
        }
    }
}
