//! Credentials and TLS for NATS in `sidecar.yaml`, right and wrong.

use std::time::Duration;

use async_nats::ConnectOptions;
use nkeys::KeyPair;

use super::{ROUTES, open, until_reported};
use testkit::certs::Authority;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::wait::DEADLINE;

/// Configuration with only core subjects, and these keys under `nats:`.
fn text(nats: &Nats, keys: &str) -> String {
    let core = "routes:\n  - path: /core\n    sources: [{ subjects: [\"c.>\"] }]\n";
    assert!(ROUTES.contains("/core"), "the same route as elsewhere");
    config(nats, core).replace(
        &format!("servers: [\"{}\"]", nats.url()),
        &format!("servers: [\"{}\"]\n{keys}", nats.url()),
    )
}

/// Asserts that events arrive with the right keys, and that with wrong keys the pod runs, is not
/// ready and reports the reason.
async fn assert_access(
    nats: &Nats,
    options: ConnectOptions,
    right: &str,
    wrong: &str,
    words: &[&str],
) {
    let sidestream = Sidestream::builder(text(nats, right))
        .env("NATS_SECRET", "right")
        .start()
        .await;
    let mut client = open(&sidestream, "/core").await;
    let publisher = nats.client_with(options).await;
    publisher.publish("c.x", "through".into()).await.unwrap();
    assert_eq!(client.next().await.data, "through");

    let mut refused = Sidestream::builder(text(nats, wrong))
        .without_waiting()
        .start()
        .await;
    let why = until_reported(&refused, "nats", words).await;
    assert!(why.contains("127.0.0.1"), "which server: {why}");
    assert_eq!(refused.admin("/health/ready").await.0, 503);
    assert_eq!(refused.admin("/health/live").await.0, 200);
    assert!(refused.running());
    let told: Vec<_> = refused
        .output()
        .into_iter()
        .filter(|line| line.contains("wrong-secret"))
        .collect();
    assert!(told.is_empty(), "{told:?}");
    refused.terminate();
    assert_eq!(
        refused.wait_exit(DEADLINE + Duration::from_secs(10)).await,
        0
    );
}

#[tokio::test]
async fn a_user_with_a_password_from_the_environment_and_a_wrong_one() {
    let nats = Nats::builder()
        .config("authorization { user: app, password: right }")
        .start()
        .await;
    let options = ConnectOptions::with_user_and_password("app".into(), "right".into());
    let right = "  user: app\n  password: \"${NATS_SECRET}\"";
    let wrong = "  user: app\n  password: wrong-secret";
    assert_access(&nats, options, right, wrong, &["authorization violation"]).await;
}

#[tokio::test]
async fn a_token_and_a_wrong_one() {
    let nats = Nats::builder()
        .config("authorization { token: right }")
        .start()
        .await;
    let options = ConnectOptions::with_token("right".into());
    assert_access(
        &nats,
        options,
        "  token: right",
        "  token: wrong-secret",
        &["authorization violation"],
    )
    .await;
}

#[tokio::test]
async fn an_nkey_and_one_of_another_user() {
    let (pair, other) = (KeyPair::new_user(), KeyPair::new_user());
    let users = format!(
        "authorization {{ users: [{{ nkey: {} }}] }}",
        pair.public_key()
    );
    let nats = Nats::builder().config(&users).start().await;
    let options = ConnectOptions::with_nkey(pair.seed().unwrap());
    let (right, wrong) = (
        format!("  nkey: {}", pair.seed().unwrap()),
        format!("  nkey: {}", other.seed().unwrap()),
    );
    assert_access(&nats, options, &right, &wrong, &["authorization violation"]).await;
}

#[tokio::test]
async fn tls_with_a_client_certificate_and_with_an_unknown_authority() {
    let (authority, other) = (Authority::new(), Authority::new());
    let server = authority.server("nats");
    let tls = format!(
        "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
        server.certificate,
        server.key,
        authority.file()
    );
    let nats = Nats::builder().config(&tls).start().await;
    let ours = authority.client("sidestream");
    let options = ConnectOptions::new()
        .add_root_certificates(authority.file())
        .add_client_certificate(ours.certificate.clone(), ours.key.clone());
    let keys = |ca: &Authority| {
        format!(
            "  tls: {{ ca: {:?}, certificate: {:?}, key: {:?} }}",
            ca.file(),
            ours.certificate,
            ours.key
        )
    };
    assert_access(
        &nats,
        options,
        &keys(&authority),
        &keys(&other),
        &["certificate"],
    )
    .await;
}
