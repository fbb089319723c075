//! The server that is measured: the sidecar, the bare send loop, or one that runs already.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::child::Child;
use super::{peer, sidecar};
use crate::Fallible;
use crate::plan::Replay;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// The bare send loop of this program: the limit that no server can pass.
    Bare,
    /// The sidecar.
    Sidestream,
    /// nginx with the nchan module; events are posted to it, not read from NATS.
    Nchan,
    /// The Node server in benches/load/peers.
    Node,
    /// The server at `--url`.
    #[value(skip)]
    Url,
}

impl Target {
    /// As the command line calls it.
    pub(crate) fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// Whether it only stands beside what is measured.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nchan | Self::Node)
    }

    /// Whether it can be started here.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Nchan => peer::nchan_module().is_some(),
            Self::Node => peer::node_server().is_some(),
            Self::Bare | Self::Sidestream | Self::Url => true,
        }
    }
}

/// A running server and how to reach it.
pub(crate) struct Server {
    /// Scheme, host and port.
    origin: String,
    /// What is looked at in /proc, if anything.
    pid: Option<u32>,
    /// The certificate to trust.
    ca: Option<PathBuf>,
    child: Option<(Child, TempDir)>,
    /// Where events are posted to, if the server does not read them from NATS.
    posts: Option<SocketAddr>,
}

/// How the servers of a run are started.
pub(crate) struct Recipe {
    /// The sidecar's binary.
    pub(crate) sidestream: PathBuf,
    /// The core for the server.
    pub(crate) core: Option<usize>,
    /// Clients come over TLS.
    pub(crate) tls: bool,
    /// The sidecar's log filter.
    pub(crate) log: String,
    /// What is going to be replayed.
    pub(crate) replay: Option<Replay>,
}

impl Server {
    /// Starts the sidecar and waits until it is ready.
    pub(crate) async fn sidestream(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        let folder = TempDir::with_prefix("load-sidestream-")?;
        // The log would say which ports it took of its own, but its messages differ between versions.
        let [address, admin] = free_addresses()?;
        let configuration = sidecar::configuration(folder.path(), nats, recipe, address, admin)?;
        let mut command = Command::new(&recipe.sidestream);
        command.arg("run").arg("--config").arg(configuration);
        let mut child = Child::start("sidestream", command, recipe.core, folder.path())?;
        wait_until_ready(&mut child, admin).await?;
        let (scheme, ca) = match recipe.tls {
            true => ("https", Some(sidecar::certificate_file(folder.path()))),
            false => ("http", None),
        };
        Ok(Self {
            origin: format!("{scheme}://{address}"),
            pid: Some(child.pid()),
            ca,
            child: Some((child, folder)),
            posts: None,
        })
    }

    /// Starts the bare send loop: this program once more.
    pub(crate) async fn bare(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        let folder = TempDir::with_prefix("load-bare-")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg("--nats").arg(nats);
        if recipe.replay.is_some() {
            command.arg("--keep");
        }
        let mut child = Child::start("bare", command, recipe.core, folder.path())?;
        let address = child.address("listening").await?;
        Ok(Self {
            origin: format!("http://{address}"),
            pid: Some(child.pid()),
            ca: None,
            child: Some((child, folder)),
            posts: None,
        })
    }

    /// Starts nginx with nchan.
    pub(crate) async fn nchan(recipe: &Recipe) -> Fallible<Self> {
        // As many as clients come back for; else what a reconnect needs.
        let kept = recipe.replay.map_or(10, |replay| replay.behind + 1);
        let (address, child, folder) = peer::nchan(recipe.core, kept).await?;
        let (origin, pid) = (format!("http://{address}/sub"), Some(child.pid()));
        Ok(Self {
            origin,
            pid,
            ca: None,
            child: Some((child, folder)),
            posts: Some(address),
        })
    }

    /// Starts the Node server.
    pub(crate) async fn node(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        if recipe.replay.is_some() {
            return Err("the Node server keeps nothing that clients could come back for".into());
        }
        let (address, child, folder) = peer::node(recipe.core, nats).await?;
        let (origin, pid) = (format!("http://{address}"), Some(child.pid()));
        Ok(Self {
            origin,
            pid,
            ca: None,
            child: Some((child, folder)),
            posts: None,
        })
    }

    /// Takes a server that runs already.
    pub(crate) fn existing(origin: &str, pid: Option<u32>, ca: Option<&Path>) -> Self {
        Self {
            origin: origin.to_owned(),
            pid,
            ca: ca.map(Path::to_owned),
            child: None,
            posts: None,
        }
    }

    /// Scheme, host and port; for an existing server what `--url` says.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Where events are posted to, if the server does not read them from NATS.
    pub(crate) fn posts(&self) -> Option<SocketAddr> {
        self.posts
    }

    /// The process to look at in /proc.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// The certificate to trust.
    pub(crate) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Ends it, if this tool started it.
    pub(crate) async fn stop(self) -> Fallible<()> {
        match self.child {
            Some((child, _folder)) => child.stop().await,
            None => Ok(()),
        }
    }
}

/// Two addresses whose ports were free a moment ago.
fn free_addresses() -> Fallible<[SocketAddr; 2]> {
    let listeners = [
        std::net::TcpListener::bind("127.0.0.1:0")?,
        std::net::TcpListener::bind("127.0.0.1:0")?,
    ];
    Ok([listeners[0].local_addr()?, listeners[1].local_addr()?])
}

async fn wait_until_ready(child: &mut Child, admin: SocketAddr) -> Fallible<()> {
    let deadline = tokio::time::Instant::now() + READY_TIMEOUT;
    while !matches!(ask_ready(admin).await, Ok(true)) {
        child.check_running("readiness")?;
        if tokio::time::Instant::now() > deadline {
            return Err(format!("not ready after {READY_TIMEOUT:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn ask_ready(admin: SocketAddr) -> std::io::Result<bool> {
    let mut socket = TcpStream::connect(admin).await?;
    let request =
        format!("GET /health/ready HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut status = [0; 12];
    socket.read_exact(&mut status).await?;
    Ok(status.ends_with(b" 200"))
}

/// 20 s: the sidecar reads the window of a stream before it is ready.
const READY_TIMEOUT: Duration = Duration::from_secs(20);
