//! Sidecar of the demo: configuration, process and readiness.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::child::{Child, last_lines};
use super::failure::Failure;

/// Addresses of the sidecar and the NATS server, and the directory for its files.
pub(super) struct Plan<'a> {
    pub(super) clients: SocketAddr,
    pub(super) admin: SocketAddr,
    pub(super) nats: &'a str,
    pub(super) directory: &'a Path,
}

/// Writes the configuration and starts this same executable with it, as in production.
pub(super) fn start(plan: &Plan<'_>) -> Result<Child, Failure> {
    let file = write_config(plan)?;
    let program = std::env::current_exe();
    let program = program
        .map_err(|error| Failure::internal(format!("cannot find this executable: {error}")))?;
    let mut command = Command::new(program);
    command.arg("run").arg("--config").arg(file);
    Child::spawn("the sidecar", command, &log(plan))
}

/// Waits until `/health/ready` returns 200.
pub(super) async fn ready(plan: &Plan<'_>) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_TIMEOUT;
    while Instant::now() < deadline {
        if let Ok(Some(StatusCode::OK)) = timeout(Duration::from_secs(1), status(plan.admin)).await
        {
            return Ok(());
        }
        sleep(Duration::from_millis(50)).await;
    }
    let why = last_lines(&log(plan)); // the log is removed with the demo
    Err(Failure::internal(format!(
        "the sidecar was not ready within {} s{why}",
        READY_TIMEOUT.as_secs()
    )))
}

fn log(plan: &Plan<'_>) -> PathBuf {
    plan.directory.join("sidecar.log")
}

async fn status(admin: SocketAddr) -> Option<StatusCode> {
    let socket = TcpStream::connect(reachable(admin)).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.ok()?;
    let request = Request::get("/health/ready")
        .header("host", admin.to_string())
        .body(Empty::<Bytes>::new())
        .ok()?;
    let mut answer = pin!(sender.send_request(request));
    let answer = tokio::select! {
        biased;
        answer = answer.as_mut() => answer,
        // The connection must be polled for the response, and may end in the same poll.
        _ = connection => answer.await,
    };
    Some(answer.ok()?.status())
}

/// Address to connect to for a listening address: loopback in place of "all interfaces".
pub(super) fn reachable(listening: SocketAddr) -> SocketAddr {
    let loopback = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(loopback, listening.port())
}

fn write_config(plan: &Plan<'_>) -> Result<PathBuf, Failure> {
    let file = plan.directory.join("sidecar.yaml");
    let written = fs::write(&file, config(plan));
    written.map_err(|error| Failure::internal(format!("{}: {error}", file.display())))?;
    Ok(file)
}

/// Configuration of the demo; a user may copy it as a first one.
fn config(plan: &Plan<'_>) -> String {
    // External strings are written as JSON strings, which are valid YAML.
    let quoted = |text: &str| serde_json::Value::from(text).to_string();
    format!(
        r#"listen:
  - address: {clients}
admin:
  address: {admin}
  control: {control}
  tap: true
nats:
  servers: [{nats}]
routes:
  - path: /events
    sources:
      - stream: DEMO
        subjects: ["{{query.subject}}"]
        allow: ["demo.>"]
      - subjects: ["announcements.>"]
    retry: 1s
    cors: {{ origins: ["*"], credentials: false }}
  - path: /events/orders/{{id}}
    sources:
      - stream: DEMO
        subjects: ["demo.orders.{{id}}.>"]
    retry: 1s
    cors: {{ origins: ["*"], credentials: false }}
drain: {{ accept_for: 500ms, spread: 1s, timeout: 5s, retry: {{ min: 500ms, max: 2s }} }}
"#,
        clients = quoted(&plan.clients.to_string()),
        admin = quoted(&plan.admin.to_string()),
        control = quoted(&plan.directory.join("control.sock").to_string_lossy()),
        nats = quoted(plan.nats),
    )
}

/// 20 s: connecting to NATS and catching up take milliseconds here.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_for_all_interfaces_is_reached_on_loopback() {
        let called = |text: &str| reachable(text.parse().unwrap()).to_string();
        assert_eq!(called("0.0.0.0:80"), "127.0.0.1:80");
        assert_eq!(called("[::]:80"), "[::1]:80");
        assert_eq!(called("192.0.2.7:80"), "192.0.2.7:80");
    }
}
