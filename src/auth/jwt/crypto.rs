//! Signature checks of `jsonwebtoken` by ring, the one cryptography provider of the process.
//!
//! `jsonwebtoken` takes its cryptography from a default of the process, which [`install`] sets.
//! This one checks signatures only: nothing here signs or makes keys (decision 0030).

use std::sync::LazyLock;

use jsonwebtoken::crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{ErrorKind, Result};
use jsonwebtoken::signature::{self, Verifier};
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, DecodingKeyKind, EncodingKey};
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};

use super::valid_signatures::{Checked, ValidSignatures};

/// Of all providers: `jsonwebtoken` makes a check for each token from this static factory.
static VALID: LazyLock<ValidSignatures> = LazyLock::new(ValidSignatures::default);

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: no_signer,
    verifier_factory: verifier,
    // Used only to convert private keys.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Makes ring the provider of `jsonwebtoken`. Idempotent.
pub(super) fn install() {
    // It is this one already.
    PROVIDER.install_default().unwrap_or(());
}

fn no_signer(_: &Algorithm, _: &EncodingKey) -> Result<Box<dyn JwtSigner>> {
    Err(ErrorKind::UnsupportedAlgorithm.into())
}

/// Returns the check of one signature. The family of the key decides: a public key is never used
/// as the secret of an HMAC.
fn verifier(algorithm: &Algorithm, key: &DecodingKey) -> Result<Box<dyn JwtVerifier>> {
    if key.family() != algorithm.family() {
        return Err(ErrorKind::InvalidAlgorithm.into());
    }
    Ok(Box::new(Check {
        algorithm: *algorithm,
        key: key.kind().clone(),
    }))
}

/// Check of a signature by one key.
struct Check {
    algorithm: Algorithm,
    key: DecodingKeyKind,
}

impl JwtVerifier for Check {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl Verifier<Vec<u8>> for Check {
    fn verify(
        &self,
        message: &[u8],
        signature: &Vec<u8>,
    ) -> std::result::Result<(), signature::Error> {
        let is_valid = match self.algorithm.family() {
            // As fast as a look into the set.
            AlgorithmFamily::Hmac => self.hmac(message, signature),
            AlgorithmFamily::Rsa => self.once(message, signature, Self::rsa),
            AlgorithmFamily::Ec | AlgorithmFamily::Ed => self.once(message, signature, Self::curve),
        };
        is_valid.ok_or_else(signature::Error::new)
    }
}

/// Each returns `Some` only if the signature is valid.
impl Check {
    /// Runs a check, unless it has succeeded before.
    fn once(
        &self,
        message: &[u8],
        signature: &[u8],
        check: fn(&Self, &[u8], &[u8]) -> Option<()>,
    ) -> Option<()> {
        let checked = Checked::new(self.algorithm, &self.key, message, signature);
        if !VALID.has(&checked) {
            check(self, message, signature)?;
            VALID.add(&checked);
        }
        Some(())
    }

    fn hmac(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        let DecodingKeyKind::SecretOrDer(secret) = &self.key else {
            return None;
        };
        let algorithm = match self.algorithm {
            Algorithm::HS256 => hmac::HMAC_SHA256,
            Algorithm::HS384 => hmac::HMAC_SHA384,
            Algorithm::HS512 => hmac::HMAC_SHA512,
            _ => return None,
        };
        hmac::verify(&hmac::Key::new(algorithm, secret), message, signature).ok()
    }

    fn rsa(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        let parameters: &'static RsaParameters = match self.algorithm {
            Algorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
            Algorithm::RS384 => &RSA_PKCS1_2048_8192_SHA384,
            Algorithm::RS512 => &RSA_PKCS1_2048_8192_SHA512,
            Algorithm::PS256 => &RSA_PSS_2048_8192_SHA256,
            Algorithm::PS384 => &RSA_PSS_2048_8192_SHA384,
            Algorithm::PS512 => &RSA_PSS_2048_8192_SHA512,
            _ => return None,
        };
        match &self.key {
            DecodingKeyKind::RsaModulusExponent { n, e } => RsaPublicKeyComponents { n, e }
                .verify(parameters, message, signature)
                .ok(),
            DecodingKeyKind::SecretOrDer(der) => UnparsedPublicKey::new(parameters, der)
                .verify(message, signature)
                .ok(),
        }
    }

    fn curve(&self, message: &[u8], signature: &[u8]) -> Option<()> {
        let DecodingKeyKind::SecretOrDer(point) = &self.key else {
            return None;
        };
        let algorithm: &'static dyn VerificationAlgorithm = match self.algorithm {
            Algorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
            Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED,
            Algorithm::EdDSA => &ED25519,
            _ => return None,
        };
        UnparsedPublicKey::new(algorithm, point)
            .verify(message, signature)
            .ok()
    }
}
