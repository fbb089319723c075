//! The client libraries that applications use, run by Node: what they report, one JSON line each.

use std::process::Command;

use serde_json::Value;

use crate::process::Process;
use crate::repository::root;
use crate::wait::{DEADLINE, eventually};

/// A running client; killed when dropped.
pub struct NodeClient {
    process: Process,
}

impl NodeClient {
    /// The npm package `eventsource`, listening to `message` and to these event names.
    pub fn eventsource(url: &str, names: &[&str]) -> Self {
        Self::eventsources(&[url], names)
    }

    /// Several of them in one process; `source` in a report is the URL's place.
    pub fn eventsources(urls: &[&str], names: &[&str]) -> Self {
        Self::start("eventsource.mjs", &[urls, names].concat())
    }

    /// The npm package `@microsoft/fetch-event-source`, which hears every name.
    pub fn fetch_event_source(url: &str) -> Self {
        Self::start("fetch-event-source.mjs", &[url])
    }

    /// As [`NodeClient::fetch_event_source`], with the two lines that its page in the documentation asks for.
    pub fn fetch_event_source_with_two_lines(url: &str) -> Self {
        Self::start("fetch-event-source.mjs", &[url, "two-lines"])
    }

    /// Everything reported so far: objects with `kind` (`open`, `event`, `error`, `close`, `done`).
    pub fn reports(&self) -> Vec<Value> {
        self.process.scan(0, |lines| {
            lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect()
        })
    }

    /// What was reported from line `from` on, and the line to ask from the next time.
    pub fn reports_since(&self, from: usize) -> (Vec<Value>, usize) {
        self.process.scan(from, |lines| {
            let reports = lines
                .iter()
                .filter_map(|line| serde_json::from_str(line).ok())
                .collect();
            (reports, from + lines.len())
        })
    }

    /// The events reported so far: `name`, `data`, `id`.
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

    /// The Node process, for signals.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    fn start(script: &str, arguments: &[&str]) -> Self {
        let folder = root().join("tests/clients");
        assert!(
            folder.join("node_modules").exists(),
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
