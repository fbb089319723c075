//! Client libraries from npm, run by Node: their reports, one JSON object per line.

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::nats::free_port;
use crate::oidc::OidcIssuer;
use crate::process::Process;
use crate::repository::root;
use crate::wait::{RECOVERY, eventually};

/// Client library of this project, as `npm run build` writes it.
pub const CLIENT: &str = "clients/js/dist/index.js";

/// Running client. Dropping it kills the process.
pub struct NodeClient {
    process: Process,
}

/// Tabs of Chromium with `SidestreamSource` of `clients/js`, and the process that controls them.
/// Dropping it ends both.
pub struct Tabs {
    client: NodeClient,
    _profile: TempDir,
}

impl NodeClient {
    /// Starts the npm package `eventsource`, listening to `message` and to these event names.
    pub fn eventsource(url: &str, names: &[&str]) -> Self {
        Self::eventsources(&[url], names)
    }

    /// Starts one `eventsource` per URL in one process; `source` of a report is the index of the
    /// URL.
    pub fn eventsources(urls: &[&str], names: &[&str]) -> Self {
        Self::start("eventsource.mjs", &[urls, names].concat())
    }

    /// Starts the npm package `@microsoft/fetch-event-source`, which receives every event name.
    pub fn fetch_event_source(url: &str) -> Self {
        Self::start("fetch-event-source.mjs", &[url])
    }

    /// Same as [`NodeClient::fetch_event_source`], with the two lines that the documentation
    /// recommends.
    pub fn fetch_event_source_with_two_lines(url: &str) -> Self {
        Self::start("fetch-event-source.mjs", &[url, "two-lines"])
    }

    /// Starts the npm package `ws`, which reconnects and resumes.
    pub fn websocket(url: &str) -> Self {
        Self::start("websocket.mjs", &[url])
    }

    /// Starts `follow` of `clients/js` with bearer tokens of an issuer that live for some seconds.
    pub fn follow(url: &str, issuer: &OidcIssuer, seconds: u64) -> Self {
        let arguments = [url, &issuer.url(), &seconds.to_string()];
        Self::start("follow.mjs", &arguments)
    }

    /// Starts `SidestreamSource` of `clients/js`.
    pub fn source(url: &str, options: &Value) -> Self {
        Self::start("source.mjs", &[url, &options.to_string()])
    }

    /// All reports: objects with `kind` (`open`, `event`, `error`, `close` or `done`).
    pub fn reports(&self) -> Vec<Value> {
        self.process.scan(0, |lines| {
            lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect()
        })
    }

    /// Reports from line `from` on, and the line for the next call.
    pub fn reports_since(&self, from: usize) -> (Vec<Value>, usize) {
        self.process.scan(from, |lines| {
            let reports = lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            (reports, from + lines.len())
        })
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
        eventually(RECOVERY * 2, fact, || async {
            let reports = self.reports();
            wanted(&reports).then_some(reports)
        })
        .await
    }

    /// Node process, for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn start(script: &str, arguments: &[&str]) -> Self {
        let folder = root().join("tests/clients");
        assert!(
            folder.join("node_modules").exists() && root().join(CLIENT).exists(),
            "the npm clients are not installed: run `make tools`"
        );
        let mut command = Command::new("node");
        command
            .arg(folder.join(script))
            .args(arguments)
            .env_remove("NODE_OPTIONS");
        Self {
            process: Process::spawn(script, &mut command),
        }
    }
}

// === impl Tabs ===

impl Tabs {
    /// Starts Chromium and runs the steps that `tests/clients/tabs.mjs` describes.
    pub fn start(url: &str, options: &Value, steps: &[&str]) -> Self {
        let profile = tempfile::tempdir().unwrap();
        let port = free_port().to_string();
        let folder = profile.path().display().to_string();
        let options = options.to_string();
        let arguments = [&[port.as_str(), &folder, url, &options], steps].concat();
        Self {
            client: NodeClient::start("tabs.mjs", &arguments),
            _profile: profile,
        }
    }

    /// Waits until the step with this index is done.
    pub async fn until_done(&self, step: usize) {
        let done = |report: &Value| report["kind"] == "done" && report["index"] == step;
        let fact = format!("step {step} of the tabs is done");
        eventually(RECOVERY, &fact, || async {
            self.reports().iter().any(done).then_some(())
        })
        .await;
    }

    /// All reports of the tabs.
    pub fn reports(&self) -> Vec<Value> {
        self.client.reports()
    }
}

impl Drop for Tabs {
    fn drop(&mut self) {
        self.client.process.signal(Signal::TERM);
        for _ in 0..500 {
            if self.client.process.exited().is_some() {
                return;
            }
            // `drop` cannot await, and nothing else of this test is running.
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}
