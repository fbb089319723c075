//! OpenID Connect issuer on loopback that misbehaves: discovery, JWKS and tokens with real keys
//! (ES256), over HTTP or HTTPS.
//!
//! It answers as its [`Mode`] says, signs any bytes, can rotate its key, and counts the fetches of
//! its keys. [`crate::oidc`] is an honest issuer.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Interval, interval};
use tokio_rustls::TlsAcceptor;

use crate::certs::{Identity, server_config};

/// Behaviour of an issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Answers.
    Normal,
    /// Closes every connection.
    Down,
    /// Accepts requests and never answers.
    Silent,
    /// Answers with 10 MiB of keys.
    Oversized,
    /// The discovery document names another issuer.
    OtherIssuer,
    /// Redirects to its keys.
    Redirect,
    /// Answers with this status.
    Status(u16),
    /// Answers with these bytes as its keys.
    Keys(&'static str),
    /// The discovery document names this URL of the keys.
    KeysAt(&'static str),
    /// Sends a byte of its keys per second.
    Drip,
    /// Sends keys without end.
    Endless,
    /// The discovery document names keys without TLS.
    Downgrade,
}

/// Running issuer. Dropping it stops it.
pub struct Issuer {
    url: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

struct State {
    mode: Mode,
    keys: Vec<SigningKey>,
    /// Further public keys of the document.
    published: Vec<Value>,
    made: usize,
    fetches: usize,
}

struct SigningKey {
    id: String,
    pair: EcdsaKeyPair,
}

impl SigningKey {
    fn new(id: String) -> Self {
        let (algorithm, random) = (&ECDSA_P256_SHA256_FIXED_SIGNING, SystemRandom::new());
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self { id, pair }
    }

    fn jwk(&self) -> Value {
        // An uncompressed point: 4, x, y.
        let (x, y) = self.pair.public_key().as_ref()[1..].split_at(32);
        json!({
            "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": self.id,
            "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        })
    }
}

impl Issuer {
    /// Starts an issuer with one key, `key-1`.
    pub async fn start() -> Self {
        Self::serving(None).await
    }

    /// Starts an issuer over HTTPS with this certificate.
    pub async fn start_tls(identity: &Identity) -> Self {
        let acceptor = TlsAcceptor::from(server_config(identity, &[]));
        Self::serving(Some(acceptor)).await
    }

    async fn serving(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(State {
            mode: Mode::Normal,
            keys: Vec::new(),
            published: Vec::new(),
            made: 0,
            fetches: 0,
        }));
        let server = tokio::spawn(serve(listener, tls, url.clone(), Arc::clone(&state)));
        let issuer = Self { url, state, server };
        issuer.rotate();
        issuer
    }

    /// URL, as in the claim `iss`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Replaces all keys by a new one, and returns its id.
    pub fn rotate(&self) -> String {
        let mut state = self.state.lock().unwrap();
        state.made += 1;
        let id = format!("key-{}", state.made);
        state.keys = vec![SigningKey::new(id.clone())];
        id
    }

    /// Adds another key with the id of the newest one. Tokens are signed by the new key.
    pub fn add_namesake(&self) {
        let mut state = self.state.lock().unwrap();
        let id = state.keys.last().unwrap().id.clone();
        state.keys.push(SigningKey::new(id));
    }

    /// Adds a public key to the document.
    pub fn publish(&self, key: Value) {
        self.state.lock().unwrap().published.push(key);
    }

    /// Public key of the newest key.
    pub fn public_key(&self) -> Value {
        self.state.lock().unwrap().keys.last().unwrap().jwk()
    }

    /// Changes its behaviour.
    pub fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = mode;
    }

    /// Number of requests for its keys.
    pub fn fetches(&self) -> usize {
        self.state.lock().unwrap().fetches
    }

    /// Token with these claims, signed by the newest key. Missing claims of a valid token for the
    /// audience `sidestream` are added: `iss`, `aud`, `sub`, `iat`, `exp` (in five minutes). A claim
    /// of null is left out.
    pub fn token(&self, claims: &Value) -> String {
        let now = std::time::SystemTime::UNIX_EPOCH
            .elapsed()
            .unwrap()
            .as_secs();
        let mut all = json!({
            "iss": self.url(), "aud": "sidestream", "sub": "alice", "iat": now, "exp": now + 300,
        });
        let members = all.as_object_mut().unwrap();
        for (name, value) in claims.as_object().unwrap() {
            members.insert(name.clone(), value.clone());
        }
        members.retain(|_, value| !value.is_null());
        let id = self.state.lock().unwrap().keys.last().unwrap().id.clone();
        self.sign(&json!({ "alg": "ES256", "kid": id }), &all.to_string())
    }

    /// Token with this header and these bytes as claims, signed by the newest key.
    pub fn sign(&self, header: &Value, claims: &str) -> String {
        self.sign_bytes(header.to_string().as_bytes(), claims.as_bytes())
    }

    /// Token with these bytes as header and claims, signed by the newest key.
    pub fn sign_bytes(&self, header: &[u8], claims: &[u8]) -> String {
        let encoded = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let state = self.state.lock().unwrap();
        let pair = &state.keys.last().unwrap().pair;
        let signature = pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encoded(signature.as_ref()))
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    url: String,
    state: Arc<Mutex<State>>,
) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        if state.lock().unwrap().mode == Mode::Down {
            continue;
        }
        let (url, state) = (url.clone(), Arc::clone(&state));
        let service = service_fn(move |request| {
            let (url, state) = (url.clone(), Arc::clone(&state));
            async move { Ok::<_, hyper::Error>(answer(&request, &url, &state).await) }
        });
        let tls = tls.clone();
        tokio::spawn(async move {
            let http = http1::Builder::new();
            // A client that does not trust the certificate ends the connection.
            let served = match tls {
                None => http.serve_connection(TokioIo::new(socket), service).await,
                Some(tls) => match tls.accept(socket).await {
                    Ok(socket) => http.serve_connection(TokioIo::new(socket), service).await,
                    Err(_) => Ok(()),
                },
            };
            drop(served);
        });
    }
}

async fn answer<B>(request: &Request<B>, url: &str, state: &Mutex<State>) -> Response<Document> {
    let mode = state.lock().unwrap().mode;
    let is_keys = request.uri().path() == "/jwks";
    if is_keys {
        state.lock().unwrap().fetches += 1;
    }
    let discovery = |issuer: &str, keys: &str| json!({ "issuer": issuer, "jwks_uri": keys });
    let keys = format!("{url}/jwks");
    let document = match mode {
        Mode::Silent => std::future::pending().await,
        Mode::Redirect => return redirect(&keys),
        Mode::Oversized if is_keys => json!({ "keys": [], "more": " ".repeat(10 << 20) }),
        Mode::Status(status) => {
            let mut answer = Response::new(Document::of("{}"));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            return answer;
        }
        Mode::Keys(bytes) if is_keys => return Response::new(Document::of(bytes)),
        Mode::Drip if is_keys => return Response::new(Document::Drip(interval(DRIP))),
        Mode::Endless if is_keys => return Response::new(Document::Endless),
        _ if is_keys => {
            let state = state.lock().unwrap();
            let own = state.keys.iter().map(SigningKey::jwk);
            json!({ "keys": own.chain(state.published.iter().cloned()).collect::<Vec<_>>() })
        }
        Mode::KeysAt(other) => discovery(url, other),
        Mode::OtherIssuer => discovery("https://other.example.com", &keys),
        Mode::Downgrade => discovery(url, &keys.replace("https:", "http:")),
        Mode::Normal
        | Mode::Down
        | Mode::Oversized
        | Mode::Keys(_)
        | Mode::Drip
        | Mode::Endless => discovery(url, &keys),
    };
    Response::new(Document::of(document.to_string()))
}

fn redirect(location: &str) -> Response<Document> {
    Response::builder()
        .status(StatusCode::FOUND)
        .header("location", location)
        .body(Document::of(""))
        .unwrap()
}

/// One byte per second.
const DRIP: Duration = Duration::from_secs(1);

/// Body of an answer.
enum Document {
    Whole(Full<Bytes>),
    Drip(Interval),
    Endless,
}

impl Document {
    fn of(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Full::new(bytes.into()))
    }
}

impl Body for Document {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Self::Whole(body) => Pin::new(body).poll_frame(context),
            Self::Drip(interval) => interval
                .poll_tick(context)
                .map(|_| Some(Ok(Frame::data(Bytes::from_static(b" "))))),
            Self::Endless => {
                let spaces = Bytes::from_static(&[b' '; 1 << 14]);
                Poll::Ready(Some(Ok(Frame::data(spaces))))
            }
        }
    }
}
