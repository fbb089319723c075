//! Bytes of a token: size, header, signature, claims as JSON.
//!
//! Nothing of a token is used before its signature is valid, except for the names of its algorithm
//! and its key.

use std::collections::HashSet;
use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::key_set::KeySet;

/// 16 KiB: twice the head that common servers accept.
const TOKEN_BYTES_MAX: usize = 16 << 10;

/// Reason why a token is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    /// The token is invalid; one sentence for the client.
    Invalid(&'static str),
    /// The keys do not have the key that the token names.
    UnknownKey,
}

/// Returns the claims of a token whose signature is valid by one of the keys.
///
/// # Errors
/// [`Rejected`]; the claims themselves are not checked.
pub(super) fn verified_claims(
    token: &str,
    keys: &KeySet,
    algorithms: &[Algorithm],
) -> Result<Map<String, Value>, Rejected> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(Rejected::Invalid("the token is longer than 16 KiB"));
    }
    let header =
        decode_header(token).map_err(|_| Rejected::Invalid("the token is not a signed JWT"))?;
    let algorithm = header.alg;
    if !algorithms.contains(&algorithm) {
        return Err(Rejected::Invalid(
            "the signature algorithm of the token is not accepted",
        ));
    }
    let candidates = keys.candidates(header.kid.as_deref());
    if candidates.is_empty() {
        return Err(Rejected::UnknownKey);
    }
    let mut rejected = Rejected::Invalid("the key of the token has another algorithm");
    for key in candidates
        .into_iter()
        .filter(|key| key.agrees_with(algorithm))
    {
        match decode::<Claims>(token, key.decoding(), &signature_only(algorithm)) {
            Ok(decoded) => return Ok(decoded.claims.0),
            Err(error) if *error.kind() == ErrorKind::InvalidSignature => {
                rejected = Rejected::Invalid("the signature of the token is invalid");
            }
            // Another key would not change it.
            Err(_) => return Err(Rejected::Invalid("the content of the token is invalid")),
        }
    }
    Err(rejected)
}

/// Checks of `jsonwebtoken` for one signature. The claims are checked in `claims`.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims = HashSet::new();
    validation.validate_exp = false;
    validation.validate_aud = false;
    validation
}

/// Claims of a token: an object without duplicate names at any level (RFC 7519, section 4).
struct Claims(Map<String, Value>);

impl<'t> Deserialize<'t> for Claims {
    fn deserialize<D: Deserializer<'t>>(deserializer: D) -> Result<Self, D::Error> {
        match StrictValue.deserialize(deserializer)? {
            Value::Object(claims) => Ok(Self(claims)),
            _ => Err(D::Error::custom("not an object")),
        }
    }
}

/// Reads a JSON value and rejects duplicate names. `serde_json` bounds the nesting.
#[derive(Clone, Copy)]
struct StrictValue;

impl<'t> DeserializeSeed<'t> for StrictValue {
    type Value = Value;

    fn deserialize<D: Deserializer<'t>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'t> Visitor<'t> for StrictValue {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'t>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'t>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = entries.next_key::<String>()? {
            let value = entries.next_value_seed(self)?;
            if object.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate name"));
            }
        }
        Ok(Value::Object(object))
    }
}
