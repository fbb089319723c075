//! Real nats-servers as child processes, alone or in a cluster of three.
//!
//! A restart keeps the port and the store.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions, HeaderMap};
use bytes::Bytes;
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::process::Process;
use crate::repository::root;
use crate::wait::{DEADLINE, RECOVERY, eventually, within};

/// Version that is used unless `SIDESTREAM_TEST_NATS` names another.
const VERSION: &str = "2.15.1";

/// Range of the ports: below the ephemeral range of the kernel, so that no outgoing connection uses
/// the port of a server while it restarts.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

/// 30 s: electing the leaders of a cluster takes seconds, and longer on a busy machine.
const ELECTION: Duration = Duration::from_secs(30);

/// nats-server with its own store. Dropping it kills the process.
pub struct Nats {
    launch: Launch,
    process: Process,
}

/// Options of a server.
pub struct Builder {
    config: String,
    jetstream: bool,
}

/// Cluster of three servers with JetStream.
pub struct Cluster {
    nodes: Vec<Nats>,
}

/// Settings of a process, kept for a restart.
struct Launch {
    name: String,
    port: u16,
    config: String,
    jetstream: bool,
    folder: TempDir,
}

// === impl Nats ===

impl Nats {
    /// Starts a server on a free port of loopback, with JetStream and file storage.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Starts with default options; [`Builder::start`] starts the server.
    pub fn builder() -> Builder {
        Builder {
            config: String::new(),
            jetstream: true,
        }
    }

    /// `nats://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.launch.port)
    }

    /// Client port. It is the same after a restart.
    pub fn port(&self) -> u16 {
        self.launch.port
    }

    /// Process id of the server.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Folder of the configuration and the store, for further files of this server.
    pub fn folder(&self) -> &Path {
        self.launch.folder.path()
    }

    /// Connects a client without credentials.
    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// Connects a client with these options.
    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        options
            .connect(self.url())
            .await
            .expect("a nats-server that is ready accepts a connection")
    }

    /// JetStream context on a new client.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// Sends SIGKILL. Connections are reset and the store is kept.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Kills the server if it runs, and starts it with the same port and store.
    pub async fn restart(&mut self) {
        self.kill9();
        let launch = &self.launch;
        self.process = eventually(
            DEADLINE,
            "the restarted nats-server listens on its port",
            || launch.run(),
        )
        .await;
    }

    /// Stops the server, copies its store, and starts it again.
    pub async fn snapshot(&mut self) {
        self.stop().await;
        let (store, snapshot) = self.stores();
        copy_folder(&store, &snapshot);
        self.restart().await;
    }

    /// Kills the server and starts it with the store of [`Nats::snapshot`].
    pub async fn restore(&mut self) {
        self.kill9();
        let (store, snapshot) = self.stores();
        std::fs::remove_dir_all(&store).unwrap();
        copy_folder(&snapshot, &store);
        self.restart().await;
    }

    fn stores(&self) -> (PathBuf, PathBuf) {
        (self.folder().join("store"), self.folder().join("snapshot"))
    }

    /// Sends SIGUSR2: the server enters lame duck mode, then closes its clients.
    pub fn lame_duck(&mut self) {
        self.process.signal(Signal::USR2);
    }

    /// Sends SIGSTOP: the server does not respond, and its sockets remain open.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// Sends SIGCONT, after [`Nats::pause`].
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Ends the server with SIGTERM and waits for it.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(DEADLINE).await;
    }

    /// Log since the last start.
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }
}

// === impl Builder ===

impl Builder {
    /// Appends text to the configuration file: authorization, tls, max_payload, ...
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Disables JetStream.
    pub fn without_jetstream(mut self) -> Self {
        self.jetstream = false;
        self
    }

    /// Starts the server and waits until it is ready.
    pub async fn start(self) -> Nats {
        let mut launch = Launch {
            name: "test".to_owned(),
            port: 0,
            config: self.config,
            jetstream: self.jetstream,
            folder: tempfile::tempdir().unwrap(),
        };
        // Another process may use the port before nats-server does: then try another port.
        for _ in 0..10 {
            launch.port = free_port();
            if let Some(process) = launch.run().await {
                return Nats { launch, process };
            }
        }
        panic!("nats-server found none of ten ports free");
    }
}

// === impl Cluster ===

impl Cluster {
    /// Starts three servers and waits until JetStream has a leader.
    pub async fn start() -> Self {
        for _ in 0..5 {
            if let Some(cluster) = Self::attempt().await {
                return cluster;
            }
        }
        panic!("the cluster found none of five sets of ports free");
    }

    /// Server 0, 1 or 2.
    pub fn node(&mut self, index: usize) -> &mut Nats {
        &mut self.nodes[index]
    }

    /// Addresses of all three servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Nats::url).collect()
    }

    /// Connects a client that knows all three servers.
    pub async fn client(&self) -> Client {
        ConnectOptions::new()
            .connect(self.urls())
            .await
            .expect("one of three servers accepts a connection")
    }

    async fn attempt() -> Option<Self> {
        let routes: Vec<u16> = (0..3).map(|_| free_port()).collect();
        let peers: Vec<String> = routes
            .iter()
            .map(|port| format!("nats://127.0.0.1:{port}"))
            .collect();
        let mut nodes = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            let launch = Launch {
                name: format!("test-{index}"),
                port: free_port(),
                config: format!(
                    "cluster {{ name: test, listen: \"127.0.0.1:{route}\", routes: [{}] }}\n",
                    peers
                        .iter()
                        .map(|peer| format!("\"{peer}\""))
                        .collect::<Vec<_>>()
                        .join(", "),
                ),
                jetstream: true,
                folder: tempfile::tempdir().unwrap(),
            };
            let process = launch.run().await?;
            nodes.push(Nats { launch, process });
        }
        let cluster = Self { nodes };
        let jetstream = jetstream::new(cluster.client().await);
        eventually(
            ELECTION,
            "JetStream has a leader in the cluster",
            || async {
                tokio::time::timeout(Duration::from_secs(1), jetstream.query_account())
                    .await
                    .is_ok_and(|answer| answer.is_ok())
            },
        )
        .await;
        Some(cluster)
    }
}

// === impl Launch ===

impl Launch {
    /// Starts the server; `None` if its port is in use, a panic with its log if it exits for
    /// another reason.
    async fn run(&self) -> Option<Process> {
        let file = self.folder.path().join("nats.conf");
        std::fs::write(&file, self.text()).unwrap();
        let mut process =
            Process::spawn("nats-server", Command::new(server()).arg("-c").arg(&file));
        let ready = eventually(ELECTION, "nats-server is ready", || {
            let ended = process.exited().is_some();
            let said = process.scan(0, |lines| {
                lines.iter().any(|line| line.contains("Server is ready"))
            });
            std::future::ready(if said {
                Some(true)
            } else {
                ended.then_some(false)
            })
        })
        .await;
        if ready {
            return Some(process);
        }
        let log = process.lines().join("\n");
        assert!(
            log.contains("address already in use"),
            "nats-server does not start:\n{log}"
        );
        None
    }

    fn text(&self) -> String {
        let Self {
            name, port, config, ..
        } = self;
        let mut text = format!("server_name: {name}\nlisten: \"127.0.0.1:{port}\"\n");
        // The shortest values that the server accepts; by default, lame duck mode takes two
        // minutes.
        text += "lame_duck_duration: \"30s\"\nlame_duck_grace_period: \"1s\"\n";
        if self.jetstream {
            let store = self.folder.path().join("store");
            let store = store.display();
            text += &format!(
                "jetstream {{ store_dir: \"{store}\", max_memory_store: 256MB, max_file_store: 1GB }}\n"
            );
        }
        text + config
    }
}

/// Version under test: `SIDESTREAM_TEST_NATS`, or the newest.
pub fn version() -> String {
    std::env::var("SIDESTREAM_TEST_NATS").unwrap_or_else(|_| VERSION.to_owned())
}

/// Executable of the nats-server under test, in `.tools/`.
pub fn server() -> PathBuf {
    let version = version();
    let path = root().join(format!(".tools/nats-{version}/bin/nats-server"));
    assert!(
        path.exists(),
        "nats-server {version} is not at {}: run `make tools`",
        path.display()
    );
    path
}

/// Port of loopback that is free at this moment.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one port of a thousand is free")
}

/// Creates a stream with file storage.
pub async fn create_stream(
    jetstream: &jetstream::Context,
    name: &str,
    subjects: &[&str],
) -> stream::Stream {
    let config = stream::Config {
        name: name.to_owned(),
        subjects: subjects.iter().map(ToString::to_string).collect(),
        ..stream::Config::default()
    };
    jetstream.create_stream(config).await.unwrap()
}

/// Publishes texts to a stream and waits until each is stored. Retries without duplicates.
pub async fn publish(
    jetstream: &jetstream::Context,
    subject: &str,
    texts: impl IntoIterator<Item = String>,
) {
    for text in texts {
        eventually(RECOVERY, "the stream stores a message", || async {
            // With a message id, a retry after a lost acknowledgement stores no second message.
            let message = jetstream::message::PublishMessage::build()
                .payload(text.clone().into())
                .message_id(&text);
            match jetstream.send_publish(subject.to_owned(), message).await {
                Ok(stored) => stored.await.is_ok(),
                Err(_) => false,
            }
        })
        .await;
    }
}

/// Publishes one message to a stream. Returns its sequence number once it is stored.
pub async fn store(
    jetstream: &jetstream::Context,
    subject: impl Into<String>,
    payload: impl Into<Bytes>,
) -> u64 {
    store_with(jetstream, subject, HeaderMap::new(), payload).await
}

/// Same as [`store`], with headers.
pub async fn store_with(
    jetstream: &jetstream::Context,
    subject: impl Into<String>,
    headers: HeaderMap,
    payload: impl Into<Bytes>,
) -> u64 {
    let sent = jetstream.publish_with_headers(subject.into(), headers, payload.into());
    sent.await.unwrap().await.unwrap().sequence
}

/// Publishes headers and payload as raw bytes, for messages that a library would not send.
pub async fn publish_raw(port: u16, subject: &[u8], headers: &[u8], payload: &[u8]) {
    let mut socket = BufReader::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    let total = headers.len() + payload.len();
    let mut bytes = b"CONNECT {\"headers\":true,\"verbose\":false}\r\n".to_vec();
    bytes.extend_from_slice(if headers.is_empty() {
        b"PUB "
    } else {
        b"HPUB "
    });
    bytes.extend_from_slice(subject);
    let lengths = if headers.is_empty() {
        format!(" {total}\r\n")
    } else {
        format!(" {} {total}\r\n", headers.len())
    };
    bytes.extend_from_slice(lengths.as_bytes());
    bytes.extend_from_slice(headers);
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(b"\r\nPING\r\n");
    socket.write_all(&bytes).await.unwrap();
    let answered = async {
        let mut line = String::new();
        while !line.starts_with("PONG") {
            line.clear();
            assert_ne!(
                socket.read_line(&mut line).await.unwrap(),
                0,
                "the server closed the connection"
            );
            assert!(!line.starts_with("-ERR"), "{line}");
        }
    };
    within(RECOVERY, "the server has processed the message", answered).await;
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
