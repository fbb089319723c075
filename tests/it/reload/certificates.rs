//! A renewed certificate: new connections use it, open ones remain.

use std::time::Duration;

use testkit::certs::Authority;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::transport::{Connector, Transport};
use testkit::wait::eventually;

/// Certificate that a new connection receives.
async fn served_certificate(sidestream: &Sidestream, authority: &Authority) -> Vec<u8> {
    let connector = Connector::default().tls(authority.trusting(&["http/1.1"]));
    let transport = connector
        .connect(&sidestream.url_tls("/").parse().unwrap())
        .await
        .unwrap();
    let Transport::Tls(tls) = transport else {
        panic!("an https address is TLS")
    };
    tls.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn new_connections_get_a_renewed_certificate_and_open_streams_remain() {
    let nats = Nats::start().await;
    let authority = Authority::new();
    let server = authority.server("server");
    let text = format!(
        "listen:\n  - address: 127.0.0.1:0\n    tls: {{ certificate: {:?}, key: {:?} }}\n  - address: 127.0.0.1:0\nadmin:\n  address: 127.0.0.1:0\n\
         nats:\n  servers: [\"{}\"]\nroutes:\n{}",
        server.certificate,
        server.key,
        nats.url(),
        super::route("/one", "one.>")
    );
    let sidestream = Sidestream::start(text).await;
    let mut client = SseClient::get(sidestream.url_tls("/one"))
        .tls(authority.trusting(&["http/1.1"]))
        .connect()
        .await;
    client.positioned().await;
    let before = served_certificate(&sidestream, &authority).await;

    // A certificate without its key, as between the replacement of two files: the old pair remains
    // in use.
    let key = std::fs::read(&server.key).unwrap();
    std::fs::write(
        &server.key,
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    )
    .unwrap();
    eventually(
        Duration::from_secs(10),
        "the invalid pair is reported",
        || async {
            sidestream
                .admin_json("/health")
                .await
                .to_string()
                .contains("certificate in use is kept")
        },
    )
    .await;
    assert_eq!(served_certificate(&sidestream, &authority).await, before);
    std::fs::write(&server.key, key).unwrap();
    authority.server("server");
    eventually(
        Duration::from_secs(10),
        "the renewed certificate is shown",
        || async { served_certificate(&sidestream, &authority).await != before },
    )
    .await;
    let health = sidestream.admin_json("/health").await;
    assert_eq!(health["status"], "ok", "{health}");
    super::publish_core(&nats, "one.a", "still open").await;
    assert_eq!(client.next().await.data, "still open");
}
