//! A real Prometheus that scrapes a sidecar, and promtool.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http1;
use crate::nats::free_port;
use crate::process::Process;
use crate::repository::root;
use crate::wait::{DEADLINE, eventually};

/// Running Prometheus. Dropping it kills the process.
pub struct Prometheus {
    url: String,
    _process: Process,
    _folder: TempDir,
}

/// Program of the package: the one in `.tools/`, else in `PATH`.
fn program(name: &str) -> PathBuf {
    let own = root().join(".tools/prometheus/usr/bin").join(name);
    if own.exists() { own } else { name.into() }
}

impl Prometheus {
    /// Starts a server that scrapes `target` (`host:port`) every half second as the pod `pod` in the
    /// namespace `shop`, with these rules (the text of a rule file).
    pub async fn start(target: &str, rules: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let in_folder = |name: &str| folder.path().join(name);
        let port = free_port();
        std::fs::write(in_folder("rules.yml"), rules).unwrap();
        let labels = json!({ "namespace": "shop", "pod": "pod" });
        let config = json!({
            "global": { "scrape_interval": "500ms", "evaluation_interval": "500ms" },
            "rule_files": ["rules.yml"],
            "scrape_configs": [{
                "job_name": "sidestream",
                "static_configs": [{ "targets": [target], "labels": labels }],
            }],
        });
        std::fs::write(in_folder("prometheus.yml"), config.to_string()).unwrap();
        let mut command = Command::new(program("prometheus"));
        command
            .current_dir(folder.path())
            .arg("--config.file=prometheus.yml")
            .arg("--storage.tsdb.path=data")
            .arg("--enable-feature=exemplar-storage")
            .arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::spawn("prometheus", &mut command);
        let url = format!("http://127.0.0.1:{port}");
        eventually(DEADLINE, "Prometheus is ready", || async {
            let ready = http1::get(&format!("{url}/-/ready")).await;
            ready.is_ok_and(|answer| answer.status == 200)
        })
        .await;
        Self {
            url,
            _process: process,
            _folder: folder,
        }
    }

    /// Asks the API: the field `data`, or the error.
    pub async fn get(&self, path: &str, query: &str) -> Result<Value, String> {
        let url = format!("{}/api/v1/{path}?{query}", self.url);
        let answer = http1::get(&url).await.map_err(|error| error.to_string())?;
        let mut answer = answer.json();
        match answer["status"].as_str() {
            Some("success") => Ok(answer["data"].take()),
            _ => Err(answer["error"].to_string()),
        }
    }
}

/// Runs promtool in a folder; returns its output if it fails.
pub fn promtool(folder: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program("promtool"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("promtool is not installed, run `make tools`: {error}"));
    if output.status.success() {
        return Ok(());
    }
    let text = [output.stdout, output.stderr].concat();
    Err(String::from_utf8_lossy(&text).into_owned())
}
