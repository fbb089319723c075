//! Client certificates as credentials, over HTTP/1.1 and HTTP/2.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use rustls::ClientConfig;
use serde_json::Value;

use super::token::{SECRET, now};
use super::{bearer, token};
use testkit::certs::{Authority, Identity, Workload};
use testkit::h2::H2Client;
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, run};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

const ROUTES: &str = "routes:
  - path: /workloads
    authenticate: [mesh]
    sources: [{ stream: WORKLOADS, subjects: [\"workloads.>\"] }]
  - path: /own
    authenticate: [mesh]
    client: \"{claim.subject}\"
    sources: [{ stream: WORKLOADS, subjects: [\"workloads.{claim.subject}.>\"] }]
  - path: /named
    authenticate: [mesh]
    sources: [{ stream: WORKLOADS, subjects: [\"{query.subject}\"], allow: [\"workloads.>\", \"{claim.san.dns}\"] }]
  - path: /list
    authenticate: [mesh]
    sources: [{ stream: WORKLOADS, subjects: [\"workloads.{claim.san.uri}.>\"] }]
  - path: /either
    authenticate: [mesh, idp]
    sources: [{ stream: WORKLOADS, subjects: [\"workloads.>\"] }]
  - path: /open
    sources: [{ stream: WORKLOADS, subjects: [\"workloads.>\"] }]
";

const SPIFFE_ID: &str = "spiffe://cluster.local/ns/shop/sa/billing";

/// Sidecar with a listener in clear text and one that requires certificates of an authority.
struct Mesh {
    sidestream: Sidestream,
    jetstream: jetstream::Context,
    authority: Authority,
    _nats: Nats,
}

impl Mesh {
    async fn start() -> Self {
        let listen = "listen:
  - address: 0.0.0.0:8080
  - address: 0.0.0.0:8443
    tls: { certificate: /tls/tls.crt, key: /tls/tls.key, client_ca: /tls/ca.crt }
authentication:
  renew_before: 2s
  providers:
    - { name: mesh, certificate: {} }
    - { name: idp, jwt: { keys: { secret: \"${JWT_SECRET}\" } } }
";
        Self::with(&format!("{listen}{ROUTES}"), &["workloads"]).await
    }

    /// Starts with a configuration that names files in `/tls`, and with JetStream streams.
    async fn with(text: &str, streams: &[&str]) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        for stream in streams {
            let config = stream::Config {
                name: stream.to_uppercase(),
                subjects: vec![format!("{stream}.>")],
                storage: stream::StorageType::Memory,
                ..Default::default()
            };
            jetstream.create_stream(config).await.unwrap();
        }
        let authority = Authority::new();
        let server = authority.server("server");
        let mut text = text.to_owned();
        for (documented, used) in [
            ("0.0.0.0:8080", "127.0.0.1:0"),
            ("0.0.0.0:8443", "127.0.0.1:0"),
            ("/tls/tls.crt", server.certificate.to_str().unwrap()),
            ("/tls/tls.key", server.key.to_str().unwrap()),
            ("/tls/ca.crt", authority.file().to_str().unwrap()),
        ] {
            assert!(text.contains(documented), "{documented} in {text}");
            text = text.replace(documented, used);
        }
        let servers = nats.url();
        let rest =
            format!("admin: {{ address: 127.0.0.1:0 }}\nnats: {{ servers: [\"{servers}\"] }}\n");
        let sidestream = Sidestream::builder(text + &rest)
            .env("JWT_SECRET", SECRET)
            .start()
            .await;
        Self {
            sidestream,
            jetstream,
            authority,
            _nats: nats,
        }
    }

    /// Configuration of a client with a certificate of this mesh.
    fn client(&self, protocol: &str, workload: Workload<'_>) -> Arc<ClientConfig> {
        let identity = self.authority.workload(workload.common_name, workload);
        self.authority.trusting_as(&[protocol], &identity)
    }

    fn billing(&self, protocol: &str) -> Arc<ClientConfig> {
        let workload = Workload {
            common_name: "billing",
            dns: &["workloads.billing.paid", "billing.shop.svc"],
            uri: &[SPIFFE_ID, "urn:second"],
            expires_in: None,
        };
        self.client(protocol, workload)
    }

    /// Sends a request over HTTP/1.1 with a certificate.
    async fn request(&self, path: &str, config: &Arc<ClientConfig>) -> SseClient {
        let url = self.sidestream.url_tls(path);
        SseClient::get(url).tls(Arc::clone(config)).connect().await
    }

    async fn publish(&self, subject: &'static str, data: &'static str) {
        let published = self.jetstream.publish(subject, data.into());
        published.await.unwrap().await.unwrap();
    }

    /// Returns the names of the clients with an open event stream.
    async fn clients(&self) -> Vec<String> {
        let list = self.sidestream.admin_json("/connections").await;
        let all = list["connections"].as_array().unwrap().iter();
        let names = all.map(|one| one["client"].as_str().unwrap().to_owned());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }
}

/// Waits for the position of an event stream.
async fn begun(mut client: SseClient) -> SseClient {
    assert_eq!(client.status(), 200, "{:?}", client.headers());
    client.positioned().await;
    client
}

fn code(body: &str) -> Value {
    serde_json::from_str::<Value>(body).unwrap()["error"]["code"].clone()
}

#[tokio::test]
async fn names_of_a_certificate_are_claims() {
    let mesh = Mesh::start().await;
    let config = mesh.billing("http/1.1");
    let mut all = begun(mesh.request("/workloads", &config).await).await;
    let mut own = begun(mesh.request("/own", &config).await).await;
    let mut connection = H2Client::builder()
        .tls(mesh.billing("h2"))
        .connect(mesh.sidestream.url_tls("/"))
        .await;
    let mut named = connection
        .get("/named?subject=workloads.billing.paid")
        .await;
    assert_eq!(named.status(), 200, "{:?}", named.headers());
    named.positioned().await;
    let by_uri = format!("mesh:{SPIFFE_ID}");
    assert_eq!(mesh.clients().await, ["CN=billing", &by_uri, &by_uri]);

    mesh.publish("workloads.CN=billing.paid", "1").await;
    mesh.publish("workloads.billing.paid", "2").await;
    mesh.publish("workloads.CN=other.paid", "3").await;
    mesh.publish("workloads.CN=billing.paid", "4").await;
    for data in ["1", "2", "3", "4"] {
        assert_eq!(all.next().await.data, data);
    }
    assert_eq!(own.next().await.data, "1");
    assert_eq!(own.next().await.data, "4");
    assert_eq!(named.next().await.data, "2");

    for (path, expected) in [
        ("/named?subject=workloads.other.paid", "subject_not_allowed"),
        (
            "/named?subject=workloads.billing.%3E",
            "subject_not_allowed",
        ),
        ("/named?subject=billing.shop.svc", "subject_not_allowed"),
        ("/list", "claim_missing"),
    ] {
        let mut rejected = mesh.request(path, &config).await;
        assert_eq!(rejected.status(), 403, "{path}");
        assert_eq!(code(&rejected.body().await), expected, "{path}");
        let mut rejected = connection.get(path).await;
        assert_eq!(rejected.status(), 403, "{path}");
        assert_eq!(code(&rejected.body().await), expected, "{path}");
    }
}

#[tokio::test]
async fn only_a_verified_certificate_of_the_connection_counts() {
    let mesh = Mesh::start().await;
    let other = Authority::new();
    let stranger = other.workload(
        "billing",
        Workload {
            common_name: "billing",
            uri: &[SPIFFE_ID],
            ..Workload::default()
        },
    );
    let refused = async |identity: &Identity| {
        let url = mesh.sidestream.url_tls("/workloads");
        let config = mesh.authority.trusting_as(&["http/1.1"], identity);
        SseClient::get(url).tls(config).try_connect().await.is_err()
    };
    assert!(refused(&stranger).await, "another authority");

    // In clear text there is no certificate, whatever headers say.
    let clear = |path: &str| {
        SseClient::get(mesh.sidestream.url(path))
            .header("X-Forwarded-Client-Cert", &format!("URI={SPIFFE_ID}"))
            .header("X-SSL-Client-S-DN", "CN=billing")
    };
    let mut anonymous = clear("/workloads").connect().await;
    assert_eq!(anonymous.status(), 401);
    assert_eq!(code(&anonymous.body().await), "unauthenticated");
    let authorization = bearer(&token("alice"));
    let with_token = |path: &str| clear(path).header("Authorization", &authorization);
    assert_eq!(with_token("/workloads").connect().await.status(), 401);
    let alice = with_token("/either").connect().await;
    assert_eq!(alice.status(), 200);
    assert_eq!(mesh.clients().await, ["idp:alice"]);
    drop(alice);
    let config = mesh.billing("http/1.1");
    for path in ["/open", "/either"] {
        assert_eq!(mesh.request(path, &config).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn event_streams_end_with_their_certificate_and_continue_with_a_renewed_one() {
    let mesh = Mesh::start().await;
    let short = Workload {
        common_name: "batch",
        expires_in: Some(Duration::from_secs(6)),
        ..Workload::default()
    };
    let (begin, config) = (now(), mesh.client("http/1.1", short));
    let mut first = begun(mesh.request("/workloads", &config).await).await;
    let mut connection = H2Client::builder()
        .tls(mesh.client("h2", short))
        .connect(mesh.sidestream.url_tls("/"))
        .await;
    let mut second = connection.get("/workloads").await;
    let mut open = connection.get("/open").await;
    assert_eq!((second.status(), open.status()), (200, 200));

    let data = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let renew = first.next_within(DEADLINE).await.unwrap();
    assert_eq!(renew.name, "sidestream.renew");
    let expires = data(&renew.data)["expires"].as_u64().unwrap();
    assert!(
        (begin + 5..=begin + 7).contains(&expires),
        "{expires} from {begin}"
    );
    mesh.publish("workloads.a", "1").await;
    assert_eq!(first.next().await.data, "1", "until its end it goes on");
    let close = first.next_within(DEADLINE).await.unwrap();
    assert_eq!(close.name, "sidestream.close");
    assert_eq!(data(&close.data)["reason"], "expired");
    assert!(now() >= expires);
    first.closed().await;
    let close = second.until(|event| event.name == "sidestream.close").await;
    assert_eq!(data(&close.last().unwrap().data)["reason"], "expired");
    second.closed().await;

    // An anonymous event stream of the connection goes on, and further requests do not.
    mesh.publish("workloads.a", "2").await;
    open.until(|event| event.data == "2").await;
    let mut rejected = connection.get("/workloads").await;
    assert_eq!(rejected.status(), 401);
    let challenge = rejected.header("www-authenticate").unwrap().to_owned();
    assert!(
        challenge.contains("the client certificate has expired"),
        "{challenge}"
    );
    assert_eq!(code(&rejected.body().await), "invalid_token");
    // The client resumes its TLS session, in which no certificate is verified again.
    let mut resumed = mesh.request("/workloads", &config).await;
    assert_eq!(resumed.status(), 401);
    assert_eq!(code(&resumed.body().await), "invalid_token");

    let renewed = Workload {
        expires_in: None,
        ..short
    };
    let url = mesh.sidestream.url_tls("/workloads");
    let expired = Identity {
        certificate: mesh.authority.folder().join("batch.crt"),
        key: mesh.authority.folder().join("batch.key"),
    };
    // TLS admits it until the end of its last second.
    eventually(DEADLINE, "a new handshake fails", async || {
        let fresh = mesh.authority.trusting_as(&["http/1.1"], &expired);
        let connected = SseClient::get(&url).tls(fresh).try_connect().await;
        connected.is_err()
    })
    .await;
    let config = mesh.client("http/1.1", renewed);
    let mut again = SseClient::get(url)
        .tls(config)
        .last_event_id(first.last_event_id())
        .connect()
        .await;
    assert_eq!(again.next().await.data, "2");
}

#[tokio::test]
async fn route_that_a_reload_protects_takes_the_certificate_of_an_open_connection() {
    let mesh = Mesh::start().await;
    let mut connection = H2Client::builder()
        .tls(mesh.billing("h2"))
        .connect(mesh.sidestream.url_tls("/"))
        .await;
    assert_eq!(connection.get("/open").await.status(), 200);
    let text = std::fs::read_to_string(mesh.sidestream.config_file()).unwrap();
    let changed = text.replace(
        "  - path: /open\n",
        "  - path: /open\n    authenticate: [mesh]\n    client: \"{claim.subject}\"\n",
    );
    mesh.sidestream.rewrite_config(&changed);
    let clear = mesh.sidestream.url("/open");
    eventually(DEADLINE, "the route authenticates", async || {
        SseClient::get(&clear).connect().await.status() == 401
    })
    .await;
    let stream = connection.get("/open").await;
    assert_eq!(stream.status(), 200);
    let clients = mesh.clients().await;
    assert!(
        clients.iter().any(|name| name == "CN=billing"),
        "{clients:?}"
    );
}

#[tokio::test]
async fn configuration_of_the_manual_serves_a_mesh_and_a_workload_can_be_revoked() {
    let text = super::manual::example("- name: mesh\n").replace(
        "authentication:\n",
        "authentication:\n  revocations: { bucket: revoked }\n",
    );
    let mesh = Mesh::with(&text, &["orders", "inbox", "topics"]).await;
    let billing = Workload {
        common_name: "billing",
        dns: &["topics.prices", "topics.stock"],
        uri: &[SPIFFE_ID],
        expires_in: None,
    };
    let billing = mesh.client("http/1.1", billing);
    let shipping = Workload {
        common_name: "shipping dept.",
        dns: &["*.prices"],
        ..Workload::default()
    };
    let shipping = mesh.client("http/1.1", shipping);
    let mut orders = begun(mesh.request("/workloads/orders", &billing).await).await;
    let mut inbox = begun(mesh.request("/workloads/inbox", &billing).await).await;
    let topic = |name: &str| format!("/workloads/topics?subject=topics.{name}");
    let mut prices = begun(mesh.request(&topic("prices"), &shipping).await).await;
    mesh.publish("orders.1", "1").await;
    mesh.publish("inbox.CN=shipping.a", "2").await;
    mesh.publish("inbox.CN=billing.a", "3").await;
    mesh.publish("topics.prices", "4").await;
    assert_eq!(orders.next().await.data, "1");
    assert_eq!(inbox.next().await.data, "3");
    assert_eq!(prices.next().await.data, "4");
    assert_eq!(mesh.request(&topic("stock"), &billing).await.status(), 200);
    for (path, config, status, expected) in [
        (topic("stock"), &shipping, 403, "subject_not_allowed"),
        (topic("other"), &billing, 403, "subject_not_allowed"),
        ("/workloads/inbox".into(), &shipping, 400, "bad_variable"),
    ] {
        let mut rejected = mesh.request(&path, config).await;
        assert_eq!(rejected.status(), status, "{path}");
        assert_eq!(code(&rejected.body().await), expected, "{path}");
    }

    let file = mesh.sidestream.config_file();
    let arguments = [
        "revoke",
        "--sub",
        SPIFFE_ID,
        "--config",
        file.to_str().unwrap(),
    ];
    let output = run(&arguments, mesh.sidestream.folder()).await;
    assert!(output.status.success(), "{output:?}");
    for client in [&mut orders, &mut inbox] {
        let close = client.next().await;
        assert_eq!(close.name, "sidestream.close");
        assert!(
            close.data.contains("\"reason\":\"revoked\""),
            "{}",
            close.data
        );
    }
    let mut rejected = mesh.request("/workloads/orders", &billing).await;
    assert_eq!(rejected.status(), 401);
    assert_eq!(code(&rejected.body().await), "revoked");
    mesh.publish("topics.prices", "5").await;
    assert_eq!(prices.next().await.data, "5", "others go on");
}
