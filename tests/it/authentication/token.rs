//! JSON Web Tokens made by hand, so that they share no code with the product.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::hmac;
use serde_json::{Value, json};

/// Secret of the provider `idp`.
pub(super) const SECRET: &str = "a secret of at least thirty-two bytes, for HS256";

/// Token that is not signed yet.
pub(super) struct Token {
    header: Value,
    claims: Value,
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

impl Token {
    /// Token of a subject that is valid for an hour.
    pub(super) fn of(subject: &str) -> Self {
        Self {
            header: json!({ "alg": "HS256", "typ": "JWT" }),
            claims: json!({
                "iss": "https://id.example.com", "aud": "sidestream", "sub": subject,
                "iat": now(), "exp": now() + 3600,
            }),
        }
    }

    /// Adds or replaces a claim; null removes it.
    pub(super) fn claim(mut self, name: &str, value: impl Into<Value>) -> Self {
        let claims = self.claims.as_object_mut().unwrap();
        match value.into() {
            Value::Null => drop(claims.remove(name)),
            value => drop(claims.insert(name.into(), value)),
        }
        self
    }

    /// Expires this many seconds after now.
    pub(super) fn expires_in(self, seconds: i64) -> Self {
        let at = now().checked_add_signed(seconds).unwrap();
        self.claim("exp", at)
    }

    /// Replaces the algorithm in the header.
    pub(super) fn algorithm(mut self, name: &str) -> Self {
        self.header["alg"] = name.into();
        self
    }

    pub(super) fn signed(&self) -> String {
        self.signed_with(SECRET)
    }

    /// Signs with HMAC-SHA256, whatever the header says.
    pub(super) fn signed_with(&self, secret: &str) -> String {
        let encode = |part: &Value| BASE64.encode(part.to_string());
        let content = format!("{}.{}", encode(&self.header), encode(&self.claims));
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
        let signature = BASE64.encode(hmac::sign(&key, content.as_bytes()));
        format!("{content}.{signature}")
    }
}
