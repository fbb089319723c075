//! Security schemes: the places in which the authentication providers look for credentials.

use serde_json::{Map, Value, json};

use super::names::{CLIENT_CERTIFICATE, id, reference};
use crate::auth::config::{JwtConfig, KeysConfig, ProviderConfig, ProviderKind, TokenSource};
use crate::config::Config;
use crate::http::RouteConfig;
use crate::http::config::TICKET_QUERY;

/// Name of the scheme of tickets.
const TICKET: &str = "ticket";

/// Returns the schemes of all providers that a route uses, of tickets, and of client certificates.
pub(super) fn schemes(config: &Config) -> Map<String, Value> {
    let mut schemes = Map::new();
    let providers = config.authentication.providers.iter();
    for provider in providers.filter(|provider| is_used(config, provider)) {
        schemes.extend(of_provider(provider));
    }
    if let Some(tickets) = &config.http.tickets {
        let path = tickets.path.as_str();
        let description =
            format!("A ticket for one event stream. POST {path} with credentials returns one.");
        schemes.insert(
            TICKET.to_owned(),
            api_key("query", TICKET_QUERY, &description),
        );
    }
    if config
        .listen
        .iter()
        .any(|listener| listener.has_client_ca())
    {
        let description = "Every connection needs a client certificate.";
        schemes.insert(
            CLIENT_CERTIFICATE.to_owned(),
            json!({ "type": "X509", "description": description }),
        );
    }
    schemes
}

/// Returns the credentials of which a client of the route needs one; none on an anonymous route.
pub(super) fn of_route(config: &Config, route: &RouteConfig) -> Vec<Value> {
    let named = |name: &str| {
        let mut providers = config.authentication.providers.iter();
        providers.find(|provider| *provider.name == *name)
    };
    let used = route.authenticate.iter().filter_map(|name| named(name));
    let mut names: Vec<String> = used.flat_map(of_provider).map(|(name, _)| name).collect();
    let sells_ticket = |provider| route.authenticate.contains(provider);
    let mut tickets = config.http.tickets.iter();
    if tickets.any(|tickets| tickets.authenticate.iter().any(sells_ticket)) {
        names.push(TICKET.to_owned());
    }
    let names = names.iter();
    let references = names.map(|name| reference(&["components", "securitySchemes", name]));
    references.collect()
}

fn is_used(config: &Config, provider: &ProviderConfig) -> bool {
    let mut routes = config.http.routes.iter();
    routes.any(|route| route.authenticate.contains(&provider.name))
}

/// Returns the schemes of a provider: one for each place of its credentials.
fn of_provider(provider: &ProviderConfig) -> Vec<(String, Value)> {
    let name = id(&provider.name);
    match &provider.kind {
        ProviderKind::Jwt(config) => {
            let places = config.from.iter();
            let scheme = |place| {
                let (suffix, scheme) = of_token(config, place);
                (format!("{name}.{suffix}"), scheme)
            };
            places.map(scheme).collect()
        }
        ProviderKind::Certificate => vec![(
            name,
            json!({ "type": "X509", "description": "A client certificate." }),
        )],
        ProviderKind::Forward(config) => {
            let fields = config.send.iter();
            let scheme = |field: &hyper::header::HeaderName| {
                let description = "An endpoint of the application checks the field.";
                let scheme = api_key("header", field.as_str(), description);
                (format!("{name}.{}", id(field.as_str())), scheme)
            };
            fields.map(scheme).collect()
        }
    }
}

fn of_token(config: &JwtConfig, place: &TokenSource) -> (String, Value) {
    let issuer = config.issuer.as_deref();
    let of = issuer.map_or_else(String::new, |issuer| format!(" of {issuer}"));
    let description = format!("A JSON Web Token{of}.");
    match (place, &config.keys) {
        (TokenSource::Bearer, KeysConfig::Discovery { issuer, .. }) => {
            let issuer = issuer.trim_end_matches('/');
            let url = format!("{issuer}/.well-known/openid-configuration");
            let scheme = json!({
                "type": "openIdConnect",
                "openIdConnectUrl": url,
                "description": description,
            });
            ("bearer".to_owned(), scheme)
        }
        (TokenSource::Bearer, _) => {
            let scheme = json!({
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": description,
            });
            ("bearer".to_owned(), scheme)
        }
        (TokenSource::Cookie(name), _) => {
            let scheme = api_key("cookie", name, &description);
            (format!("cookie.{}", id(name)), scheme)
        }
        (TokenSource::Query(name), _) => {
            let scheme = api_key("query", name, &description);
            (format!("query.{}", id(name)), scheme)
        }
    }
}

fn api_key(place: &str, name: &str, description: &str) -> Value {
    json!({ "type": "httpApiKey", "in": place, "name": name, "description": description })
}
