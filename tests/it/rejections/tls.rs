//! TLS on the wrong port, unknown protocols, and missing or wrong certificates.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::{Fixture, exchange, socket};
use testkit::certs::{Authority, Identity};
use testkit::h2::H2Client;
use testkit::sse::SseClient;
use testkit::transport::Connector;
use testkit::wait::{DEADLINE, within};

fn listen(server: &Identity, client_ca: Option<&Authority>) -> String {
    let ca = client_ca.map_or("null".to_owned(), |authority| {
        format!("{:?}", authority.file())
    });
    format!(
        "  - address: 127.0.0.1:0\n  - address: 127.0.0.1:0\n    tls: {{ certificate: {:?}, key: {:?}, client_ca: {ca} }}",
        server.certificate, server.key
    )
}

#[tokio::test]
async fn the_wrong_port_is_a_closed_connection_and_a_metric() {
    let authority = Authority::new();
    let fixture = Fixture::listening(&listen(&authority.server("server"), None), "").await;
    let (clear, tls) = (fixture.sidestream.url("/"), fixture.sidestream.url_tls("/"));

    let (on_clear, on_tls) = (
        fixture.refused("tls_on_clear_port").await,
        fixture.refused("tls_handshake").await,
    );
    let connector = Connector::default().tls(authority.trusting(&["http/1.1"]));
    let url = clear.replace("http:", "https:").parse().unwrap();
    let refused = within(
        DEADLINE,
        "TLS on the clear port ends",
        connector.connect(&url),
    )
    .await;
    assert!(refused.is_err());
    fixture.until_refused("tls_on_clear_port", on_clear).await;

    for bytes in [
        &b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        &[0x16, 3, 1, 0, 5, 1, 2, 3, 4, 5],
        &[0xff; 4096],
    ] {
        let answer = exchange(socket(&tls.replace("https", "http")).await, bytes).await;
        assert!(!answer.starts_with("HTTP"), "{answer}");
    }
    fixture.until_refused("tls_handshake", on_tls + 3.0).await;

    let mut client = SseClient::get(fixture.sidestream.url_tls("/orders/1"))
        .tls(authority.trusting(&[]))
        .connect()
        .await;
    assert_eq!(client.status(), 200, "without ALPN it is HTTP/1.1");
    client.positioned().await;
    let unknown = SseClient::get(fixture.sidestream.url_tls("/orders/1"))
        .tls(authority.trusting(&["spdy/3"]));
    assert!(
        unknown.try_connect().await.is_err(),
        "RFC 7301: no_application_protocol"
    );
    drop(client);
    fixture.finish().await;
}

#[tokio::test]
async fn with_a_client_authority_only_clients_with_its_certificates_are_served() {
    let (authority, other) = (Authority::new(), Authority::new());
    let fixture =
        Fixture::listening(&listen(&authority.server("server"), Some(&authority)), "").await;
    let url = fixture.sidestream.url_tls("/orders/1");
    let get = |config: Arc<ClientConfig>| {
        let url = url.clone();
        async move {
            // With TLS 1.3, a client learns of its rejection at its first read.
            let client = SseClient::get(url).tls(config).try_connect().await?;
            Ok::<_, std::io::Error>(client.status())
        }
    };
    let before = fixture.refused("tls_handshake").await;
    let protocols = &["http/1.1"];
    assert!(
        get(authority.trusting(protocols)).await.is_err(),
        "no certificate"
    );
    assert!(
        get(authority.trusting_as(protocols, &other.client("eve")))
            .await
            .is_err(),
        "another authority's"
    );
    let server_only = authority.server("not-a-client");
    assert!(
        get(authority.trusting_as(protocols, &server_only))
            .await
            .is_err(),
        "one for servers"
    );
    assert_eq!(
        get(authority.trusting_as(protocols, &authority.client("alice")))
            .await
            .unwrap(),
        200
    );
    fixture.until_refused("tls_handshake", before + 2.0).await;

    let config = authority.trusting_as(&["h2"], &authority.client("bob"));
    let mut client = H2Client::builder().tls(config).connect(&url).await;
    assert_eq!(client.get("/orders/1").await.status(), 200);
    drop(client);
    fixture.finish().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_handshake_leaks_nothing() {
    let authority = Authority::new();
    let fixture = Fixture::listening(&listen(&authority.server("server"), None), "").await;
    let connector = Connector::default().tls(authority.trusting(&["http/1.1"]));
    let url = fixture.sidestream.url_tls("/").parse().unwrap();
    for _ in 0..20 {
        let mut transport = connector.connect(&url).await.unwrap();
        transport
            .write_all(b"GET /orders/1 HTTP/1.1\r\nHost: x\r\n\r\n")
            .await
            .unwrap();
        let mut start = [0; 12];
        transport.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        transport.reset();
    }
    fixture.finish().await;
}
