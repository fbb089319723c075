//! The server under test: the sidecar, the bare send loop, another product, or a running server.
//!
//! Each server gets a free port and a temporary folder. The sidecar is ready when
//! `/health/ready` on its admin port returns 200.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::child::Child;
use super::recipe::Recipe;
use super::{peer, sidecar};
use crate::Fallible;

/// Kinds of servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// The bare send loop of this program: no server can cost less.
    Bare,
    /// The bare send loop over HTTP/2, for scenarios with clients over HTTP/2.
    BareH2,
    /// The sidecar.
    Sidestream,
    /// nginx with the nchan module. It does not read from NATS: events are posted to it.
    Nchan,
    /// The Node server in benches/load/peers.
    Node,
    /// The server at `--url`.
    #[value(skip)]
    Url,
}

impl Target {
    /// Returns the name on the command line.
    pub(crate) fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|name| Some(name.as_str()?.to_owned()))
            .unwrap_or_default()
    }

    /// Returns whether it is another product, measured for comparison.
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Nchan | Self::Node)
    }

    /// Returns whether it is installed.
    pub(crate) fn is_installed(self) -> bool {
        match self {
            Self::Nchan => peer::nchan_module().is_some(),
            Self::Node => peer::node_server().is_some(),
            Self::Bare | Self::BareH2 | Self::Sidestream | Self::Url => true,
        }
    }
}

/// Running server and its address.
pub(crate) struct Server {
    /// Scheme, host and port.
    origin: String,
    /// Process id, if it is known.
    pid: Option<u32>,
    /// File with the trusted certificate.
    ca: Option<PathBuf>,
    child: Option<(Child, TempDir)>,
    /// Address to post events to, if the server does not read from NATS.
    posts: Option<SocketAddr>,
    /// Admin port of the sidecar.
    admin: Option<SocketAddr>,
}

impl Server {
    /// Starts the sidecar and waits until it is ready.
    pub(crate) async fn sidestream(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        let folder = TempDir::with_prefix("load-sidestream-")?;
        // The log has the ports that the sidecar chooses, but its messages change with versions.
        let [address, admin] = free_addresses()?;
        let configuration = sidecar::configuration(folder.path(), nats, recipe, address, admin)?;
        let mut command = Command::new(&recipe.sidestream);
        command.arg("run").arg("--config").arg(configuration);
        let mut child = Child::start("sidestream", command, recipe.core, folder.path())?;
        wait_until_ready(&mut child, admin).await?;
        Ok(Self {
            origin: recipe.origin(address),
            pid: Some(child.pid()),
            ca: recipe.ca(),
            child: Some((child, folder)),
            posts: None,
            admin: Some(admin),
        })
    }

    /// Starts the bare send loop, which is a subcommand of this program.
    pub(crate) async fn bare(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        let folder = TempDir::with_prefix("load-bare-")?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("bare").arg("--nats").arg(nats);
        if recipe.replay.is_some() {
            command.arg("--keep");
        }
        if let Some(tls) = &recipe.tls {
            command.arg("--certificate").arg(tls.certificate());
            command.arg("--key").arg(tls.key());
        }
        let mut child = Child::start("bare", command, recipe.core, folder.path())?;
        let address = child.address("listening").await?;
        Ok(Self {
            origin: recipe.origin(address),
            pid: Some(child.pid()),
            ca: recipe.ca(),
            child: Some((child, folder)),
            posts: None,
            admin: None,
        })
    }

    /// Starts nginx with nchan.
    pub(crate) async fn nchan(recipe: &Recipe) -> Fallible<Self> {
        // The events that clients will miss, or a few for reconnects.
        let kept = recipe.replay.map_or(10, |replay| replay.missed + 1);
        let (address, child, folder) = peer::nchan(recipe.core, kept).await?;
        let (origin, pid) = (format!("http://{address}/sub"), Some(child.pid()));
        Ok(Self {
            origin,
            pid,
            ca: None,
            child: Some((child, folder)),
            posts: Some(address),
            admin: None,
        })
    }

    /// Starts nginx as a proxy of an application. Returns its address for HTTP/2 too.
    pub(crate) async fn nginx_proxy(
        core: Option<usize>,
        application: SocketAddr,
    ) -> Fallible<(Self, SocketAddr)> {
        let addresses = free_addresses()?;
        let (child, folder) = peer::nginx_proxy(core, addresses, application).await?;
        let [http1, http2] = addresses;
        let server = Self {
            origin: format!("http://{http1}"),
            pid: Some(child.pid()),
            ca: None,
            child: Some((child, folder)),
            posts: None,
            admin: None,
        };
        Ok((server, http2))
    }

    /// Starts the Node server.
    pub(crate) async fn node(recipe: &Recipe, nats: &str) -> Fallible<Self> {
        if recipe.replay.is_some() {
            return Err("the Node server does not store events for a replay".into());
        }
        let (address, child, folder) = peer::node(recipe.core, nats).await?;
        let (origin, pid) = (format!("http://{address}"), Some(child.pid()));
        Ok(Self {
            origin,
            pid,
            ca: None,
            child: Some((child, folder)),
            posts: None,
            admin: None,
        })
    }

    /// Uses a running server.
    pub(crate) fn existing(origin: &str, pid: Option<u32>, ca: Option<&Path>) -> Self {
        Self {
            origin: origin.to_owned(),
            pid,
            ca: ca.map(Path::to_owned),
            child: None,
            posts: None,
            admin: None,
        }
    }

    /// Returns scheme, host and port, or `--url` for a running server.
    pub(crate) fn origin(&self) -> &str {
        &self.origin
    }

    /// Returns the address to post events to, if the server does not read from NATS.
    pub(crate) fn posts(&self) -> Option<SocketAddr> {
        self.posts
    }

    /// Returns the address of the sidecar's admin port.
    pub(crate) fn admin(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Returns the process id, if it is known.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Returns the file with the trusted certificate.
    pub(crate) fn ca(&self) -> Option<&Path> {
        self.ca.as_deref()
    }

    /// Stops the server, if it was started here.
    pub(crate) async fn stop(self) -> Fallible<()> {
        match self.child {
            Some((child, _folder)) => child.stop().await,
            None => Ok(()),
        }
    }
}

/// Returns two addresses whose ports were free a moment ago.
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
