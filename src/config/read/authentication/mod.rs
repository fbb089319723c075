//! Reads `authentication:`: the providers that routes can name, one file per kind.

mod certificate;
mod checks;
mod forward;
mod jwt;
pub(super) mod tickets;

use std::cell::Cell;
use std::time::Duration;

use crate::auth::config::{
    Config, ProviderConfig, ProviderKind, RevocationsConfig, TokenSource, WhenUnavailable,
};
use crate::config::location::Location;
use crate::config::read::routes::KnownProviders;
use crate::config::reader::ValueReader;
use crate::config::reader::map::MapReader;
use crate::http;
use crate::http::config::TICKET_QUERY;
use crate::subject::BucketName;
use checks::report_unless_one;
use tickets::LocatedTickets;

/// 32 providers: each fetches its keys by itself.
const PROVIDERS_MAX: usize = 32;

/// Values of `authentication`.
pub(super) struct Authentication {
    pub(super) config: Config,
    pub(super) renew_before: Duration,
    /// `None`: there are no tickets.
    pub(super) tickets: Option<LocatedTickets>,
    /// Every provider is valid.
    is_complete: bool,
}

impl Default for Authentication {
    fn default() -> Self {
        Self {
            config: Config::default(),
            renew_before: http::Config::default().renew_before,
            tickets: None,
            is_complete: true,
        }
    }
}

impl Authentication {
    /// Returns the names of the providers; `None` if one is invalid, so that routes that name it
    /// are not reported too.
    pub(super) fn names(&self) -> Option<Vec<&str>> {
        let providers = self.config.providers.iter();
        self.is_complete
            .then(|| providers.map(|provider| &*provider.name).collect())
    }

    /// Returns the names of the providers that need a client certificate.
    pub(super) fn names_of_certificates(&self) -> Vec<&str> {
        let providers = self.config.providers.iter();
        let certificates = providers.filter(|one| one.kind == ProviderKind::Certificate);
        certificates.map(|provider| &*provider.name).collect()
    }
}

pub(super) fn authentication(value: &ValueReader<'_>) -> Option<Authentication> {
    value.map(|keys| {
        let default = Authentication::default();
        let has_providers = keys.has("providers");
        let is_complete = Cell::new(true);
        let providers = keys.get("providers", |value| {
            let provider = |value: &ValueReader<'_>| {
                let provider = provider(value);
                is_complete.set(is_complete.get() && provider.is_some());
                provider
            };
            let providers = value.list_of(PROVIDERS_MAX, provider)?;
            for (index, (at, provider)) in providers.iter().enumerate() {
                let is_same = |(_, other): &&(_, ProviderConfig)| other.name == provider.name;
                if let Some((first, _)) = providers[..index].iter().find(is_same) {
                    let message = format!("the provider in line {} has the same name", first.line);
                    value.error_at(*at, message, None);
                }
            }
            Some(providers)
        });
        let is_complete = is_complete.get() && providers.is_some() == has_providers;
        let providers = providers.unwrap_or_default();
        let names: Vec<&str> = providers.iter().map(|(_, one)| &*one.name).collect();
        let names = is_complete.then_some(&*names);
        let known = KnownProviders {
            names,
            without_listener: &[],
        };
        let tickets = keys.get("tickets", |value| tickets::tickets(value, known));
        if tickets.is_some() {
            report_tokens_in_tickets(value, &providers);
        }
        let providers = providers.into_iter();
        let revocations = keys.get_or("revocations", default.config.revocations, revocations);
        let renew_before = keys.get_or("renew_before", default.renew_before, ValueReader::duration);
        Some(Authentication {
            config: Config {
                providers: providers.map(|(_, provider)| provider).collect(),
                revocations,
            },
            renew_before,
            tickets,
            is_complete,
        })
    })
}

pub(super) fn revocations(value: &ValueReader<'_>) -> Option<RevocationsConfig> {
    value.map(|keys| {
        let bucket =
            |value: &ValueReader<'_>| value.parsed("the name of a bucket", BucketName::parse);
        Some(RevocationsConfig {
            bucket: keys.nullable("bucket", None, bucket),
            when_unavailable: keys.get_or(
                "when_unavailable",
                WhenUnavailable::default(),
                |value| value.one_of(&WhenUnavailable::NAMES),
            ),
        })
    })
}

/// Reports providers that look for a token where requests have a ticket.
fn report_tokens_in_tickets(value: &ValueReader<'_>, providers: &[(Location, ProviderConfig)]) {
    let is_ticket = |from: &TokenSource| *from == TokenSource::Query(TICKET_QUERY.to_owned());
    for (at, provider) in providers {
        if let ProviderKind::Jwt(jwt) = &provider.kind
            && jwt.from.iter().any(is_ticket)
        {
            let message = "this provider has `query:ticket`, which is the parameter of tickets";
            value.error_at(
                *at,
                message,
                Some("use another name, such as `query:access_token`"),
            );
        }
    }
}

fn provider(value: &ValueReader<'_>) -> Option<(Location, ProviderConfig)> {
    value.map(|keys| {
        let name = keys.require("name", name);
        let kind = kind(keys);
        let (name, kind) = (name?.into(), kind?);
        Some((keys.location("name"), ProviderConfig { name, kind }))
    })
}

/// Reads the one key that names the kind of a provider.
fn kind(keys: &mut MapReader<'_>) -> Option<ProviderKind> {
    let jwt = keys.get("jwt", jwt::jwt).map(ProviderKind::Jwt);
    let forward = keys.get("forward", forward::forward);
    let forward = forward.map(ProviderKind::Forward);
    let certificate = keys.get("certificate", certificate::certificate);
    let mut kinds = vec!["jwt", "forward", "certificate"];
    kinds.retain(|key| keys.has(key));
    let hint = "use one of `jwt`, `forward` and `certificate`";
    report_unless_one(keys, &kinds, "the provider has no kind", hint);
    jwt.or(forward).or(certificate)
}

fn name(value: &ValueReader<'_>) -> Option<String> {
    value.parsed("the name of a provider", |text| {
        let is_valid = (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        if is_valid {
            Ok(text.to_owned())
        } else {
            Err("the name of a provider has 1 to 64 letters, digits, `-`, `_` and dots")
        }
    })
}
