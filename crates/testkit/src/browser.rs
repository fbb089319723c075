//! A real browser: headless Chromium on a page of the rig that opens an EventSource and reports what it sees.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
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
use crate::wait::eventually;

/// 60 s: Chromium takes seconds to start, many on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// What a page may report before the rig stops listening to it.
const REPORTS_MAX: usize = 100_000;

/// No sandbox, because containers run the tests as root; QUIC and everything that calls home are off.
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
    // The authority of the rig is not in the browser's store.
    "--ignore-certificate-errors",
];

/// The page: reports are posted one after the other, so that they arrive in the order in which they were seen.
const PAGE: &str = r#"<!doctype html><meta charset="utf-8"><title>rig</title><script>
const ask = new URLSearchParams(location.search);
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
for (const [index, url] of ask.getAll("url").entries()) {
  const source = new EventSource(url, { withCredentials: ask.has("credentials") });
  const at = () => Math.round(performance.now());
  source.onopen = () => report({ source: index, at: at(), kind: "open" });
  source.onerror = () => report({ source: index, at: at(), kind: "error", state: source.readyState });
  for (const name of ["message", ...ask.getAll("event")])
    source.addEventListener(name, (event) => report(
      { source: index, at: at(), kind: "event", name: event.type, data: event.data, id: event.lastEventId }));
}
</script>"#;

/// The server of the page; a browser is started by [`Page::open`].
pub struct Page {
    address: SocketAddr,
    serving: JoinHandle<()>,
    reports: Arc<Mutex<Vec<Value>>>,
}

/// A browser that shows the page; killed when dropped.
pub struct Browser {
    page: Page,
    process: Process,
    _profile: TempDir,
}

// === impl Page ===

impl Page {
    /// Serves the page on a free port of loopback.
    pub async fn serve() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reports = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&reports);
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let kept = Arc::clone(&kept);
                let service = service_fn(move |request| answer(request, Arc::clone(&kept)));
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(socket), service));
            }
        });
        Self {
            address,
            serving,
            reports,
        }
    }

    /// The page's origin, for `cors.origins`.
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Starts Chromium on the page, with an EventSource on each of `urls` that listens to `message` and to `names`.
    pub fn open(self, urls: &[&str], names: &[&str]) -> Browser {
        let pairs = urls
            .iter()
            .map(|url| ("url", *url))
            .chain(names.iter().map(|name| ("event", *name)));
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
    /// Everything seen so far: objects with `source` (which URL), `at` (ms), `kind` (`open`, `event`, `error`).
    pub fn reports(&self) -> Vec<Value> {
        self.page.reports.lock().unwrap().clone()
    }

    /// What was seen from report `from` on, and the report to ask from the next time.
    pub fn reports_since(&self, from: usize) -> (Vec<Value>, usize) {
        let reports = self.page.reports.lock().unwrap();
        (reports[from..].to_vec(), reports.len())
    }

    /// The events seen so far: `name`, `data`, `id`.
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

    /// What Chromium itself has printed.
    pub fn output(&self) -> Vec<String> {
        self.process.lines()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Asked to end, Chromium ends its own children; SIGKILL would leave them, and they would hold the profile.
        self.process.signal(rustix::process::Signal::TERM);
        for _ in 0..200 {
            if self.process.exited().is_some() {
                return;
            }
            // A drop cannot await; nothing else of this test runs any more.
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

async fn answer(
    request: Request<Incoming>,
    reports: Arc<Mutex<Vec<Value>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/") => (StatusCode::OK, PAGE),
        (&Method::POST, "/reports") => match request.into_body().collect().await {
            Ok(body) => {
                let batch: Vec<Value> =
                    serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
                let mut reports = reports.lock().unwrap();
                if reports.len() < REPORTS_MAX {
                    reports.extend(batch);
                }
                (StatusCode::OK, "")
            }
            Err(_) => (StatusCode::BAD_REQUEST, ""),
        },
        _ => (StatusCode::NOT_FOUND, ""),
    };
    let answer = Response::builder()
        .status(status)
        .header("Content-Type", "text/html");
    Ok(answer
        .body(Full::new(Bytes::from_static(body.as_bytes())))
        .unwrap())
}

/// The browser: `CHROMIUM` of the environment, or Debian's.
fn chromium() -> PathBuf {
    std::env::var_os("CHROMIUM").map_or_else(|| PathBuf::from("chromium"), PathBuf::from)
}

/// Percent-encodes a query value (RFC 3986, unreserved characters stay).
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
