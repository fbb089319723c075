//! Application that a sidecar passes requests to, with pages for the tests: the HTTP server of Node,
//! uvicorn or Go.

use std::io::Write as _;
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::nats::free_port;
use crate::process::Process;
use crate::repository::{root, tool};
use crate::wait::{DEADLINE, eventually};

/// HTTP server of an application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// `node:http`, or `node:http2`.
    Node,
    /// uvicorn with the parser h11.
    UvicornH11,
    /// uvicorn with the parser httptools, the usual one.
    UvicornHttptools,
    /// `net/http`.
    Go,
}

/// Running application. Dropping it kills the process.
pub struct Application {
    server: Server,
    process: Option<Process>,
    port: u16,
    keep_alive: Duration,
    is_http2: bool,
}

impl Application {
    /// Starts an application with the server of Node.
    pub async fn start() -> Self {
        let mut application = Self::down();
        application.run().await;
        application
    }

    /// Returns an application with the server of Node that does not run yet.
    pub fn down() -> Self {
        Self::of(Server::Node)
    }

    /// Returns an application with this server that does not run yet.
    pub fn of(server: Server) -> Self {
        Self {
            server,
            process: None,
            port: free_port(),
            keep_alive: Duration::from_secs(5),
            is_http2: false,
        }
    }

    /// Sets the time after which it closes an unused connection.
    pub fn keep_alive(self, keep_alive: Duration) -> Self {
        Self { keep_alive, ..self }
    }

    /// Makes it speak HTTP/2 in clear text, and nothing else.
    pub fn http2(self) -> Self {
        Self {
            is_http2: true,
            ..self
        }
    }

    /// Address in the configuration.
    pub fn url(&self) -> String {
        let scheme = if self.is_http2 { "h2c" } else { "http" };
        format!("{scheme}://{}", self.address())
    }

    /// Host and port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Starts the process, and returns when it listens.
    pub async fn run(&mut self) {
        let mut command = self.command();
        self.process = Some(Process::spawn("application", &mut command));
        self.until("the application listens", |reports| {
            reports.iter().any(|report| report["kind"] == "listening")
        })
        .await;
    }

    fn command(&self) -> Command {
        let folder = root().join("tests/application");
        let version = if self.is_http2 { "h2c" } else { "http" };
        let python = |parser: &str| {
            let mut command = Command::new(tool("application-python", "bin/python"));
            command
                .arg(folder.join("application.py"))
                .arg(self.port.to_string())
                .arg(self.keep_alive.as_secs_f64().to_string())
                .arg(parser);
            command
        };
        match self.server {
            Server::Node => {
                let mut command = Command::new("node");
                command
                    .arg(folder.join("application.mjs"))
                    .arg(self.port.to_string())
                    .arg(self.keep_alive.as_millis().to_string())
                    .arg(version)
                    .env_remove("NODE_OPTIONS");
                command
            }
            Server::UvicornH11 => python("h11"),
            Server::UvicornHttptools => python("httptools"),
            Server::Go => {
                let mut command = Command::new(tool("application-go", "application"));
                command
                    .arg(self.port.to_string())
                    .arg(format!("{}ms", self.keep_alive.as_millis()))
                    .arg(version);
                command
            }
        }
    }

    /// Kills the process.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// Server of this application.
    pub fn server(&self) -> Server {
        self.server
    }

    /// Lines that it has printed: requests, their ends.
    pub fn reports(&self) -> Vec<Value> {
        let process = self.process.as_ref().expect("the application runs");
        let lines = process.lines();
        lines
            .iter()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// Number of requests for this path.
    pub fn requests(&self, path: &str) -> usize {
        self.flush();
        let reports = self.reports();
        let is_one = |report: &&Value| report["kind"] == "request" && report["url"] == path;
        reports.iter().filter(is_one).count()
    }

    /// Reads all that it has printed until now: the report of a further request follows the others.
    fn flush(&self) {
        if self.is_http2 {
            return;
        }
        let url = format!("/flush/{:x}", fastrand::u64(..));
        let Ok(mut socket) = TcpStream::connect(self.address()) else {
            return;
        };
        let request = format!("GET {url} HTTP/1.0\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let end = Instant::now() + DEADLINE;
        while !self.reports().iter().any(|report| report["url"] == *url) {
            assert!(Instant::now() < end, "the application reports a request");
            std::thread::yield_now();
        }
    }

    /// Waits until its reports satisfy `wanted`.
    pub async fn until(&self, fact: &str, wanted: impl Fn(&[Value]) -> bool) {
        eventually(DEADLINE, fact, || async {
            wanted(&self.reports()).then_some(())
        })
        .await;
    }
}
