//! Reads `listen:`, and the addresses and TLS files of every port.

use std::net::SocketAddr;

use crate::config::location::Location;
use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::net::{ListenConfig, TlsConfig};

/// 64 listeners: each is bound once per core and needs a file descriptor for each core.
pub(super) const LISTENERS_MAX: usize = 64;

/// Reads one listener, with its location.
pub(super) fn listener(value: &ValueReader<'_>) -> Option<(Location, ListenConfig)> {
    value.map(|keys| {
        let address = keys.require("address", address);
        let tls = keys.nullable("tls", None, listener_tls);
        Some((
            keys.location("address"),
            ListenConfig {
                address: address?,
                tls,
            },
        ))
    })
}

/// Reads the files of a TLS listener for clients.
fn listener_tls(value: &ValueReader<'_>) -> Option<TlsConfig> {
    value.map(|keys| {
        let files = files(keys);
        let session_ticket_keys = keys.nullable("session_ticket_keys", None, ValueReader::file);
        Some(TlsConfig {
            session_ticket_keys,
            ..files?
        })
    })
}

/// Reads the files of a TLS listener without session tickets.
pub(super) fn tls(value: &ValueReader<'_>) -> Option<TlsConfig> {
    value.map(files)
}

fn files(keys: &mut MapReader<'_>) -> Option<TlsConfig> {
    let certificate = keys.require("certificate", ValueReader::file);
    let key = keys.require("key", ValueReader::file);
    let client_ca = keys.nullable("client_ca", None, ValueReader::file);
    Some(TlsConfig {
        certificate: certificate?,
        key: key?,
        client_ca,
        session_ticket_keys: None,
    })
}

/// Reads an IP address with a port.
pub(super) fn address(value: &ValueReader<'_>) -> Option<SocketAddr> {
    value.parsed("an address", |text| {
        text.parse().map_err(
            |_| "an address is an IP address and a port, such as `0.0.0.0:8080` or `[::]:8080`",
        )
    })
}

/// Returns the listeners, and reports those whose address is that of another listener or of the
/// admin port.
pub(super) fn distinct(
    keys: &MapReader<'_>,
    listen: Vec<(Location, ListenConfig)>,
    admin: SocketAddr,
) -> Vec<ListenConfig> {
    for (index, (at, one)) in listen.iter().enumerate() {
        if let Some((first, _)) = listen[..index]
            .iter()
            .find(|(_, other)| clash(one.address, other.address))
        {
            keys.error_at(
                *at,
                format!("the listener in line {} has the same address", first.line),
                None,
            );
        }
        if clash(one.address, admin) {
            let hint = "use another port: clients must not reach the admin port";
            keys.error_at(
                *at,
                format!("this is the address of `admin`, {admin}"),
                Some(hint),
            );
        }
    }
    listen.into_iter().map(|(_, listener)| listener).collect()
}

/// Returns whether binding the second of two addresses would fail. Port 0 is a different free port
/// each time.
fn clash(one: SocketAddr, two: SocketAddr) -> bool {
    let wild =
        one.is_ipv4() == two.is_ipv4() && (one.ip().is_unspecified() || two.ip().is_unspecified());
    one.port() != 0 && one.port() == two.port() && (one.ip() == two.ip() || wild)
}
