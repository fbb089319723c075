//! Keys of a provider, ready to check signatures: from a JSON Web Key Set, PEM or a secret.
//!
//! A key has one type, and a type has few algorithms. A key that names its own algorithm has only
//! that one. Keys for encryption, secrets in a public set and unknown types are skipped.

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind};
use rustls_pki_types::pem::{PemObject, SectionKind};
use serde::Deserialize;
use serde_json::Value;

use crate::auth::Secret;

/// 64 keys: several times those of the largest issuers.
const KEYS_MAX: usize = 64;

/// 8 keys that the signature of one token is checked with: a token without a key id would cost one
/// check per key.
const CANDIDATES_MAX: usize = 8;

/// Keys of one issuer; none until the first fetch.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet(Vec<Key>);

/// One key, with the algorithms that it can be used for.
#[derive(Clone, Debug)]
pub(super) struct Key {
    id: Option<Box<str>>,
    kind: KeyKind,
    /// Algorithm that the key names.
    own: Option<Algorithm>,
    decoding: DecodingKey,
}

/// Type of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

/// Reason why bytes are no usable keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum InvalidKeys {
    /// The JSON is something else.
    #[error("the document is not a JSON Web Key Set")]
    NotAKeySet,
    /// The text has neither form.
    #[error("the file is neither a JSON Web Key Set nor public keys in PEM")]
    NotPem,
    /// More than the maximum.
    #[error("there are more than {KEYS_MAX} keys")]
    TooMany,
    /// All keys were skipped.
    #[error(
        "there is no public key for signatures (RSA of at least 2048 bits, P-256, P-384 or Ed25519)"
    )]
    NoneUsable,
}

#[derive(Deserialize)]
struct Jwks {
    keys: Vec<Value>,
}

impl KeySet {
    /// Returns the set of one shared secret, which has no key id. Without characters it is empty.
    pub(super) fn of_secret(secret: &Secret) -> Self {
        let key = DecodingKey::from_secret(secret.0.as_bytes());
        Self(
            key.map(|key| Key::of(KeyKind::Secret, key))
                .into_iter()
                .collect(),
        )
    }

    /// Parses a JSON Web Key Set (RFC 7517).
    ///
    /// # Errors
    /// [`InvalidKeys`].
    pub(super) fn from_jwks(bytes: &[u8]) -> Result<Self, InvalidKeys> {
        let Jwks { keys } = serde_json::from_slice(bytes).map_err(|_| InvalidKeys::NotAKeySet)?;
        if keys.len() > KEYS_MAX {
            return Err(InvalidKeys::TooMany);
        }
        Self::of(keys.into_iter().filter_map(Key::from_jwk).collect())
    }

    /// Parses a file: a JSON Web Key Set, or the `PUBLIC KEY` sections of a PEM file.
    ///
    /// # Errors
    /// [`InvalidKeys`].
    pub(super) fn from_file(bytes: &[u8]) -> Result<Self, InvalidKeys> {
        if bytes.trim_ascii_start().starts_with(b"{") {
            return Self::from_jwks(bytes);
        }
        let mut keys = Vec::new();
        for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(bytes) {
            let (kind, der) = section.map_err(|_| InvalidKeys::NotPem)?;
            if keys.len() == KEYS_MAX {
                return Err(InvalidKeys::TooMany);
            }
            if kind == SectionKind::PublicKey {
                keys.extend(Key::from_spki(&der));
            }
        }
        Self::of(keys)
    }

    fn of(keys: Vec<Key>) -> Result<Self, InvalidKeys> {
        if keys.is_empty() {
            return Err(InvalidKeys::NoneUsable);
        }
        Ok(Self(keys))
    }

    /// Returns the number of keys.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the keys of this id, or else those without an id. A token without an id could have
    /// any key.
    pub(super) fn candidates(&self, id: Option<&str>) -> Vec<&Key> {
        let those = |is_one: &dyn Fn(&Key) -> bool| -> Vec<&Key> {
            let keys = self.0.iter().filter(|key| is_one(key));
            keys.take(CANDIDATES_MAX).collect()
        };
        let Some(id) = id else {
            return those(&|_| true);
        };
        let named = those(&|key| key.id.as_deref() == Some(id));
        if named.is_empty() {
            those(&|key| key.id.is_none())
        } else {
            named
        }
    }
}

impl Key {
    fn of(kind: KeyKind, decoding: DecodingKey) -> Self {
        Self {
            id: None,
            kind,
            own: None,
            decoding,
        }
    }

    /// Returns a key of a JSON Web Key Set, if it is one for signatures.
    fn from_jwk(value: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        let common = &jwk.common;
        let is_for_signatures = common
            .public_key_use
            .as_ref()
            .is_none_or(|used| *used == PublicKeyUse::Signature)
            && common
                .key_operations
                .as_ref()
                .is_none_or(|used| used.contains(&KeyOperations::Verify));
        if !is_for_signatures {
            return None;
        }
        let own = match common.key_algorithm {
            Some(algorithm) => Some(Algorithm::try_from(algorithm).ok()?),
            None => None,
        };
        let key = DecodingKey::from_jwk(&jwk).ok()?;
        let key = match (&jwk.algorithm, key.kind()) {
            (AlgorithmParameters::RSA(_), DecodingKeyKind::RsaModulusExponent { n, e }) => {
                let (n, e) = (without_leading_zeros(n), without_leading_zeros(e));
                // ring checks the rest.
                (n.len() >= 2048 / 8)
                    .then(|| Self::of(KeyKind::Rsa, DecodingKey::from_rsa_raw_components(n, e)))
            }
            (AlgorithmParameters::EllipticCurve(parameters), kind) => match parameters.curve {
                EllipticCurve::P256 => of_length(kind, 65).then(|| Self::of(KeyKind::P256, key)),
                EllipticCurve::P384 => of_length(kind, 97).then(|| Self::of(KeyKind::P384, key)),
                _ => None,
            },
            (AlgorithmParameters::OctetKeyPair(parameters), kind) => {
                let is_known = parameters.curve == EllipticCurve::Ed25519 && of_length(kind, 32);
                is_known.then(|| Self::of(KeyKind::Ed25519, key))
            }
            _ => None,
        }?;
        Some(Self {
            id: jwk.common.key_id.map(Into::into),
            own,
            ..key
        })
    }

    /// Returns the key of a `SubjectPublicKeyInfo` (RFC 5280), whose beginning is fixed for each
    /// type.
    fn from_spki(der: &[u8]) -> Option<Self> {
        if let Some(point) = rest_of(der, &ED25519_PREFIX, 32) {
            return Some(Self::of(KeyKind::Ed25519, DecodingKey::from_ed_der(point)));
        }
        if let Some(point) = rest_of(der, &P256_PREFIX, 65) {
            return Some(Self::of(KeyKind::P256, DecodingKey::from_ec_der(point)));
        }
        if let Some(point) = rest_of(der, &P384_PREFIX, 97) {
            return Some(Self::of(KeyKind::P384, DecodingKey::from_ec_der(point)));
        }
        // Every RSA key of 2048 to 8192 bits has lengths of two bytes.
        let [0x30, 0x82, _, _, rest @ ..] = der else {
            return None;
        };
        let [0x03, 0x82, _, _, 0, key @ ..] = rest.strip_prefix(&RSA_ALGORITHM)? else {
            return None;
        };
        (key.len() >= 2048 / 8).then(|| Self::of(KeyKind::Rsa, DecodingKey::from_rsa_der(key)))
    }

    /// Returns whether the key is one of this algorithm.
    pub(super) fn agrees_with(&self, algorithm: Algorithm) -> bool {
        use Algorithm as A;
        let is_of_kind = match self.kind {
            KeyKind::Secret => matches!(algorithm, A::HS256 | A::HS384 | A::HS512),
            KeyKind::Rsa => matches!(
                algorithm,
                A::RS256 | A::RS384 | A::RS512 | A::PS256 | A::PS384 | A::PS512
            ),
            KeyKind::P256 => algorithm == A::ES256,
            KeyKind::P384 => algorithm == A::ES384,
            KeyKind::Ed25519 => algorithm == A::EdDSA,
        };
        is_of_kind && self.own.is_none_or(|own| own == algorithm)
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }
}

/// `SEQUENCE { SEQUENCE { id-Ed25519 }, BIT STRING`, RFC 8410.
const ED25519_PREFIX: [u8; 12] = [
    0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00,
];

/// `SEQUENCE { SEQUENCE { id-ecPublicKey, secp256r1 }, BIT STRING`, RFC 5480.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// `SEQUENCE { SEQUENCE { id-ecPublicKey, secp384r1 }, BIT STRING`, RFC 5480.
const P384_PREFIX: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b,
    0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00,
];

/// `SEQUENCE { rsaEncryption, NULL }`, RFC 3279.
const RSA_ALGORITHM: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];

fn rest_of<'d>(der: &'d [u8], prefix: &[u8], length: usize) -> Option<&'d [u8]> {
    der.strip_prefix(prefix).filter(|rest| rest.len() == length)
}

fn of_length(key: &DecodingKeyKind, length: usize) -> bool {
    matches!(key, DecodingKeyKind::SecretOrDer(bytes) if bytes.len() == length)
}

/// Some issuers encode integers with a sign byte; ring rejects it.
fn without_leading_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}
