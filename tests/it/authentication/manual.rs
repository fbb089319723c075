//! Configurations of docs/authentication.md, run with issuers whose tokens have the form of those
//! products.

use std::fs;
use std::process::Command;

use serde_json::json;
use testkit::http1;
use testkit::nats::free_port;
use testkit::oidc::OidcIssuer;
use testkit::process::Process;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

use super::token::{SECRET, Token};
use super::{Fixture, bearer};

/// Page with the configurations.
const PAGE: &str = include_str!("../../../docs/authentication.md");

/// Returns the first configuration with this text.
pub(super) fn example(name: &str) -> &'static str {
    let examples = PAGE.split("```yaml\n").skip(1);
    let mut texts = examples.filter_map(|rest| rest.split("```").next());
    let found = texts.find(|text| text.contains(name));
    found.unwrap_or_else(|| panic!("the page has no configuration with {name:?}"))
}

/// Starts a sidecar with a configuration of the page, whose issuer has another host.
async fn start(fixture: &Fixture, name: &str, documented: &str, issuer: &str) -> Sidestream {
    let text = example(name);
    let line = format!("issuer: {documented}\n");
    assert!(text.contains(&line), "{text}");
    let text = text.replace(&line, &format!("issuer: {issuer}\n"));
    let config = testkit::sidestream::config(&fixture.nats, &text);
    let builder = Sidestream::builder(config).env("JWT_SECRET", SECRET);
    builder.start().await
}

/// Opens an event stream, publishes one event that is not for the client and one that is, and
/// returns the name of the client.
async fn reads(
    fixture: &Fixture,
    sidestream: &Sidestream,
    path: &str,
    token: &str,
    subject: &str,
) -> String {
    let mut client = SseClient::get(sidestream.url(path))
        .header("Authorization", &bearer(token))
        .connect()
        .await;
    assert_eq!(client.status(), 200, "{:?}", client.headers());
    client.positioned().await;
    for (subject, data) in [("orders.another.paid", "another"), (subject, "own")] {
        let published = fixture.jetstream.publish(subject.to_owned(), data.into());
        published.await.unwrap().await.unwrap();
    }
    assert_eq!(client.next().await.data, "own");
    let connections = sidestream.admin_json("/connections").await;
    let name = connections["connections"][0]["client"].as_str();
    name.unwrap().to_owned()
}

/// Returns status and code of a rejected request.
async fn rejected(sidestream: &Sidestream, path: &str, token: &str) -> (u16, String) {
    let bearer = bearer(token);
    let headers = [("Authorization", bearer.as_str())];
    let answer = http1::request("GET", &sidestream.url(path), &headers).await;
    let answer = answer.unwrap();
    let code = answer.json()["error"]["code"].as_str().unwrap().to_owned();
    (answer.status, code)
}

#[tokio::test]
async fn configuration_for_a_shared_secret_reads_the_orders_of_the_subject() {
    let fixture = Fixture::start().await;
    let issuer = "https://shop.example.com";
    let sidestream = start(&fixture, "- name: app\n", issuer, issuer).await;
    let token = Token::of("42").claim("iss", issuer).signed();
    let name = reads(
        &fixture,
        &sidestream,
        "/events/orders",
        &token,
        "orders.42.paid",
    )
    .await;
    assert_eq!(name, "app:42");
}

#[tokio::test]
async fn configuration_with_filters_in_a_claim_reads_these_filters() {
    let fixture = Fixture::start().await;
    let issuer = "https://shop.example.com";
    let sidestream = start(&fixture, "{claim.subscribe}", issuer, issuer).await;
    let token = Token::of("42").claim("iss", issuer);
    let token = token.claim("subscribe", json!(["orders.42.>", "users.>"]));
    let token = token.signed();
    let path = "/events?subject=orders.42.%3E";
    reads(&fixture, &sidestream, path, &token, "orders.42.paid").await;
    for subject in ["orders.7.paid", "users.alice"] {
        let path = format!("/events?subject={subject}");
        let rejection = rejected(&sidestream, &path, &token).await;
        assert_eq!(rejection, (403, "subject_not_allowed".into()));
    }
}

#[tokio::test]
async fn configuration_for_keycloak_reads_the_orders_of_the_subject() {
    let issuer = OidcIssuer::start_at("/realms/shop").await;
    let fixture = Fixture::start().await;
    let documented = "https://id.example.com/realms/shop";
    let sidestream = start(&fixture, "- name: keycloak\n", documented, &issuer.url()).await;
    // An access token of a user, with an audience mapper.
    let subject = "0b1a4d2e-8f1c-4a5e-9d3b-7c6f5e4d3c2b";
    let claims = json!({
        "jti": "onrtro:5f3e", "aud": ["sidestream", "account"], "sub": subject,
        "typ": "Bearer", "azp": "shop-web", "sid": "9b2c", "acr": "1",
        "allowed-origins": ["https://shop.example.com"],
        "realm_access": { "roles": ["offline_access", "default-roles-shop"] },
        "resource_access": { "account": { "roles": ["view-profile"] } },
        "scope": "openid email profile", "email_verified": true, "name": "Alice A",
        "preferred_username": "alice", "email": "alice@example.com",
    });
    let token = issuer.token(300, &claims).await;
    let own = format!("orders.{subject}.paid");
    let name = reads(&fixture, &sidestream, "/events/orders", &token, &own).await;
    assert_eq!(name, "alice");

    // A federated user.
    let mut federated = claims.clone();
    federated["sub"] = "f:5d0c2a8e:jane.doe".into();
    let token = issuer.token(300, &federated).await;
    let rejection = rejected(&sidestream, "/events/orders", &token).await;
    assert_eq!(rejection, (400, "bad_variable".into()));

    // Without the audience mapper.
    let mut other = claims;
    other["aud"] = "account".into();
    let token = issuer.token(300, &other).await;
    let rejection = rejected(&sidestream, "/events/orders", &token).await;
    assert_eq!(rejection, (401, "invalid_token".into()));
}

#[tokio::test]
async fn configuration_for_auth0_reads_the_filters_of_a_claim() {
    let issuer = OidcIssuer::start_at("/").await;
    let fixture = Fixture::start().await;
    let sidestream = start(
        &fixture,
        "- name: auth0\n",
        "https://shop.eu.auth0.com/",
        &issuer.url(),
    )
    .await;
    let claims = json!({
        "https://events.example.com/subscribe": ["orders.42.>"],
        "sub": "auth0|507f1f77bcf86cd799439011",
        "aud": ["https://events.example.com", "https://shop.eu.auth0.com/userinfo"],
        "azp": "my_client_id", "scope": "openid profile", "gty": "password",
        "permissions": ["read:events"],
    });
    let token = issuer.token(300, &claims).await;
    let path = "/events?subject=orders.42.%3E";
    let name = reads(&fixture, &sidestream, path, &token, "orders.42.paid").await;
    assert_eq!(name, "auth0:auth0|507f1f77bcf86cd799439011");
    let rejection = rejected(&sidestream, "/events?subject=orders.7.%3E", &token).await;
    assert_eq!(rejection, (403, "subject_not_allowed".into()));
    // A subject that cannot be part of a NATS subject, and a filter that is a text.
    let mut enterprise = claims.clone();
    enterprise["sub"] = "samlp|acme|jane.doe@acme.example".into();
    enterprise["https://events.example.com/subscribe"] = "orders.43.>".into();
    let token = issuer.token(300, &enterprise).await;
    let path_43 = "/events?subject=orders.43.%3E";
    reads(&fixture, &sidestream, path_43, &token, "orders.43.paid").await;
    // A token that was requested without the audience of the API.
    let opaque = issuer.opaque_token().await;
    let rejection = rejected(&sidestream, path, &opaque).await;
    assert_eq!(rejection, (401, "invalid_token".into()));
    // A user without the claim.
    let mut other = claims;
    let members = other.as_object_mut().unwrap();
    members.remove("https://events.example.com/subscribe");
    let token = issuer.token(300, &other).await;
    let rejection = rejected(&sidestream, path, &token).await;
    assert_eq!(rejection, (403, "claim_missing".into()));
}

#[tokio::test]
async fn configuration_for_dex_reads_the_orders_of_the_subject() {
    let issuer = OidcIssuer::start_at("/dex").await;
    let fixture = Fixture::start().await;
    let sidestream = start(
        &fixture,
        "- name: dex\n",
        "https://dex.example.com/dex",
        &issuer.url(),
    )
    .await;
    // The subject is a base64url text of the user id and the connector.
    let subject = "CiQwOGE4Njg0Yi1kYjg4LTRiNzMtOTBhOS0zY2QxNjYxZjU0NjYSBWxvY2Fs";
    let claims = json!({
        "sub": subject, "aud": "shop-web", "at_hash": "q1_7c2Q9", "c_hash": "h0Q",
        "email": "alice@example.com", "email_verified": true, "groups": ["team:web"],
        "name": "alice", "nonce": "n-0S6",
        "federated_claims": { "connector_id": "local", "user_id": "08a8684b" },
    });
    let token = issuer.token(300, &claims).await;
    let own = format!("orders.{subject}.paid");
    let name = reads(&fixture, &sidestream, "/events/orders", &token, &own).await;
    assert_eq!(name, "alice@example.com");
}

/// Sessions of the application in the page.
const SESSIONS: &str = r#"
const sessions = new Map([
  ["s1", { user: "alice", tenant: "blue", expires: 4102444800 }],
  ["s2", { user: "eve", tenant: "red", expires: 4102444800 }],
]);
const mayRead = (session, uri) => session.user === "alice" && uri.startsWith("/events/orders");
"#;

#[tokio::test]
async fn endpoint_and_configuration_for_session_cookies_read_the_orders_of_the_user() {
    let fixture = Fixture::start().await;
    let scripts = PAGE.split("```js\n").skip(1);
    let mut scripts = scripts.filter_map(|rest| rest.split("```").next());
    let script = scripts.find(|text| text.contains("createServer")).unwrap();
    let port = free_port();
    let script = format!("{SESSIONS}{script}").replace("3000", &port.to_string());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoint.mjs");
    fs::write(&file, script).unwrap();
    let mut command = Command::new("node");
    command.arg(&file).env_remove("NODE_OPTIONS");
    let _endpoint = Process::spawn("endpoint.mjs", &mut command);
    let text = example("url: http://127.0.0.1:3000/authorize");
    let text = text.replace("3000", &port.to_string());
    let config = testkit::sidestream::config(&fixture.nats, &text);
    let sidestream = Sidestream::builder(config).start().await;

    let url = sidestream.url("/events/orders");
    let request = |session: &'static str| SseClient::get(&url).header("Cookie", session);
    eventually(DEADLINE, "the endpoint answers", async || {
        request("").connect().await.status() == 401
    })
    .await;
    let mut alice = request("a=1; __Host-session=s1").connect().await;
    assert_eq!(alice.status(), 200, "{:?}", alice.headers());
    alice.positioned().await;
    fixture.publish("orders.eve.paid", "another").await;
    fixture.publish("orders.alice.paid", "own").await;
    assert_eq!(alice.next().await.data, "own");
    assert_eq!(request("__Host-session=s2").connect().await.status(), 403);
}
