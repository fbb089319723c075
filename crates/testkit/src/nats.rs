//! Real nats-servers as children: one, or a cluster of three, killed and restarted with the same port and store.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use async_nats::{Client, ConnectOptions};
use rustix::process::Signal;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::process::Process;
use crate::repository::root;
use crate::wait::{DEADLINE, RECOVERY, eventually, within};

/// The version used when `SIDESTREAM_TEST_NATS` names no other.
const VERSION: &str = "2.15.1";

/// Free ports are drawn from here: below the kernel's ephemeral range, so that no outgoing connection takes the
/// port of a server between its death and its restart.
const PORTS: std::ops::Range<u16> = 10_240..32_000;

/// 30 s: electing the leaders of a cluster takes seconds, more on a busy machine.
const ELECTION: Duration = Duration::from_secs(30);

/// One nats-server with its own store; killed when dropped.
pub struct Nats {
    launch: Launch,
    process: Process,
}

/// How a server is to be started.
pub struct Builder {
    config: String,
    jetstream: bool,
}

/// Three servers that know each other, with JetStream across them.
pub struct Cluster {
    nodes: Vec<Nats>,
}

/// Everything that a restart needs again.
struct Launch {
    name: String,
    port: u16,
    config: String,
    jetstream: bool,
    folder: TempDir,
}

// === impl Nats ===

impl Nats {
    /// A server on a free port of loopback, with JetStream on files of its own.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// Options first, then [`Builder::start`].
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

    /// The client port; it stays the same over restarts.
    pub fn port(&self) -> u16 {
        self.launch.port
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// The folder of configuration and store, for files that belong to this server.
    pub fn folder(&self) -> &Path {
        self.launch.folder.path()
    }

    /// A client without credentials.
    pub async fn client(&self) -> Client {
        self.client_with(ConnectOptions::new()).await
    }

    /// A client with credentials or TLS.
    pub async fn client_with(&self, options: ConnectOptions) -> Client {
        options
            .connect(self.url())
            .await
            .expect("the nats-server that said it is ready takes a connection")
    }

    /// A JetStream context on a client of its own.
    pub async fn jetstream(&self) -> jetstream::Context {
        jetstream::new(self.client().await)
    }

    /// SIGKILL: connections are reset, the store stays as it is.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts the server again, on the same port and store. Kills it first if it runs.
    pub async fn restart(&mut self) {
        self.kill9();
        let launch = &self.launch;
        self.process = eventually(
            DEADLINE,
            "the restarted nats-server has its port back",
            || launch.run(),
        )
        .await;
    }

    /// Stops the server, keeps a copy of its store, and starts it again.
    pub async fn snapshot(&mut self) {
        self.stop().await;
        let (store, snapshot) = self.stores();
        copy_folder(&store, &snapshot);
        self.restart().await;
    }

    /// SIGKILL, then starts the server with the store as it was at [`Nats::snapshot`].
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

    /// SIGUSR2: the server announces its end, then evicts its clients.
    pub fn lame_duck(&mut self) {
        self.process.signal(Signal::USR2);
    }

    /// SIGSTOP: the server answers nothing while its sockets stay open.
    pub fn pause(&mut self) {
        self.process.signal(Signal::STOP);
    }

    /// SIGCONT, after [`Nats::pause`].
    pub fn resume(&mut self) {
        self.process.signal(Signal::CONT);
    }

    /// Ends the server in good order (SIGTERM) and waits for it.
    pub async fn stop(&mut self) {
        self.process.signal(Signal::TERM);
        self.process.wait_exit(DEADLINE).await;
    }

    /// What the server has logged since its last start.
    pub fn log(&self) -> Vec<String> {
        self.process.lines()
    }
}

// === impl Builder ===

impl Builder {
    /// Adds text to the server's configuration file: authorization, tls, max_payload, ...
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Core NATS only.
    pub fn without_jetstream(mut self) -> Self {
        self.jetstream = false;
        self
    }

    /// Starts the server and waits until it says that it is ready.
    pub async fn start(self) -> Nats {
        let mut launch = Launch {
            name: "rig".to_owned(),
            port: 0,
            config: self.config,
            jetstream: self.jetstream,
            folder: tempfile::tempdir().unwrap(),
        };
        // Between finding a free port and using it another process may take it: then with another port.
        for _ in 0..10 {
            launch.port = free_port();
            if let Some(process) = launch.run().await {
                return Nats { launch, process };
            }
        }
        panic!("ten free ports were taken before nats-server could use them");
    }
}

// === impl Cluster ===

impl Cluster {
    /// Three servers; returns when JetStream has a leader.
    pub async fn start() -> Self {
        for _ in 0..5 {
            if let Some(cluster) = Self::attempt().await {
                return cluster;
            }
        }
        panic!("five sets of free ports were taken before the cluster could use them");
    }

    /// One server of the three, 0 to 2.
    pub fn node(&mut self, index: usize) -> &mut Nats {
        &mut self.nodes[index]
    }

    /// The addresses of all three, for a client's list of servers.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(Nats::url).collect()
    }

    /// A client that knows all three.
    pub async fn client(&self) -> Client {
        ConnectOptions::new()
            .connect(self.urls())
            .await
            .expect("one of three servers takes a connection")
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
                name: format!("rig-{index}"),
                port: free_port(),
                config: format!(
                    "cluster {{ name: rig, listen: \"127.0.0.1:{route}\", routes: [{}] }}\n",
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
    /// Starts the server; `None` if its port is taken, a panic with its log if it refuses for another reason.
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
        // The shortest that the server accepts; without it an announced end takes two minutes.
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

/// The version under test: `SIDESTREAM_TEST_NATS`, or the newest.
pub fn version() -> String {
    std::env::var("SIDESTREAM_TEST_NATS").unwrap_or_else(|_| VERSION.to_owned())
}

/// The nats-server under test in the checkout's tool folder.
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

/// A port of loopback that nobody listens on at this moment.
pub fn free_port() -> u16 {
    (0..1000)
        .map(|_| fastrand::u16(PORTS))
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .expect("one port of a thousand is free")
}

/// Creates a stream on files.
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

/// Publishes these texts to a stream and waits until each is stored; as often as it takes.
pub async fn publish(
    jetstream: &jetstream::Context,
    subject: &str,
    texts: impl IntoIterator<Item = String>,
) {
    for text in texts {
        eventually(RECOVERY, "the stream stores a message", || async {
            // The id makes a repetition after a lost answer no second message.
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

/// Publishes bytes as they are, headers too, as no library would.
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
    within(RECOVERY, "the server has taken the message", answered).await;
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
