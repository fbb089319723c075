//! Tests of `init` against a fake API server: real HTTPS, and a few objects.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::convert::Infallible;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::{BINARY, Injector, patch, recorded};
use testkit::certs::{Authority, Identity, server_config};
use testkit::process::Process;
use testkit::wait::{DEADLINE, eventually};

const SECRETS: &str = "/api/v1/namespaces/sidestream/secrets";
const SECRET: &str = "/api/v1/namespaces/sidestream/secrets/sidestream-injector-tls";
const WEBHOOK: &str =
    "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/sidestream-injector";

type Objects = Arc<Mutex<BTreeMap<String, Value>>>;

/// Stores objects by path, with POST, GET, PUT and JSON patches as in Kubernetes.
struct ApiServer {
    port: u16,
    objects: Objects,
    /// `METHOD path` of each request, with its query.
    requests: Arc<Mutex<Vec<String>>>,
    account: tempfile::TempDir,
    _authority: Authority,
}

impl ApiServer {
    async fn start() -> Self {
        let authority = Authority::new();
        let account = tempfile::tempdir().unwrap();
        std::fs::write(account.path().join("token"), "service-account\n").unwrap();
        std::fs::copy(authority.file(), account.path().join("ca.crt")).unwrap();
        let acceptor = TlsAcceptor::from(server_config(&authority.server("api"), &["http/1.1"]));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let webhook = json!({ "webhooks": [{ "name": "a", "clientConfig": {} }, { "name": "b", "clientConfig": {} }] });
        let objects = Objects::new(Mutex::new([(WEBHOOK.to_owned(), webhook)].into()));
        let requests = Arc::<Mutex<Vec<String>>>::default();
        let (store, record) = (objects.clone(), requests.clone());
        tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let (acceptor, store, record) = (acceptor.clone(), store.clone(), record.clone());
                tokio::spawn(async move {
                    let service =
                        service_fn(|request| answer(request, store.clone(), record.clone()));
                    let Ok(connection) = acceptor.accept(socket).await else {
                        return;
                    };
                    let http = hyper::server::conn::http1::Builder::new();
                    drop(
                        http.serve_connection(TokioIo::new(connection), service)
                            .await,
                    );
                });
            }
        });
        Self {
            port,
            objects,
            requests,
            account,
            _authority: authority,
        }
    }

    fn object(&self, path: &str) -> Value {
        self.objects
            .lock()
            .unwrap()
            .get(path)
            .cloned()
            .unwrap_or_default()
    }

    /// Runs `init`; returns the folder of the certificate, the exit code and the log.
    async fn init(&self) -> (tempfile::TempDir, Option<i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let mut process = self.begin_init(folder.path(), "50ms");
        let status = process.wait_exit(DEADLINE).await;
        // The test reads the output in a thread of its own.
        let log = eventually(DEADLINE, "the last line is read", || async {
            let log = process.lines().join("\n");
            (log.contains("ERROR") || log.contains("certificate prepared")).then_some(log)
        })
        .await;
        (folder, status.code(), log)
    }

    fn begin_init(&self, folder: &Path, settle: &str) -> Process {
        let mut command = std::process::Command::new(BINARY);
        command.args([
            "init",
            "--api-server",
            "127.0.0.1",
            "--api-port",
            &self.port.to_string(),
        ]);
        command
            .arg("--account")
            .arg(self.account.path())
            .arg("--folder")
            .arg(folder)
            .args(["--settle", settle]);
        Process::spawn("init", &mut command)
    }

    /// Authorities that a webhook trusts, as PEM.
    fn bundle(&self, index: usize) -> String {
        let webhook = self.object(WEBHOOK);
        let bundle = webhook["webhooks"][index]["clientConfig"]["caBundle"]
            .as_str()
            .unwrap_or_default();
        String::from_utf8(STANDARD.decode(bundle).unwrap()).unwrap()
    }
}

/// Status object of a rejected request, as in Kubernetes.
fn failure(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    })
}

async fn answer(
    request: Request<Incoming>,
    objects: Objects,
    requests: Arc<Mutex<Vec<String>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let path = head.uri.path().to_owned();
    requests
        .lock()
        .unwrap()
        // kube separates the first parameter by `?&`.
        .push(format!("{} {}", head.method, head.uri).replace("?&", "?"));
    let mut objects = objects.lock().unwrap();
    let authorized = head
        .headers
        .get("authorization")
        .is_some_and(|value| value == "Bearer service-account");
    let (status, answer) = match (authorized, &head.method) {
        (false, _) => (403, failure(403, "Forbidden", "unknown token")),
        (_, &Method::POST) => {
            let mut made: Value = serde_json::from_slice(&body).unwrap();
            let path = format!("{path}/{}", made["metadata"]["name"].as_str().unwrap());
            made["metadata"]["resourceVersion"] = json!("1");
            match objects.entry(path) {
                Entry::Vacant(place) => (201, place.insert(made).clone()),
                Entry::Occupied(_) => (409, failure(409, "AlreadyExists", "already exists")),
            }
        }
        // As in Kubernetes: only with the current version.
        (_, &Method::PUT) => {
            let mut made: Value = serde_json::from_slice(&body).unwrap();
            let object = objects.get_mut(&path).unwrap();
            let version = object["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .to_owned();
            if made["metadata"]["resourceVersion"] == version {
                made["metadata"]["resourceVersion"] = json!(format!("{version}1"));
                *object = made;
                (200, object.clone())
            } else {
                (
                    409,
                    failure(409, "Conflict", "the object has been modified"),
                )
            }
        }
        (_, &Method::PATCH) if head.headers["content-type"] == "application/json-patch+json" => {
            let object = objects.get_mut(&path).unwrap();
            let patch: json_patch::Patch = serde_json::from_slice(&body).unwrap();
            json_patch::patch(object, &patch).unwrap();
            (200, object.clone())
        }
        _ => match objects.get(&path) {
            Some(object) => (200, object.clone()),
            None => (404, failure(404, "NotFound", "not found")),
        },
    };
    Ok(Response::builder()
        .status(status)
        .body(Full::new(answer.to_string().into()))
        .unwrap())
}

#[tokio::test]
async fn init_creates_a_certificate_once_and_adds_its_authority_to_the_webhook() {
    let cluster = ApiServer::start().await;
    let (first, code, log) = cluster.init().await;
    assert_eq!(code, Some(0), "{log}");
    let secret = cluster.object(SECRET);
    let manager = "?fieldManager=sidestream-injector";
    let wrote = [
        format!("POST {SECRETS}{manager}"),
        format!("PATCH {WEBHOOK}{manager}"),
    ];
    assert!(
        wrote
            .iter()
            .all(|line| cluster.requests.lock().unwrap().contains(line)),
        "{wrote:?}"
    );
    let bundle = &secret["data"]["ca.crt"];
    let webhook = cluster.object(WEBHOOK);
    for index in 0..2 {
        assert_eq!(
            &webhook["webhooks"][index]["clientConfig"]["caBundle"],
            bundle
        );
    }
    // Another replica, or a restart: the same certificate, and nothing to write.
    cluster.requests.lock().unwrap().clear();
    let (second, code, log) = cluster.init().await;
    assert_eq!(code, Some(0), "{log}");
    assert_eq!(
        *cluster.requests.lock().unwrap(),
        [format!("GET {SECRET}"), format!("GET {WEBHOOK}")]
    );
    for file in ["tls.crt", "tls.key"] {
        assert_eq!(
            std::fs::read(first.path().join(file)).unwrap(),
            std::fs::read(second.path().join(file)).unwrap()
        );
    }
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(first.path().join("tls.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);

    // As the API server: by the name of the Service, trusting the bundle alone.
    let bundle = STANDARD.decode(bundle.as_str().unwrap()).unwrap();
    let authority = second.path().join("bundle.crt");
    std::fs::write(&authority, bundle).unwrap();
    let file = |name: &str| first.path().join(name);
    let identity = Identity {
        certificate: file("tls.crt"),
        key: file("tls.key"),
    };
    let mut injector = Injector::start(&authority, &identity).await;
    let port = injector.webhook.rsplit_once(':').unwrap().1.to_owned();
    let name = "sidestream-injector.sidestream.svc";
    injector.webhook = format!("{name}:{port}");
    let review = recorded("create").to_string();
    let resolve = format!("{name}:{port}:127.0.0.1");
    let answer = injector
        .post("/inject", review.as_bytes(), &["--resolve", &resolve])
        .await;
    assert!(patch(&answer).is_some());
}

#[tokio::test]
async fn replicas_that_start_at_the_same_time_get_one_certificate() {
    let cluster = ApiServer::start().await;
    let (one, two) = tokio::join!(cluster.init(), cluster.init());
    assert_eq!((one.1, two.1), (Some(0), Some(0)), "{}\n{}", one.2, two.2);
    let read = |folder: &tempfile::TempDir| std::fs::read(folder.path().join("tls.crt")).unwrap();
    assert_eq!(read(&one.0), read(&two.0));
    let posts = cluster
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|line| line.starts_with(&format!("POST {SECRETS}")))
        .count();
    assert!(posts >= 1);
}

#[tokio::test]
async fn rejection_and_unusable_secret_are_reported() {
    let cluster = ApiServer::start().await;
    std::fs::write(cluster.account.path().join("token"), "another-token").unwrap();
    let (_, code, log) = cluster.init().await;
    assert_eq!(code, Some(69), "{log}");
    assert!(
        log.contains("the API server answered 403: unknown token"),
        "{log}"
    );

    std::fs::write(cluster.account.path().join("token"), "service-account").unwrap();
    cluster
        .objects
        .lock()
        .unwrap()
        .insert(SECRET.into(), json!({ "data": { "tls.crt": "eA==" } }));
    let (_, code, log) = cluster.init().await;
    assert_eq!(code, Some(64), "{log}");
    assert!(
        log.contains("the Secret sidestream-injector-tls has no `ca.crt`"),
        "{log}"
    );
}

/// A renewal: until every replica serves the new certificate, API servers trust both.
#[tokio::test]
async fn renewed_certificate_is_served_only_after_api_servers_had_time_to_load_the_bundle() {
    let cluster = ApiServer::start().await;
    let (old, code, log) = cluster.init().await;
    assert_eq!(code, Some(0), "{log}");
    let first = cluster.bundle(0);
    cluster.objects.lock().unwrap().remove(SECRET);

    let settle = Duration::from_millis(1500);
    let new = tempfile::tempdir().unwrap();
    let mut renewing = cluster.begin_init(new.path(), "1500ms");
    eventually(DEADLINE, "the new authority is trusted", || async {
        cluster.bundle(0) != first
    })
    .await;
    let trusted = Instant::now();
    for index in 0..2 {
        let bundle = cluster.bundle(index);
        assert_eq!(bundle.matches("BEGIN CERTIFICATE").count(), 2, "{bundle}");
        assert!(bundle.ends_with(&first), "{bundle}");
    }
    assert!(
        !new.path().join("tls.crt").exists(),
        "nothing to serve before API servers had time to load the bundle"
    );
    assert_eq!(
        renewing.wait_exit(DEADLINE).await.code(),
        Some(0),
        "{:?}",
        renewing.lines()
    );
    // The bundle was seen a moment after it was written.
    assert!(
        trusted.elapsed() + Duration::from_millis(300) >= settle,
        "{:?}",
        trusted.elapsed()
    );

    // An API server with that bundle accepts replicas with either certificate.
    let authority = new.path().join("bundle.crt");
    std::fs::write(&authority, cluster.bundle(0)).unwrap();
    let name = "sidestream-injector.sidestream.svc";
    for folder in [old.path(), new.path()] {
        let file = |name: &str| folder.join(name);
        let identity = Identity {
            certificate: file("tls.crt"),
            key: file("tls.key"),
        };
        let mut injector = Injector::start(&authority, &identity).await;
        let port = injector.webhook.rsplit_once(':').unwrap().1.to_owned();
        injector.webhook = format!("{name}:{port}");
        let review = recorded("create").to_string();
        let resolve = format!("{name}:{port}:127.0.0.1");
        assert!(
            patch(
                &injector
                    .post("/inject", review.as_bytes(), &["--resolve", &resolve])
                    .await
            )
            .is_some()
        );
    }

    // A replica that starts with two authorities in the bundle cannot know since when: it waits.
    let begun = Instant::now();
    let another = tempfile::tempdir().unwrap();
    let mut process = cluster.begin_init(another.path(), "1500ms");
    assert_eq!(
        process.wait_exit(DEADLINE).await.code(),
        Some(0),
        "{:?}",
        process.lines()
    );
    assert!(begun.elapsed() >= settle, "{:?}", begun.elapsed());

    // The next renewal drops the oldest.
    cluster.objects.lock().unwrap().remove(SECRET);
    let (_, code, log) = cluster.init().await;
    assert_eq!(code, Some(0), "{log}");
    let bundle = cluster.bundle(1);
    assert!(
        bundle.matches("BEGIN CERTIFICATE").count() == 2 && !bundle.contains(first.trim()),
        "{bundle}"
    );
}

/// The Secret is part of the manifests, without data, so that it goes with them.
#[tokio::test]
async fn the_empty_secret_of_the_manifests_is_filled_once() {
    let cluster = ApiServer::start().await;
    let labels = json!({ "app.kubernetes.io/managed-by": "Helm" });
    let empty = json!({ "metadata": { "name": "s", "resourceVersion": "7", "labels": labels }, "type": "Opaque" });
    cluster.objects.lock().unwrap().insert(SECRET.into(), empty);
    let (one, two) = tokio::join!(cluster.init(), cluster.init());
    assert_eq!((one.1, two.1), (Some(0), Some(0)), "{}\n{}", one.2, two.2);
    let secret = cluster.object(SECRET);
    assert_eq!(secret["metadata"]["resourceVersion"], "71", "written once");
    assert_eq!(
        (&secret["type"], &secret["metadata"]["labels"]),
        (&json!("Opaque"), &labels),
        "the rest as it was"
    );
    let certificate = STANDARD
        .decode(secret["data"]["tls.crt"].as_str().unwrap())
        .unwrap();
    for folder in [one.0, two.0] {
        assert_eq!(
            std::fs::read(folder.path().join("tls.crt")).unwrap(),
            certificate
        );
    }
}
