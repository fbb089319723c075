//! Parses the value of one annotation.
//!
//! An error is the rest of a sentence that begins with the value, such as `"x" is no port: 1 to
//! 65535`. The rules are those of Kubernetes or of the sidecar, so that a pod with accepted values
//! starts.

use std::cmp::Ordering;
use std::time::Duration;

use sidestream_common::log_filter::filter;

/// One day, far below the largest termination grace period.
const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);

/// Kind of the sidecar's container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Container {
    /// Init container with the restart policy `Always` (Kubernetes 1.29).
    Native,
    /// Ordinary container, for older clusters.
    Plain,
}

/// Scheme of the probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Clear text.
    Http,
    /// TLS. The kubelet verifies no certificate.
    Https,
}

/// Parses a duration such as `250ms`, `15s`, `2m` or `1h`, as in the configuration.
///
/// # Errors
/// The rest of a sentence that begins with the text.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("is no duration: a whole number with `ms`, `s`, `m` or `h`"),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "is no duration: a whole number with `ms`, `s`, `m` or `h`")?;
    let duration = Duration::from_millis(number.saturating_mul(factor));
    if duration > DURATION_MAX {
        Err("is longer than a day")
    } else {
        Ok(duration)
    }
}

pub(super) fn port(text: &str) -> Result<u16, &'static str> {
    let wrong = "is no port: 1 to 65535";
    // `parse` accepts a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong);
    }
    text.parse().ok().filter(|port| *port > 0).ok_or(wrong)
}

/// Port of a container: its number or its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PortReference {
    /// Number.
    Number(u16),
    /// Name in `ports` of a container.
    Name(String),
}

impl PortReference {
    /// Parses a number, or a name by the rules of Kubernetes (`IANA_SVC_NAME`).
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        if let Ok(number) = port(text) {
            return Ok(Self::Number(number));
        }
        let has_letter = text.bytes().any(|byte| byte.is_ascii_lowercase());
        let fits = text.len() <= 15 && !text.contains("--") && !text.contains('.');
        if fits && has_letter && is_object_name(text) {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err("is neither a port (1 to 65535) nor the name of a container port")
        }
    }
}

pub(super) fn container(text: &str) -> Result<Container, &'static str> {
    match text {
        "native" => Ok(Container::Native),
        "plain" => Ok(Container::Plain),
        _ => Err("is neither `native` nor `plain`"),
    }
}

pub(super) fn scheme(text: &str) -> Result<Scheme, &'static str> {
    match text {
        "http" => Ok(Scheme::Http),
        "https" => Ok(Scheme::Https),
        _ => Err("is neither `http` nor `https`"),
    }
}

pub(super) fn pull_policy(text: &str) -> Result<String, &'static str> {
    match text {
        "Always" | "IfNotPresent" | "Never" => Ok(text.to_owned()),
        _ => Err("is not `Always`, `IfNotPresent` or `Never`"),
    }
}

pub(super) fn image(text: &str) -> Result<String, &'static str> {
    let fits =
        !text.is_empty() && text.len() <= 1024 && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits {
        Ok(text.to_owned())
    } else {
        Err("is no image")
    }
}

/// Filter of the sidecar's log. An unknown word would silence it.
pub(super) fn log_level(text: &str) -> Result<String, &'static str> {
    match filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(
            "is neither a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) nor directives such as \
                       `info,sidestream::http=debug`",
        ),
    }
}

/// Name of a ConfigMap or a Secret: a DNS subdomain (RFC 1123).
pub(super) fn object_name(text: &str) -> Result<String, &'static str> {
    if is_object_name(text) {
        Ok(text.to_owned())
    } else {
        Err("is no name of an object")
    }
}

/// Returns whether a text is a DNS subdomain (RFC 1123).
pub(crate) fn is_object_name(text: &str) -> bool {
    let part = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        !part.is_empty()
            && part.bytes().all(inner)
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(part)
}

pub(super) fn nats_url(text: &str) -> Result<String, &'static str> {
    let host = text
        .split_once("://")
        .filter(|(scheme, _)| matches!(*scheme, "nats" | "tls"));
    match host {
        Some((_, host)) if !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Ok(text.to_owned())
        }
        _ => Err("is no address such as `nats://nats:4222`"),
    }
}

/// Quantity of Kubernetes: `50m`, `128Mi`, `0.5`.
#[derive(Clone, Debug)]
pub(crate) struct Quantity {
    text: String,
    /// Value in thousandths.
    milli: f64,
}

impl Quantity {
    /// Parses a quantity above zero.
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let wrong = "is no amount such as `50m`, `0.5` or `128Mi`";
        let digits = text
            .bytes()
            .take_while(|byte| byte.is_ascii_digit() || *byte == b'.')
            .count();
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "m" => 1e-3,
            "" => 1.0,
            "k" => 1e3,
            "M" => 1e6,
            "G" => 1e9,
            "T" => 1e12,
            "Ki" => 1024.0,
            "Mi" => 1_048_576.0,
            "Gi" => 1_073_741_824.0,
            "Ti" => 1_099_511_627_776.0,
            _ => return Err(wrong),
        };
        let number: f64 = number.parse().map_err(|_| wrong)?;
        let milli = number * factor * 1e3;
        if milli >= 1.0 {
            Ok(Self {
                text: text.to_owned(),
                milli,
            })
        } else {
            Err(wrong)
        }
    }

    /// Built-in quantity.
    pub(super) fn own(text: &str) -> Self {
        Self::parse(text).unwrap_or_else(|_| Self {
            text: text.to_owned(),
            milli: 0.0,
        })
    }

    /// Text as it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        self.milli.partial_cmp(&other.milli)
    }
}
