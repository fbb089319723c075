//! Routes that authenticate their clients: tokens that the tests sign, over HTTP/1.1 and HTTP/2.

mod browser;
mod certificates;
mod claims;
mod event_names;
mod expiry;
mod failures;
mod forward;
mod grpc;
mod issuer;
mod key_attacks;
mod limits;
mod manual;
mod reload;
mod renewal;
mod requests;
mod revocation;
mod revoked_crowd;
mod tickets;
mod token;
mod token_attacks;
mod unavailable;
mod websocket;

use async_nats::jetstream::{self, stream};

use testkit::h2::{H2Client, H2Stream};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::{Builder, SseClient};

use token::{SECRET, Token};

/// Providers of every test: one with the usual checks, and one by a cookie of its own.
const PROVIDERS: &str = "  providers:
    - name: idp
      jwt:
        issuer: https://id.example.com
        audience: [sidestream]
        keys: { secret: \"${JWT_SECRET}\" }
        algorithms: [HS256]
        leeway: 0s
        from: [bearer, \"cookie:session\", \"query:access_token\"]
    - name: app
      jwt: { keys: { secret: \"${APP_SECRET}\" }, algorithms: [HS256], leeway: 0s, from: [\"cookie:app\"] }
";

/// Secret of the provider `app`.
const APP_SECRET: &str = "another secret of at least thirty-two bytes";

const ROUTES: &str = "routes:
  - path: /orders
    authenticate: [idp, app]
    sources: [{ stream: ORDERS, subjects: [\"orders.{claim.sub}.>\"] }]
  - path: /status
    authenticate: [idp]
    unauthenticated: status
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
  - path: /stream
    authenticate: [idp]
    unauthenticated: stream
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
  - path: /chosen
    authenticate: [idp]
    client: \"{claim.tenant.name}\"
    sources: [{ stream: ORDERS, subjects: [\"{query.subject}\"], allow: [\"orders.>\", \"{claim.subscribe}\"] }]
  - path: /open
    sources: [{ stream: ORDERS, subjects: [\"orders.>\"] }]
";

/// A nats-server with the JetStream stream ORDERS, and a sidecar.
struct Fixture {
    sidestream: Sidestream,
    nats: Nats,
    jetstream: jetstream::Context,
}

impl Fixture {
    async fn start() -> Self {
        Self::with(ROUTES, "").await
    }

    /// Starts with these routes and further keys of `authentication`.
    async fn with(routes: &str, authentication: &str) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let orders = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into(), "users.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(orders).await.unwrap();
        let text = text(&nats, routes, authentication);
        let sidestream = Sidestream::builder(text)
            .env("JWT_SECRET", SECRET)
            .env("APP_SECRET", APP_SECRET)
            .start()
            .await;
        Self {
            sidestream,
            nats,
            jetstream,
        }
    }

    fn get(&self, path: &str) -> Builder {
        SseClient::get(self.sidestream.url(path))
    }

    /// Opens an event stream with a token; returns when it has its position.
    async fn open(&self, path: &str, token: &str) -> SseClient {
        let mut client = self
            .get(path)
            .header("Authorization", &bearer(token))
            .connect()
            .await;
        assert_eq!(client.status(), 200, "{:?}", client.headers());
        client.positioned().await;
        client
    }

    async fn publish(&self, subject: &'static str, data: impl Into<String>) {
        let published = self.jetstream.publish(subject, data.into().into());
        published.await.unwrap().await.unwrap();
    }
}

fn text(nats: &Nats, routes: &str, authentication: &str) -> String {
    config(
        nats,
        &format!("authentication:\n{authentication}{PROVIDERS}{routes}"),
    )
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Opens an event stream of an HTTP/2 connection with a token.
async fn open_h2(connection: &mut H2Client, path: &str, token: &str) -> H2Stream {
    let bearer = bearer(token);
    let headers = [
        ("accept", "text/event-stream"),
        ("authorization", bearer.as_str()),
    ];
    let mut stream = connection.request("GET", path, &headers).await;
    assert_eq!(stream.status(), 200, "{:?}", stream.headers());
    stream.positioned().await;
    stream
}

/// Token of a subject that the provider `idp` accepts.
fn token(subject: &str) -> String {
    Token::of(subject).signed()
}

#[test]
fn configurations_of_the_manual_are_valid() {
    let page = include_str!("../../docs/authentication.md");
    let environment = |name: &str| (name == "JWT_SECRET").then(|| SECRET.to_owned());
    let examples: Vec<_> = page
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert!(examples.len() >= 6);
    for text in examples {
        if let Err(problems) = sidestream::config::parse(text, "manual", &environment) {
            panic!("{problems}\n{text}");
        }
    }
}
