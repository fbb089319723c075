//! Keys of a provider, ready to check signatures.

use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};

use crate::auth::Secret;

/// Keys of one issuer.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

/// One key, with the algorithms that it can be used for.
#[derive(Clone, Debug)]
pub(super) struct Key {
    id: Option<Box<str>>,
    decoding: DecodingKey,
}

impl KeySet {
    /// Returns the set of one shared secret, which has no key id. Without characters it is empty.
    pub(super) fn of_secret(secret: &Secret) -> Self {
        let key = |decoding| Key { id: None, decoding };
        Self(
            DecodingKey::from_secret(secret.0.as_bytes())
                .map(key)
                .into_iter()
                .collect(),
        )
    }

    /// Returns the keys of this id, or else those without an id. A token without an id could have
    /// any key.
    pub(super) fn candidates(&self, id: Option<&str>) -> Vec<&Key> {
        let Some(id) = id else {
            return self.0.iter().collect();
        };
        let of = |wanted: Option<&str>| -> Vec<&Key> {
            self.0
                .iter()
                .filter(|key| key.id.as_deref() == wanted)
                .collect()
        };
        let named = of(Some(id));
        if named.is_empty() { of(None) } else { named }
    }
}

impl Key {
    /// Returns whether the key is one of this algorithm.
    pub(super) fn agrees_with(&self, algorithm: Algorithm) -> bool {
        self.decoding.family() == AlgorithmFamily::Hmac
            && algorithm.family() == AlgorithmFamily::Hmac
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}
