//! Claims of a token whose signature is valid: checks of issuer, audience, times and subject.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::auth::Identity;
use crate::auth::clock::Now;
use crate::auth::config::JwtConfig;

/// Checks the claims and returns the identity that they prove.
///
/// # Errors
/// One sentence for the client.
pub(super) fn identity(
    provider: &str,
    config: &JwtConfig,
    claims: Map<String, Value>,
    now: Now,
) -> Result<Identity, &'static str> {
    if let Some(issuer) = &config.issuer
        && claims.get("iss").and_then(Value::as_str) != Some(issuer)
    {
        return Err("the token has another issuer");
    }
    if !config.audience.is_empty() && !is_for(claims.get("aud"), &config.audience) {
        return Err("the token is for another audience");
    }
    // RFC 7519, section 4.1: a time that is missing is not checked.
    let latest = now.wall.saturating_add(config.leeway);
    let not_before = time(&claims, "nbf", "the `nbf` claim of the token is not a time")?;
    if not_before.is_some_and(|time| time > latest) {
        return Err("the token is not valid yet");
    }
    let issued = time(&claims, "iat", "the `iat` claim of the token is not a time")?;
    if issued.is_some_and(|time| time > latest) {
        return Err("the token was issued in the future");
    }
    let expires = time(&claims, "exp", "the `exp` claim of the token is not a time")?;
    if expires.is_some_and(|expires| expires.saturating_add(config.leeway) <= now.wall) {
        return Err("the token has expired");
    }
    let subject = match claims.get("sub").and_then(Value::as_str) {
        Some(subject) if !subject.is_empty() => subject.into(),
        _ => return Err("the token has no `sub` claim"),
    };
    Ok(Identity {
        provider: provider.into(),
        subject,
        expires: expires.and_then(|expires| now.expiry(expires, config.leeway)),
        claims,
    })
}

/// Returns whether an `aud` claim has one of these values.
fn is_for(claim: Option<&Value>, audience: &[String]) -> bool {
    let is_one = |value: &Value| {
        value
            .as_str()
            .is_some_and(|value| audience.iter().any(|one| one == value))
    };
    match claim {
        Some(Value::Array(values)) => values.iter().any(is_one),
        Some(value) => is_one(value),
        None => false,
    }
}

/// Returns a claim as the time since 1970, or `fault` if it is something else.
fn time(
    claims: &Map<String, Value>,
    name: &str,
    fault: &'static str,
) -> Result<Option<Duration>, &'static str> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    if let Some(seconds) = value.as_u64() {
        return Ok(Some(Duration::from_secs(seconds)));
    }
    let seconds = value.as_f64().ok_or(fault)?;
    Duration::try_from_secs_f64(seconds)
        .map(Some)
        .map_err(|_| fault)
}
