//! `limits:`, what one pod takes on.

use std::num::NonZeroU32;

use crate::config::Config;
use crate::config::walk::Place;
use crate::feed::budget::feeds_of;
use crate::feed::replay;
use crate::http;
use crate::limit::{PerClient, Rate, Thresholds};

/// `limits:`, on its way to the parts of the configuration.
pub(super) struct Limits {
    pub(super) connections_max: Option<usize>,
    pub(super) per_client: PerClient,
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

pub(super) fn limits(place: &Place<'_>) -> Option<Limits> {
    place.map(|keys| {
        let default = Limits::default();
        let window_bytes_max = keys.or(
            "window_bytes",
            default.window_bytes_max,
            Place::positive_size,
        );
        let feeds_max = keys.or("feeds", None, |place| place.auto_or(Place::count));
        let feeds_max = feeds_max.unwrap_or_else(|| feeds_of(window_bytes_max));
        Some(Limits {
            connections_max: keys.or("connections", default.connections_max, Place::auto_or_count),
            file_descriptors: keys.or(
                "file_descriptors",
                default.file_descriptors,
                file_descriptors,
            ),
            window_bytes_max,
            feeds_max,
            per_client: keys.or("per_client", PerClient::among(feeds_max), |place| {
                per_client(place, feeds_max)
            }),
            subjects_per_request_max: keys.or(
                "subjects_per_request",
                default.subjects_per_request_max,
                Place::count,
            ),
            replays: keys.or("replays", default.replays, replays),
        })
    })
}

fn replays(place: &Place<'_>) -> Option<replay::ReplayLimits> {
    place.map(|keys| {
        let default = replay::ReplayLimits::default();
        Some(replay::ReplayLimits {
            running: keys.or("running", default.running, Place::count),
            queued: keys.or("queued", default.queued, Place::count),
        })
    })
}

fn per_client(place: &Place<'_>, feeds_max: usize) -> Option<PerClient> {
    place.map(|keys| {
        let PerClient {
            connections,
            filter_sets: auto,
            connects,
            events,
        } = PerClient::among(feeds_max);
        let filter_sets = keys.nullable("filter_sets", Some(None), |place| {
            place.auto_or(Place::count)
        });
        Some(PerClient {
            connections: keys.nullable("connections", connections, Place::count),
            filter_sets: filter_sets.and_then(|count| count.or(auto)),
            connects: keys.nullable("connects", connects, rate),
            events: keys.nullable("events", events, rate),
        })
    })
}

fn rate(place: &Place<'_>) -> Option<Rate> {
    place.map(|keys| {
        let rate = keys.require("rate", tokens);
        let burst = keys.require("burst", tokens);
        Some(Rate {
            rate: rate?,
            burst: burst?,
        })
    })
}

fn tokens(place: &Place<'_>) -> Option<NonZeroU32> {
    // A count is at most 1,000,000,000.
    place
        .count()
        .and_then(|count| NonZeroU32::new(u32::try_from(count).ok()?))
}

fn file_descriptors(place: &Place<'_>) -> Option<Thresholds> {
    place.map(|keys| {
        let default = Thresholds::default();
        let warn = keys.or("warn", default.warn, percent);
        let reject = keys.or("reject", default.reject, percent);
        if warn > reject {
            keys.problem(
                "warn",
                "`warn` is above `reject`",
                Some("operators are told before clients are refused"),
            );
        }
        Some(Thresholds { warn, reject })
    })
}

fn percent(place: &Place<'_>) -> Option<u8> {
    place.parsed("a share", |text| {
        let number = text
            .strip_suffix('%')
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
        let number = number
            .and_then(|digits| digits.parse().ok())
            .filter(|percent| (1..=100).contains(percent));
        number.ok_or("a share is a whole number from 1 to 100 and `%`, such as `80%`")
    })
}
