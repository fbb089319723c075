//! Reads `limits:`: the limits of one pod and of one client.

use super::per_client;
use crate::config::model::Config;
use crate::config::reader::ValueReader;
use crate::feed::budget::feeds_of;
use crate::feed::replay;
use crate::http;
use crate::limit::{PerClient, PerClientConfig, Thresholds};

/// Values of `limits:`, which the configuration has in several parts.
pub(super) struct Limits {
    pub(super) connections_max: Option<usize>,
    pub(super) per_client: PerClientConfig,
    pub(super) subjects_per_request_max: usize,
    pub(super) window_bytes_max: usize,
    pub(super) feeds_max: usize,
    pub(super) file_descriptors: Thresholds,
    pub(super) replays: replay::ReplayLimits,
}

impl Default for Limits {
    fn default() -> Self {
        let Config {
            http,
            window_bytes_max,
            feeds_max,
            file_descriptors,
            replays,
            ..
        } = Config::default();
        let http::Config {
            connections_max,
            per_client,
            subjects_per_request_max,
            ..
        } = http;
        Self {
            connections_max,
            per_client,
            subjects_per_request_max,
            window_bytes_max,
            feeds_max,
            file_descriptors,
            replays,
        }
    }
}

/// Reads the limits. `has_providers`: clients can have claims.
pub(super) fn limits(value: &ValueReader<'_>, has_providers: bool) -> Option<Limits> {
    value.map(|keys| {
        let default = Limits::default();
        let window_bytes_max = keys.get_or(
            "window_bytes",
            default.window_bytes_max,
            ValueReader::positive_size,
        );
        let feeds_max = keys.get_or("feeds", None, |value| value.auto_or(ValueReader::count));
        let feeds_max = feeds_max.unwrap_or_else(|| feeds_of(window_bytes_max));
        Some(Limits {
            connections_max: keys.get_or(
                "connections",
                default.connections_max,
                ValueReader::auto_or_count,
            ),
            file_descriptors: keys.get_or(
                "file_descriptors",
                default.file_descriptors,
                file_descriptors,
            ),
            window_bytes_max,
            feeds_max,
            per_client: keys.get_or("per_client", PerClient::among(feeds_max).into(), |value| {
                per_client::per_client(value, feeds_max, has_providers)
            }),
            subjects_per_request_max: keys.get_or(
                "subjects_per_request",
                default.subjects_per_request_max,
                ValueReader::count,
            ),
            replays: keys.get_or("replays", default.replays, replays),
        })
    })
}

fn replays(value: &ValueReader<'_>) -> Option<replay::ReplayLimits> {
    value.map(|keys| {
        let default = replay::ReplayLimits::default();
        Some(replay::ReplayLimits {
            running: keys.get_or("running", default.running, ValueReader::count),
            queued: keys.get_or("queued", default.queued, ValueReader::count),
        })
    })
}

fn file_descriptors(value: &ValueReader<'_>) -> Option<Thresholds> {
    value.map(|keys| {
        let default = Thresholds::default();
        let warn = keys.get_or("warn", default.warn, percent);
        let reject = keys.get_or("reject", default.reject, percent);
        if warn > reject {
            keys.error(
                "warn",
                "`warn` is above `reject`",
                Some("the warning must come before clients are rejected"),
            );
        }
        Some(Thresholds { warn, reject })
    })
}

fn percent(value: &ValueReader<'_>) -> Option<u8> {
    value.parsed("a share", |text| {
        let number = text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number
            .and_then(|digits| digits.parse().ok())
            .filter(|percent| (1..=100).contains(percent));
        number.ok_or("a share is a whole number from 1 to 100 and `%`, such as `80%`")
    })
}
