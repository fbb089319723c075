//! TLS sessions that a client resumes on the same pod, and on another one with the same ticket
//! keys.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use rustls::ClientConfig;
use testkit::certs::{Authority, Identity};
use testkit::h2::H2Client;
use testkit::nats::Nats;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually, within};
use tokio::io::AsyncWriteExt as _;

/// Files of the pods of one deployment.
struct Deployment {
    nats: Nats,
    authority: Authority,
    server: Identity,
}

/// Settings of one pod.
#[derive(Default)]
struct Pod<'a> {
    /// Name of the file with ticket keys.
    keys: Option<&'a str>,
    client_ca: Option<&'a Authority>,
}

/// Keys as `openssl rand -base64 32` prints them.
const KEYS: [&str; 2] = [
    "YWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWE=\n",
    "YmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmJiYmI=\n",
];

impl Deployment {
    async fn new() -> Self {
        let authority = Authority::new();
        Self {
            nats: Nats::start().await,
            server: authority.server("server"),
            authority,
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.authority.folder().join(name)
    }

    fn write_keys(&self, name: &str, keys: &[&str]) {
        std::fs::write(self.file(name), keys.concat()).unwrap();
    }

    async fn start(&self, pod: Pod<'_>) -> Sidestream {
        let Identity { certificate, key } = &self.server;
        let keys = pod
            .keys
            .map_or("null".to_owned(), |name| format!("{:?}", self.file(name)));
        let ca = pod.client_ca.map_or("null".to_owned(), |authority| {
            format!("{:?}", authority.file())
        });
        let (provider, authenticate) = match pod.client_ca {
            Some(_) => ("{ name: mesh, certificate: {} }", "authenticate: [mesh], "),
            None => ("", ""),
        };
        let text = format!(
            "listen:
  - address: 127.0.0.1:0
  - address: 127.0.0.1:0
    tls:
      certificate: {certificate:?}
      key: {key:?}
      client_ca: {ca}
      session_ticket_keys: {keys}
admin: {{ address: 127.0.0.1:0 }}
nats: {{ servers: [{:?}] }}
authentication: {{ providers: [{provider}] }}
routes: [{{ path: /news, {authenticate}sources: [{{ subjects: [\"news.>\"] }}] }}]
",
            self.nats.url()
        );
        Sidestream::builder(text).start().await
    }
}

/// Opens an event stream, and returns true if its connection has resumed a session. Reads the first
/// bytes: a ticket is in front of them.
async fn resumes(pod: &Sidestream, client: &Arc<ClientConfig>) -> bool {
    let [full, resumed] = handshakes(pod).await;
    let mut stream = SseClient::get(pod.url_tls("/news"))
        .tls(client.clone())
        .connect()
        .await;
    assert_eq!(stream.status(), 200);
    stream.positioned().await;
    drop(stream);
    let now = handshakes(pod).await;
    assert_eq!(now.iter().sum::<f64>(), full + resumed + 1.0);
    now[1] > resumed
}

/// Full and resumed handshakes of a pod.
async fn handshakes(pod: &Sidestream) -> [f64; 2] {
    let name = "sidestream_tls_handshakes_total";
    [
        pod.metric(name, &[("kind", "full")]).await,
        pod.metric(name, &[("kind", "resumed")]).await,
    ]
}

#[tokio::test]
async fn client_resumes_its_session_on_another_pod_with_the_same_ticket_keys() {
    let deployment = Deployment::new().await;
    deployment.write_keys("keys", &KEYS[..1]);
    let pod = || Pod {
        keys: Some("keys"),
        ..Pod::default()
    };
    let (one, other) = (deployment.start(pod()).await, deployment.start(pod()).await);
    let alone = deployment.start(Pod::default()).await;

    let client = deployment.authority.trusting(&["http/1.1"]);
    assert!(!resumes(&one, &client).await);
    assert!(resumes(&other, &client).await, "another pod");
    assert!(resumes(&one, &client).await, "the first pod");
    assert!(!resumes(&alone, &client).await, "a pod without the keys");

    let client = deployment.authority.trusting(&["h2"]);
    for (pod, resumed) in [(&one, 0.0), (&other, 1.0)] {
        let before = handshakes(pod).await[1];
        let mut h2 = H2Client::builder()
            .tls(client.clone())
            .connect(&pod.url_tls("/"))
            .await;
        assert_eq!(h2.get("/news").await.status(), 200);
        assert_eq!(handshakes(pod).await[1] - before, resumed);
    }
}

#[tokio::test]
async fn client_resumes_its_session_on_the_same_pod_without_ticket_keys() {
    let deployment = Deployment::new().await;
    let pod = deployment.start(Pod::default()).await;
    let client = deployment.authority.trusting(&["http/1.1"]);
    assert!(!resumes(&pod, &client).await);
    assert!(resumes(&pod, &client).await);
}

#[tokio::test]
async fn rotated_ticket_keys_are_loaded_while_event_streams_are_open() {
    let deployment = Deployment::new().await;
    deployment.write_keys("keys", &KEYS[..1]);
    let pod = deployment
        .start(Pod {
            keys: Some("keys"),
            ..Pod::default()
        })
        .await;
    let client = deployment.authority.trusting(&["http/1.1"]);
    let mut open = SseClient::get(pod.url_tls("/news"))
        .tls(client.clone())
        .connect()
        .await;
    open.positioned().await;
    let loaded = async |count: usize| {
        eventually(DEADLINE, "the keys are loaded", || async {
            let is_loaded = |line: &&serde_json::Value| line["message"] == "TLS files reloaded";
            pod.log().iter().filter(is_loaded).count() == count
        })
        .await;
    };

    deployment.write_keys("keys", &[KEYS[1], KEYS[0]]);
    loaded(1).await;
    assert!(resumes(&pod, &client).await, "a ticket of the older key");
    deployment.write_keys("keys", &KEYS[1..]);
    loaded(2).await;
    assert!(resumes(&pod, &client).await, "a ticket of the newer key");
    deployment.write_keys("keys", &KEYS[..1]);
    loaded(3).await;
    assert!(!resumes(&pod, &client).await, "a removed key");

    deployment.write_keys("keys", &["not a key"]);
    let problem = "has no key in line 1: a key is the output of `openssl rand -base64 32`";
    eventually(DEADLINE, "the check is degraded", || async {
        let health = pod.admin("/health").await.1;
        health.contains(problem)
    })
    .await;
    assert!(resumes(&pod, &client).await, "the keys in use are kept");

    let nats = deployment.nats.client().await;
    nats.publish("news.1", "1".into()).await.unwrap();
    nats.flush().await.unwrap();
    assert_eq!(open.next().await.data, "1", "no event stream was closed");
}

#[tokio::test]
async fn resumed_session_has_the_client_certificate_but_only_with_equal_authorities() {
    let deployment = Deployment::new().await;
    deployment.write_keys("keys", &KEYS[..1]);
    let stranger = Authority::new();
    let pod = |client_ca| Pod {
        keys: Some("keys"),
        client_ca,
    };
    let own = Some(&deployment.authority);
    let one = deployment.start(pod(own)).await;
    let other = deployment.start(pod(own)).await;
    let foreign = deployment.start(pod(Some(&stranger))).await;
    let open = deployment.start(pod(None)).await;

    let identity = deployment.authority.client("billing");
    let client = deployment.authority.trusting_as(&["http/1.1"], &identity);
    assert!(!resumes(&one, &client).await);
    // The route requires the certificate, which is in the ticket.
    assert!(resumes(&other, &client).await);
    let listed = other.admin_json("/connections").await;
    assert!(listed["total"].is_u64(), "{listed}");
    let rejected = SseClient::get(foreign.url_tls("/news")).tls(client.clone());
    assert!(rejected.try_connect().await.is_err(), "other authorities");
    // It has used its ticket.
    assert!(!resumes(&one, &client).await);
    assert!(!resumes(&open, &client).await, "no authorities");
}

/// Runs `openssl s_client`, which reads the session of a file and writes its new one.
async fn openssl(pod: &Sidestream, deployment: &Deployment, version: &str) -> String {
    let session = deployment.file("session.pem");
    let url = pod.url_tls("/");
    let address = url.trim_start_matches("https://").trim_end_matches('/');
    let mut command = tokio::process::Command::new("openssl");
    command
        .args([
            "s_client", version, "-ign_eof", "-connect", address, "-CAfile",
        ])
        .arg(deployment.authority.file())
        .arg("-sess_out")
        .arg(&session)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if session.exists() {
        command.arg("-sess_in").arg(&session);
    }
    let mut child = command.spawn().expect("openssl is installed");
    let request = format!("GET /none HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let mut input = child.stdin.take().unwrap();
    input.write_all(request.as_bytes()).await.unwrap();
    let output = within(DEADLINE, "openssl ends", child.wait_with_output()).await;
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("HTTP/1.1 404"), "{text}");
    text
}

#[tokio::test]
async fn openssl_resumes_tls_1_3_on_another_pod_and_tls_1_2_on_the_same_pod() {
    let deployment = Deployment::new().await;
    deployment.write_keys("keys", &KEYS[..1]);
    let pod = || Pod {
        keys: Some("keys"),
        ..Pod::default()
    };
    let (one, other) = (deployment.start(pod()).await, deployment.start(pod()).await);

    let first = openssl(&one, &deployment, "-tls1_3").await;
    assert!(first.contains("New, TLSv1.3"), "{first}");
    let second = openssl(&other, &deployment, "-tls1_3").await;
    assert!(second.contains("Reused, TLSv1.3"), "{second}");

    std::fs::remove_file(deployment.file("session.pem")).unwrap();
    let first = openssl(&one, &deployment, "-tls1_2").await;
    assert!(first.contains("New, TLSv1.2"), "{first}");
    assert!(!first.contains("TLS session ticket"), "{first}");
    let again = openssl(&one, &deployment, "-tls1_2").await;
    assert!(again.contains("Reused, TLSv1.2"), "{again}");
    let second = openssl(&other, &deployment, "-tls1_2").await;
    assert!(second.contains("New, TLSv1.2"), "{second}");
}
