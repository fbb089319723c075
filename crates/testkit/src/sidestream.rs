//! The sidecar under test as a child process: configuration, addresses, probes, metrics, signals.
//!
//! Listeners use port 0. The addresses are read from the log of the sidecar.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::certs::Authority;
use crate::http1;
use crate::nats::Nats;
use crate::process::Process;
use crate::wait::{DEADLINE, eventually, within};

/// Binary under test.
pub fn binary() -> PathBuf {
    crate::repository::binary("sidestream")
}

/// Running sidecar. Dropping it kills the process, and prints its log if the test is failing.
pub struct Sidestream {
    process: Process,
    folder: TempDir,
    admin: String,
    listeners: Vec<Listener>,
}

/// Options of a sidecar.
pub struct Builder {
    config: String,
    environment: Vec<(String, String)>,
    files: Vec<(String, Vec<u8>)>,
    wait_ready: bool,
    open_files: Option<(u64, u64)>,
    link: Option<PathBuf>,
}

/// Listener, from a `listening` line of the log.
#[derive(Clone, Debug)]
struct Listener {
    address: String,
    tls: bool,
}

/// Configuration on free ports for this nats-server, followed by `rest`: at least `routes:`.
pub fn config(nats: &Nats, rest: &str) -> String {
    config_for(&[nats.url()], rest)
}

/// Same as [`config`], with the addresses of a cluster or a proxy.
pub fn config_for(servers: &[String], rest: &str) -> String {
    let servers = serde_json::to_string(servers).unwrap();
    format!(
        "listen:\n  - address: 127.0.0.1:0\nadmin:\n  address: 127.0.0.1:0\nnats:\n  servers: {servers}\n{rest}\n"
    )
}

/// Configuration with a listener in clear text, one with TLS, and a control socket, followed by
/// `rest`: at least `routes:`.
pub fn config_with_tls(nats: &Nats, authority: &Authority, rest: &str) -> String {
    let identity = authority.server("server");
    let (certificate, key) = (&identity.certificate, &identity.key);
    format!(
        "listen:
  - address: 127.0.0.1:0
  - address: 127.0.0.1:0
    tls: {{ certificate: {certificate:?}, key: {key:?} }}
admin: {{ address: 127.0.0.1:0, control: control.sock }}
nats: {{ servers: [{:?}] }}
{rest}
",
        nats.url()
    )
}

/// Runs the binary until it exits.
pub async fn run(arguments: &[&str], folder: &Path) -> Output {
    let child = tokio::process::Command::new(binary())
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    within(DEADLINE, &format!("sidestream {arguments:?} ends"), child)
        .await
        .unwrap()
}

// === impl Builder ===

impl Builder {
    /// Sets an environment variable of the child.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes a file into the folder of the configuration, which is the working directory of the
    /// child.
    pub fn file(mut self, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.files.push((name.to_owned(), content.into()));
        self
    }

    /// Makes [`Builder::start`] return when the sidecar listens, before it is ready.
    pub fn without_waiting(mut self) -> Self {
        self.wait_ready = false;
        self
    }

    /// Sets the soft and the hard limit of open files.
    pub fn open_files(mut self, soft: u64, hard: u64) -> Self {
        self.open_files = Some((soft, hard));
        self
    }

    /// Makes the configuration a symbolic link to this file.
    pub fn linked_to(mut self, file: &Path) -> Self {
        self.link = Some(file.to_owned());
        self
    }

    /// Starts the sidecar and waits until `/health/ready` returns 200.
    pub async fn start(self) -> Sidestream {
        let wait_ready = self.wait_ready;
        let mut sidestream = self.spawn();
        sidestream.await_addresses().await;
        if wait_ready {
            sidestream.ready().await;
        }
        sidestream
    }

    /// Starts the sidecar without waiting, for configurations that make it exit.
    pub fn spawn(self) -> Sidestream {
        let folder = tempfile::Builder::new()
            .prefix("sidestream-")
            .tempdir()
            .unwrap();
        for (name, content) in &self.files {
            std::fs::write(folder.path().join(name), content).unwrap();
        }
        let file = folder.path().join("sidecar.yaml");
        match &self.link {
            None => std::fs::write(&file, &self.config).unwrap(),
            Some(target) => std::os::unix::fs::symlink(target, &file).unwrap(),
        }
        let mut command = match self.open_files {
            None => Command::new(binary()),
            Some((soft, hard)) => {
                let mut command = Command::new("prlimit");
                command
                    .arg(format!("--nofile={soft}:{hard}"))
                    .arg("--")
                    .arg(binary());
                command
            }
        };
        command
            .arg("run")
            .arg("--config")
            .arg(&file)
            .current_dir(folder.path());
        // One control socket per sidecar, in each of the folders that it may choose.
        command
            .env("XDG_RUNTIME_DIR", folder.path())
            .env("TMPDIR", folder.path());
        command.envs(self.environment);
        let process = Process::spawn("sidestream", &mut command);
        Sidestream {
            process,
            folder,
            admin: String::new(),
            listeners: Vec::new(),
        }
    }
}

// === impl Sidestream ===

impl Sidestream {
    /// Starts a sidecar with this configuration and waits until it is ready.
    pub async fn start(config: impl Into<String>) -> Self {
        Self::builder(config).start().await
    }

    /// Starts with default options; [`Builder::start`] starts the sidecar.
    pub fn builder(config: impl Into<String>) -> Builder {
        Builder {
            config: config.into(),
            environment: Vec::new(),
            files: Vec::new(),
            wait_ready: true,
            open_files: None,
            link: None,
        }
    }

    /// Address of the first listener in clear text, for a proxy.
    pub fn address(&self) -> SocketAddr {
        self.listener(false).address.parse().unwrap()
    }

    /// URL of `path` on the first listener in clear text.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.listener(false).address)
    }

    /// URL of `path` on the first listener with TLS.
    pub fn url_tls(&self, path: &str) -> String {
        format!("https://{}{path}", self.listener(true).address)
    }

    /// URL of `path` on the admin port.
    pub fn url_admin(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }

    /// Sends GET to the admin port; returns status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let answer = http1::get(&self.url_admin(path))
            .await
            .unwrap_or_else(|error| panic!("admin {path}: {error}"));
        (answer.status, answer.body)
    }

    /// Sends GET to the admin port; returns the body as JSON, with any status.
    pub async fn admin_json(&self, path: &str) -> Value {
        let (status, body) = self.admin(path).await;
        serde_json::from_str(&body)
            .unwrap_or_else(|error| panic!("admin {path}: {status}, {error} in {body:?}"))
    }

    /// Waits until `/health/ready` returns 200.
    pub async fn ready(&mut self) {
        eventually(DEADLINE, "the sidecar is ready", || async {
            http1::get(&self.url_admin("/health/ready"))
                .await
                .is_ok_and(|answer| answer.status == 200)
        })
        .await;
    }

    /// Sum of the series of a metric with these labels; 0 without any.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let (status, text) = self.admin("/metrics").await;
        assert_eq!(status, 200, "the metrics are served");
        metric(&text, name, labels)
    }

    /// Waits until `wanted` returns true for the value of a metric; returns the value.
    pub async fn until_metric(
        &self,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
    ) -> f64 {
        self.until_metric_within(DEADLINE, name, labels, wanted)
            .await
    }

    /// Same as [`Sidestream::until_metric`], with another deadline.
    pub async fn until_metric_within(
        &self,
        deadline: Duration,
        name: &str,
        labels: &[(&str, &str)],
        wanted: impl Fn(f64) -> bool,
    ) -> f64 {
        eventually(
            deadline,
            &format!("{name}{labels:?} is as wanted"),
            || async {
                let value = self.metric(name, labels).await;
                wanted(value).then_some(value)
            },
        )
        .await
    }

    /// Log until now, one object per line, with the fields of the event at the top level.
    pub fn log(&self) -> Vec<Value> {
        self.process.scan(0, parse_log)
    }

    /// All output of the process.
    pub fn output(&self) -> Vec<String> {
        self.process.lines()
    }

    /// Waits for a log line; earlier lines count.
    pub async fn until_log(&self, fact: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        eventually(DEADLINE, fact, || async {
            self.log().into_iter().find(|line| wanted(line))
        })
        .await
    }

    /// Waits for a log line with this message; earlier lines count.
    pub async fn until_message(&self, message: &str) -> Value {
        self.until_log(&format!("the sidecar logs {message:?}"), |line| {
            line["message"] == message
        })
        .await
    }

    /// Sends SIGTERM, as the kubelet does.
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
    }

    /// Sends SIGKILL and reaps the process.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Sends a signal; STOP and CONT pause and resume the whole pod.
    pub fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Waits until the process exits; returns its exit code, or the negative number of the signal
    /// that killed it.
    pub async fn wait_exit(&mut self, deadline: Duration) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.process.wait_exit(deadline).await;
        status
            .code()
            .unwrap_or_else(|| -status.signal().unwrap_or_default())
    }

    /// Returns true while the process runs.
    pub fn running(&mut self) -> bool {
        self.process.exited().is_none()
    }

    /// Replaces the configuration file atomically, as a ConfigMap update does.
    pub fn rewrite_config(&self, text: &str) {
        let next = self.folder.path().join("sidecar.yaml.next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, self.config_file()).unwrap();
    }

    /// Configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.folder.path().join("sidecar.yaml")
    }

    /// Working directory of the child; it is deleted with this handle.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Sets the treatment of the log: read, not read, or its pipe closed.
    pub fn set_output(&self, output: crate::process::Output) {
        self.process.set_output(output);
    }

    /// Process id, for reading `/proc`.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Resident memory in bytes after the allocator has returned free pages. It returns a page a
    /// fifth of a second after it is free, at the next allocation.
    pub async fn resident_bytes_at_rest(&self) -> u64 {
        let (mut least, mut since) = (u64::MAX, 0);
        while since < 4 {
            self.admin_json("/health").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            since += 1;
            if self.resident_bytes() < least {
                (least, since) = (self.resident_bytes(), 0);
            }
        }
        least
    }

    /// Peak of the resident memory in bytes.
    pub fn resident_bytes_peak(&self) -> u64 {
        self.status_bytes("VmHWM:")
    }

    /// Number of open file descriptors.
    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid()))
            .unwrap()
            .count()
    }

    /// Value of a line of `/proc/<pid>/status` (proc(5)).
    fn status_bytes(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with(key))
            .expect("the process has memory");
        line.split_whitespace()
            .nth(1)
            .unwrap()
            .parse::<u64>()
            .unwrap()
            * 1024
    }

    fn listener(&self, tls: bool) -> &Listener {
        self.listeners
            .iter()
            .find(|listener| listener.tls == tls)
            .unwrap_or_else(|| panic!("no listener with tls={tls} in {:?}", self.listeners))
    }

    async fn await_addresses(&mut self) {
        let Self {
            process,
            admin,
            listeners,
            ..
        } = self;
        eventually(DEADLINE, "the sidecar logs its addresses", || {
            // A sidecar that exits fails the test at once, with its log, and not at the deadline.
            assert!(
                process.exited().is_none(),
                "the sidecar ended before it listened"
            );
            let log = process.scan(0, parse_log);
            let address = |line: &Value| line["address"].as_str().unwrap_or_default().to_owned();
            *admin = log
                .iter()
                .find(|line| line["message"] == "admin listening")
                .map(address)
                .unwrap_or_default();
            *listeners = log
                .iter()
                .filter(|line| line["message"] == "listening")
                .map(|line| Listener {
                    address: address(line),
                    tls: line["tls"] == true,
                })
                .collect();
            // `serving` is logged after the last listener.
            std::future::ready(
                !admin.is_empty() && log.iter().any(|line| line["message"] == "serving"),
            )
        })
        .await;
    }
}

fn parse_log(lines: &[String]) -> Vec<Value> {
    lines
        .iter()
        .filter_map(|line| serde_json::from_str(line).ok())
        .map(flatten)
        .collect()
}

/// Makes `{"level": .., "fields": {"message": ..}}` the same as `{"level": .., "message": ..}`.
fn flatten(mut line: Value) -> Value {
    if let Some(object) = line.as_object_mut()
        && let Some(Value::Object(fields)) = object.remove("fields")
    {
        object.extend(fields);
    }
    line
}

/// Sum of the series of `name` with these labels in a Prometheus text.
pub fn metric(text: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (series_name, series_labels) = series.split_once('{').unwrap_or((series, "}"));
            let series_labels = parse_labels(series_labels);
            let wanted = series_name == name
                && labels
                    .iter()
                    .all(|(key, value)| series_labels.get(*key).is_some_and(|have| have == value));
            wanted.then(|| value.parse::<f64>().unwrap())
        })
        .sum()
}

/// `a="b",c="d"}` with the escapes of the text format: backslash, quote, newline.
fn parse_labels(text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once("=\"") {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let mut end = after.len();
        while let Some((at, char)) = chars.next() {
            match char {
                '"' => {
                    end = at + 1;
                    break;
                }
                '\\' => match chars.next() {
                    Some((_, 'n')) => value.push('\n'),
                    Some((_, escaped)) => value.push(escaped),
                    None => break,
                },
                _ => value.push(char),
            }
        }
        labels.insert(key.trim_start_matches([',', ' ']).to_owned(), value);
        rest = &after[end..];
    }
    labels
}
