//! Signatures that were found valid, so that the same token is not verified again.
//!
//! A page opens several event streams with one cookie, and clients return with the token that they
//! had. The check of one elliptic curve signature takes longer than the rest of a connect
//! (`docs/notes/tokens.md`).
//!
//! Whether a signature is valid depends on nothing but key, algorithm, message and signature. Their
//! SHA-256 is an entry, so no entry ever becomes wrong, whatever happens to the keys of a provider,
//! and no token is kept. Claims and times of a token are checked at every request.
//!
//! Entries are in two generations. When the young one is full it becomes the old one, and the old
//! one is forgotten: a token in use moves to the young one in time.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use jsonwebtoken::{Algorithm, DecodingKeyKind};
use ring::digest::{Context, SHA256};

/// 32,768 signatures in each generation, 3 MiB in all: the clients of a busy pod.
const GENERATION_MAX: usize = 32_768;

type Digest = [u8; 32];

/// Set of valid signatures.
#[derive(Debug, Default)]
pub(super) struct ValidSignatures(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: HashSet<Digest>,
    old: HashSet<Digest>,
}

/// Digest of one check.
pub(super) struct Checked(Digest);

impl Checked {
    /// Returns the digest of the check of a message's signature by a key.
    pub(super) fn new(
        algorithm: Algorithm,
        key: &DecodingKeyKind,
        message: &[u8],
        signature: &[u8],
    ) -> Self {
        let (key, exponent): (&[u8], &[u8]) = match key {
            DecodingKeyKind::SecretOrDer(key) => (key, &[]),
            DecodingKeyKind::RsaModulusExponent { n, e } => (n, e),
        };
        let mut context = Context::new(&SHA256);
        context.update(format!("{algorithm:?}").as_bytes());
        for part in [key, exponent, message, signature] {
            // The lengths separate the parts.
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut digest = Digest::default();
        digest.copy_from_slice(context.finish().as_ref());
        Self(digest)
    }
}

impl ValidSignatures {
    /// Returns whether this check has succeeded before.
    pub(super) fn has(&self, check: &Checked) -> bool {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.young.contains(&check.0) {
            return true;
        }
        let is_old = generations.old.contains(&check.0);
        if is_old {
            generations.insert(check.0);
        }
        is_old
    }

    /// Adds a check that has succeeded.
    pub(super) fn add(&self, check: &Checked) {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        generations.insert(check.0);
    }
}

impl Generations {
    fn insert(&mut self, digest: Digest) {
        if self.young.len() >= GENERATION_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key: &str, message: &str, signature: &str) -> Checked {
        let key = DecodingKeyKind::SecretOrDer(key.as_bytes().to_vec());
        Checked::new(
            Algorithm::ES256,
            &key,
            message.as_bytes(),
            signature.as_bytes(),
        )
    }

    #[test]
    fn only_the_same_check_is_known() {
        let valid = ValidSignatures::default();
        assert!(!valid.has(&check("key", "message", "signature")));
        valid.add(&check("key", "message", "signature"));
        assert!(valid.has(&check("key", "message", "signature")));
        for other in [
            check("other", "message", "signature"),
            check("key", "other", "signature"),
            check("key", "message", "other"),
            check("ke", "ymessage", "signature"),
            check("key", "messages", "ignature"),
        ] {
            assert!(!valid.has(&other));
        }
        let key = DecodingKeyKind::SecretOrDer(b"key".to_vec());
        let other = Checked::new(Algorithm::EdDSA, &key, b"message", b"signature");
        assert!(!valid.has(&other));
    }

    #[test]
    fn number_is_bounded_and_signatures_in_use_stay() {
        let valid = ValidSignatures::default();
        let numbered = |number: usize| check("key", &number.to_string(), "signature");
        let in_use = || check("key", "in use", "signature");
        valid.add(&in_use());
        for number in 0..3 * GENERATION_MAX {
            valid.add(&numbered(number));
            if number % 1000 == 0 {
                assert!(valid.has(&in_use()), "{number}");
            }
        }
        let generations = valid.0.lock().unwrap();
        assert!(generations.young.len() <= GENERATION_MAX);
        assert!(generations.old.len() <= GENERATION_MAX);
        drop(generations);
        assert!(!valid.has(&numbered(0)));
    }
}
