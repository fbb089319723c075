//! A real browser: headless Chromium on a page that opens EventSources, or follows event streams with
//! `clients/js`, and reports what they receive.
//!
//! [`Page`] serves the page and collects its reports; [`Browser`] is the Chromium process that
//! shows it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::process::Process;
use crate::repository::file;
use crate::wait::eventually;

/// 60 s: Chromium takes seconds to start, and longer on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Maximum number of reports that are kept.
const REPORTS_MAX: usize = 100_000;

/// No sandbox, because containers run the tests as root. No QUIC and no background requests.
const FLAGS: [&str; 12] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    // The certificate authority of the test is not in the browser's store.
    "--ignore-certificate-errors",
];

/// Head of a page: `report` posts one batch of reports at a time, so that they arrive in order.
const HEAD: &str = r#"<!doctype html><meta charset="utf-8"><title>test</title><script>
let queue = [], busy = false;
async function flush() {
  if (busy) return;
  busy = true;
  while (queue.length) {
    const batch = queue.splice(0, 500);
    await fetch("/reports", { method: "POST", body: JSON.stringify(batch) });
  }
  busy = false;
}
const report = (line) => { queue.push(line); flush(); };
"#;

/// Script that opens one EventSource per URL in the query of the page.
const EVENT_SOURCES: &str = r#"
const ask = new URLSearchParams(location.search);
async function follow(source, url) {
  const client = await import("/client.js");
  const token = async () => (await fetch("/token")).text();
  const control = (name) => (data) => report({ source, kind: "event", name, data: JSON.stringify(data) });
  await client.follow(url, {
    headers: async () => ({ Authorization: `Bearer ${await token()}` }),
    onEvent: ({ id, event, data }) => report({ source, kind: "event", name: event, data, id }),
    onGap: control("sidestream.gap"),
    onClose: control("sidestream.close"),
    onRenew: control("sidestream.renew"),
    onState: ({ state }) => report({ source, kind: state }),
  });
}
for (const [index, url] of ask.getAll("fetch").entries())
  follow(ask.getAll("url").length + index, url).catch((error) => report({ kind: "failed", error: String(error) }));
for (const [index, url] of ask.getAll("url").entries()) {
  const source = new EventSource(url, { withCredentials: ask.has("renew") });
  const at = () => Math.round(performance.now());
  source.onopen = () => report({ source: index, at: at(), kind: "open" });
  source.onerror = () => report({ source: index, at: at(), kind: "error", state: source.readyState });
  if (ask.has("renew")) {
    const session = () => fetch("/session", { method: "POST" });
    source.addEventListener("sidestream.renew", session);
    source.addEventListener("sidestream.close", ({ data }) => JSON.parse(data).reason === "unauthenticated" && session());
  }
  for (const name of ["message", ...ask.getAll("event")])
    source.addEventListener(name, (event) => report(
      { source: index, at: at(), kind: "event", name: event.type, data: event.data, id: event.lastEventId }));
}
"#;

/// Source of tokens, which the page has in the cookie `session` or sends itself.
pub type Mint = Arc<dyn Fn() -> Pin<Box<dyn Future<Output = String> + Send>> + Send + Sync>;

/// Server of the page. [`Page::open`] starts a browser.
pub struct Page {
    address: SocketAddr,
    serving: JoinHandle<()>,
    reports: Arc<Mutex<Vec<Value>>>,
    has_session: bool,
    script: Arc<Mutex<String>>,
}

/// Browser that shows the page. Dropping it ends the process.
pub struct Browser {
    page: Page,
    process: Process,
    _profile: TempDir,
}

// === impl Page ===

impl Page {
    /// Serves the page on a free port of loopback.
    pub async fn serve() -> Self {
        Self::serving(None).await
    }

    /// Serves the page with a session: the page has a cookie, and requests a new one when an
    /// EventSource receives `sidestream.renew`, or that it is unauthenticated.
    pub async fn serve_with_session(mint: Mint) -> Self {
        Self::serving(Some(mint)).await
    }

    async fn serving(session: Option<Mint>) -> Self {
        let has_session = session.is_some();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let script = Arc::new(Mutex::new(EVENT_SOURCES.to_owned()));
        let (kept, served) = (Arc::clone(&reports), Arc::clone(&script));
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, session) = (Arc::clone(&kept), session.clone());
                let served = Arc::clone(&served);
                let service = service_fn(move |request| {
                    answer(
                        request,
                        Arc::clone(&kept),
                        session.clone(),
                        Arc::clone(&served),
                    )
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        });
        Self {
            address,
            serving,
            reports,
            has_session,
            script,
        }
    }

    /// Origin of the page, for `cors.origins`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts Chromium with a script of the test, which calls `report` with an object.
    pub fn run(self, script: &str) -> Browser {
        script.clone_into(&mut self.script.lock().unwrap());
        self.open(&[], &[])
    }

    /// Starts Chromium with one EventSource per URL. Each listens to `message` and to the event
    /// names `names`.
    pub fn open(self, urls: &[&str], names: &[&str]) -> Browser {
        self.open_and_follow(urls, &[], names)
    }

    /// Same as [`Page::open`], with one more event stream per URL in `followed`, by
    /// `follow` of `clients/js` with bearer tokens. Their sources are after those of the EventSources.
    pub fn open_and_follow(self, urls: &[&str], followed: &[&str], names: &[&str]) -> Browser {
        let pairs = urls
            .iter()
            .map(|url| ("url", *url))
            .chain(followed.iter().map(|url| ("fetch", *url)))
            .chain(names.iter().map(|name| ("event", *name)))
            .chain(self.has_session.then_some(("renew", "")));
        let query: Vec<String> = pairs
            .map(|(key, value)| format!("{key}={}", escape(value)))
            .collect();
        let profile = tempfile::tempdir().unwrap();
        let mut command = Command::new(chromium());
        command
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()));
        command.arg(format!("{}/?{}", self.origin(), query.join("&")));
        Browser {
            process: Process::spawn("chromium", &mut command),
            page: self,
            _profile: profile,
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

// === impl Browser ===

impl Browser {
    /// All reports: objects with `source` (index of the URL), `at` (ms) and `kind` (`open`, `event`
    /// or `error`).
    pub fn reports(&self) -> Vec<Value> {
        self.page.reports.lock().unwrap().clone()
    }

    /// Reports from index `from` on, and the index for the next call.
    pub fn reports_since(&self, from: usize) -> (Vec<Value>, usize) {
        let reports = self.page.reports.lock().unwrap();
        (reports[from..].to_vec(), reports.len())
    }

    /// Events received: `name`, `data`, `id`.
    pub fn events(&self) -> Vec<Value> {
        self.reports()
            .into_iter()
            .filter(|report| report["kind"] == "event")
            .collect()
    }

    /// Waits until the reports satisfy `wanted`; returns them.
    pub async fn until(&self, fact: &str, wanted: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        eventually(DEADLINE, fact, || async {
            let reports = self.reports();
            wanted(&reports).then_some(reports)
        })
        .await
    }

    /// Output of Chromium itself.
    pub fn output(&self) -> Vec<String> {
        self.process.lines()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // SIGTERM: Chromium then ends its own child processes. After SIGKILL they would keep the
        // profile open.
        self.process.signal(rustix::process::Signal::TERM);
        for _ in 0..200 {
            if self.process.exited().is_some() {
                return;
            }
            // `drop` cannot await, and nothing else of this test is running.
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    reports: Arc<Mutex<Vec<Value>>>,
    session: Option<Mint>,
    script: Arc<Mutex<String>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let is_script = request.uri().path() == "/client.js";
    let content_type = if is_script {
        "text/javascript"
    } else {
        "text/html"
    };
    let mut answer = Response::builder().header("Content-Type", content_type);
    if let Some(mint) = &session
        && matches!(request.uri().path(), "/" | "/session")
    {
        let cookie = format!("session={}; HttpOnly; SameSite=Lax; Path=/", mint().await);
        answer = answer.header("Set-Cookie", cookie);
    }
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => {
            let script = script.lock().unwrap().clone();
            (StatusCode::OK, format!("{HEAD}{script}</script>"))
        }
        (&Method::GET, "/client.js") => (StatusCode::OK, file(crate::node::CLIENT)),
        (&Method::GET, "/token") => match session {
            Some(mint) => (StatusCode::OK, mint().await),
            None => (StatusCode::NOT_FOUND, String::new()),
        },
        (&Method::POST, "/session") => (StatusCode::OK, String::new()),
        (&Method::POST, "/reports") => match request.into_body().collect().await {
            Ok(body) => {
                let batch: Vec<Value> =
                    serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
                let mut reports = reports.lock().unwrap();
                if reports.len() < REPORTS_MAX {
                    reports.extend(batch);
                }
                (StatusCode::OK, String::new())
            }
            Err(_) => (StatusCode::BAD_REQUEST, String::new()),
        },
        _ => (StatusCode::NOT_FOUND, String::new()),
    };
    Ok(answer.status(status).body(Full::new(body.into())).unwrap())
}

/// Chromium executable: the environment variable `CHROMIUM`, or `chromium` in `PATH`.
fn chromium() -> PathBuf {
    std::env::var_os("CHROMIUM").map_or_else(|| PathBuf::from("chromium"), PathBuf::from)
}

/// Percent-encodes a query value; unreserved characters (RFC 3986) are unchanged.
fn escape(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
