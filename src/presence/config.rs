//! Where the registry of all pods is kept (`registry:` in the configuration).

/// The registry over all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// A NATS KV bucket; none: each pod knows its own clients only.
    pub bucket: Option<Bucket>,
    /// Size of a bucket that is made here, in bytes.
    pub max_bytes: u64,
}

impl Config {
    /// 64 KiB: fewer than a hundred entries are of no use to a pod.
    pub const MAX_BYTES_MIN: u64 = 64 * 1024;
}

impl Default for Config {
    fn default() -> Self {
        // 64 MiB: a hundred thousand event streams of about 0.5 KiB. JetStream reserves it, so not more.
        Self {
            bucket: None,
            max_bytes: 64 * 1024 * 1024,
        }
    }
}

/// The name of a bucket: letters, digits, `_` and `-`, as NATS has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket(Box<str>);

impl Bucket {
    /// Takes a name; the error is a sentence.
    ///
    /// # Errors
    /// When NATS would not take it.
    pub fn parse(name: &str) -> Result<Self, &'static str> {
        // 128: half of what a file name on the server's disk may have, for a stream's name with its prefix.
        let is_sound = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
        match name.len() {
            1..=128 if name.bytes().all(is_sound) => Ok(Self(name.into())),
            _ => Err("the name of a bucket has 1 to 128 letters, digits, `_` and `-`"),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_has_a_name_that_nats_takes() {
        for name in ["clients", "SSE_clients-2", &"b".repeat(128)] {
            assert_eq!(Bucket::parse(name).unwrap().as_str(), name);
        }
        for name in ["", "a.b", "a b", "a>", "é", &"b".repeat(129)] {
            Bucket::parse(name).unwrap_err();
        }
    }
}
