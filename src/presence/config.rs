//! Settings of the presence store (`presence:` in the configuration).

use crate::subject::BucketName;

/// Presence over all pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// NATS KV bucket. `None`: each pod knows only its own clients.
    pub bucket: Option<BucketName>,
    /// Size of the bucket in bytes, if it is created here.
    pub max_bytes: u64,
}

impl Config {
    /// 64 KiB: fewer than a hundred entries are of no use.
    pub const MAX_BYTES_MIN: u64 = 64 * 1024;
}

impl Default for Config {
    fn default() -> Self {
        // 64 MiB: a hundred thousand event streams of about 0.5 KiB. Not more, because JetStream
        // reserves it.
        Self {
            bucket: None,
            max_bytes: 64 * 1024 * 1024,
        }
    }
}
