//! From the tree to the configuration: every key, its type, its default, and what must hold between keys.

mod cors;
mod limits;
mod nats;
mod routes;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::Config;
use super::problem::Mark;
use super::walk::{Keys, Place};
use crate::http::config::ForwardedHeader;
use crate::lifecycle::drain;
use crate::net::{ListenConfig, TlsConfig};
use crate::presence::{self, BucketName};
use crate::telemetry::{self, logs};
use crate::{admin, http};
use limits::Limits;

/// 64 listeners: each is bound once for every core, and has a file descriptor for each.
const LISTENERS_MAX: usize = 64;

/// Reads the whole file. What comes back is only good when nothing was reported.
pub(super) fn config(root: &Place<'_>) -> Option<Config> {
    root.map(|keys| {
        keys.later(&["upstream"]);
        let default = Config::default();
        let listen = keys.get("listen", |place| place.some_of(LISTENERS_MAX, listener));
        let admin = keys.or("admin", default.admin, admin);
        let listen = match listen {
            Some(listen) => apart(keys, listen, admin.address),
            None => default.listen,
        };
        let nats = keys.or("nats", default.nats, nats::nats);
        let routes = keys.require("routes", routes::routes).unwrap_or_default();
        let limits = keys.or("limits", Limits::default(), limits::limits);
        Some(Config {
            listen,
            admin,
            nats,
            http: http::Config {
                routes,
                connections_max: limits.connections_max,
                per_client: limits.per_client,
                subjects_per_request_max: limits.subjects_per_request_max,
                trusted_proxies: keys
                    .or("trusted_proxies", Vec::new(), |place| place.list(network)),
                forwarded_header: keys.or(
                    "forwarded_header",
                    default.http.forwarded_header,
                    |place| place.one_of(&ForwardedHeader::ALL),
                ),
            },
            window_bytes_max: limits.window_bytes_max,
            feeds_max: limits.feeds_max,
            file_descriptors: limits.file_descriptors,
            replays: limits.replays,
            drain: keys.or("drain", default.drain, drain),
            presence: keys.or("presence", default.presence, presence),
            log: keys.or("log", default.log, log),
        })
    })
}

fn listener(place: &Place<'_>) -> Option<(Mark, ListenConfig)> {
    place.map(|keys| {
        let address = keys.require("address", address);
        let tls = keys.nullable("tls", None, tls);
        Some((
            keys.at("address"),
            ListenConfig {
                address: address?,
                tls,
            },
        ))
    })
}

fn tls(place: &Place<'_>) -> Option<TlsConfig> {
    place.map(|keys| {
        let certificate = keys.require("certificate", Place::file);
        let key = keys.require("key", Place::file);
        let client_ca = keys.nullable("client_ca", None, Place::file);
        Some(TlsConfig {
            certificate: certificate?,
            key: key?,
            client_ca,
        })
    })
}

fn address(place: &Place<'_>) -> Option<SocketAddr> {
    place.parsed("an address", |text| {
        text.parse().map_err(
            |_| "an address is an IP address and a port, such as `0.0.0.0:8080` or `[::]:8080`",
        )
    })
}

/// The listeners, when no two of them, nor the admin side, want the same port.
fn apart(
    keys: &Keys<'_>,
    listen: Vec<(Mark, ListenConfig)>,
    admin: SocketAddr,
) -> Vec<ListenConfig> {
    for (index, (at, one)) in listen.iter().enumerate() {
        if let Some((first, _)) = listen[..index]
            .iter()
            .find(|(_, other)| clash(one.address, other.address))
        {
            keys.problem_at(
                *at,
                format!(
                    "the listener of line {} has this address already",
                    first.line
                ),
                None,
            );
        }
        if clash(one.address, admin) {
            let hint = "clients never reach the admin side: give it another port";
            keys.problem_at(
                *at,
                format!("this is the address of `admin`, {admin}"),
                Some(hint),
            );
        }
    }
    listen.into_iter().map(|(_, listener)| listener).collect()
}

/// Whether the system would refuse the second of two addresses; port 0 is a free one each time.
fn clash(one: SocketAddr, two: SocketAddr) -> bool {
    let wild =
        one.is_ipv4() == two.is_ipv4() && (one.ip().is_unspecified() || two.ip().is_unspecified());
    one.port() != 0 && one.port() == two.port() && (one.ip() == two.ip() || wild)
}

fn admin(place: &Place<'_>) -> Option<admin::Config> {
    place.map(|keys| {
        let default = admin::Config::default();
        Some(admin::Config {
            address: keys.or("address", default.address, address),
            hosts: keys.or("hosts", default.hosts, |place| place.list(host_name)),
            control: keys.or("control", default.control, |place| place.auto_or(control)),
        })
    })
}

fn host_name(place: &Place<'_>) -> Option<String> {
    place.parsed("a host name", |text| {
        let is_of_a_name =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        match text.strip_suffix('.').unwrap_or(text) {
            "" => Err("a host name that is empty says nothing"),
            name if name.bytes().all(is_of_a_name) => Ok(name.to_owned()),
            _ => Err("a host name has letters, digits, `-`, `_` and dots, and no port"),
        }
    })
}

fn control(place: &Place<'_>) -> Option<PathBuf> {
    place.parsed("`auto` or a path", |text| match text.len() {
        0 => Err("a path that is empty says nothing"),
        // unix(7): `sun_path` has 108 bytes, the last of them 0.
        1..=107 => Ok(PathBuf::from(text)),
        _ => Err("the path of a unix socket has at most 107 bytes"),
    })
}

fn network(place: &Place<'_>) -> Option<IpNet> {
    place.parsed("a network", |text| {
        let one = |_| text.parse::<IpAddr>().map(IpNet::from);
        text.parse()
            .map(|net: IpNet| net.trunc())
            .or_else(one)
            .map_err(|_| "a network is written as `10.0.0.0/8` or `fd00::/8`")
    })
}

fn drain(place: &Place<'_>) -> Option<drain::Config> {
    place.map(|keys| {
        let default = drain::Config::default();
        let accept_for = keys.or("accept_for", default.accept_for, Place::duration);
        let spread = keys.or("spread", default.spread, Place::duration);
        let timeout = keys.or("timeout", default.timeout, Place::positive_duration);
        if timeout < accept_for + spread {
            let hint = "what has not ended by `timeout` is cut: leave some seconds after the two for clients to take what is pending";
            keys.problem("timeout", "`timeout` is shorter than `accept_for` and `spread` together", Some(hint));
        }
        let (retry_min, retry_max) = keys.or("retry", (default.retry_min, default.retry_max), drain_retry);
        Some(drain::Config { accept_for, spread, timeout, retry_min, retry_max })
    })
}

fn drain_retry(place: &Place<'_>) -> Option<(std::time::Duration, std::time::Duration)> {
    place.map(|keys| {
        let default = drain::Config::default();
        let min = keys.or("min", default.retry_min, Place::positive_duration);
        let max = keys.or("max", default.retry_max, Place::positive_duration);
        if min > max {
            keys.problem(
                "min",
                "`min` is longer than `max`",
                Some("clients wait for a time drawn from between the two"),
            );
        }
        Some((min, max))
    })
}

fn presence(place: &Place<'_>) -> Option<presence::Config> {
    place.map(|keys| {
        let default = presence::Config::default();
        let bucket = |place: &Place<'_>| place.parsed("the name of a bucket", BucketName::parse);
        let bucket = keys.nullable("bucket", None, bucket);
        let max_bytes = keys.or("max_bytes", default.max_bytes, |place| {
            Some(place.positive_size()? as u64)
        });
        if max_bytes < presence::Config::MAX_BYTES_MIN {
            keys.problem(
                "max_bytes",
                "the bucket would have room for a few clients only",
                Some("at least 64KiB"),
            );
        }
        Some(presence::Config { bucket, max_bytes })
    })
}

fn log(place: &Place<'_>) -> Option<logs::Config> {
    place.map(|keys| {
        let default = logs::Config::default();
        let formats = [("json", logs::Format::Json), ("text", logs::Format::Text)];
        Some(logs::Config {
            format: keys.or("format", default.format, |place| place.one_of(&formats)),
            filter: keys.or("filter", default.filter, filter),
        })
    })
}

fn filter(place: &Place<'_>) -> Option<String> {
    let text = place.text()?;
    let Err(invalid) = telemetry::filter::filter(&text) else {
        return Some(text);
    };
    let meant = invalid
        .meant()
        .map(|level| format!("did you mean `{level}`?"));
    let hint = meant.as_deref().filter(|_| !place.is_filled());
    let filled = place
        .is_filled()
        .then_some("its value came from the environment and is not shown");
    place.problem(invalid.explain(), hint.or(filled));
    None
}
