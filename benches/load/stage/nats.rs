//! The NATS server of a run, started here or running already, and its stream `LOAD`.

use std::path::{Path, PathBuf};
use std::process::Command;

use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt as _;
use tempfile::TempDir;

use super::child::Child;
use crate::Fallible;

/// NATS server with the JetStream stream `LOAD` on `load.>`.
pub(crate) struct Nats {
    url: String,
    jetstream: jetstream::Context,
    child: Option<(Child, TempDir)>,
}

impl Nats {
    /// Starts `program` on a free port with a temporary store.
    pub(crate) async fn start(program: &Path) -> Fallible<Self> {
        let folder = TempDir::with_prefix("load-nats-")?;
        let mut command = Command::new(program);
        command
            .args([
                "--jetstream",
                "--addr",
                "127.0.0.1",
                "--port",
                "-1",
                "--store_dir",
            ])
            .arg(folder.path());
        command.arg("--ports_file_dir").arg(folder.path());
        let mut child = Child::start("nats-server", command, None, folder.path())?;
        // The server writes its port to this file.
        let ports = folder
            .path()
            .join(format!("{}_{}.ports", file_name(program), child.pid()));
        let url = child.wait_for("ports file", || first_url(&ports)).await?;
        Self::connect(url, Some((child, folder))).await
    }

    /// Uses a running server.
    pub(crate) async fn existing(url: &str) -> Fallible<Self> {
        Self::connect(url.to_owned(), None).await
    }

    async fn connect(url: String, child: Option<(Child, TempDir)>) -> Fallible<Self> {
        let client = async_nats::connect(&url)
            .await
            .map_err(|error| format!("{url}: {error}"))?;
        let jetstream = jetstream::new(client);
        jetstream
            .get_or_create_stream(stream::Config {
                name: STREAM.to_owned(),
                subjects: vec!["load.>".to_owned()],
                storage: stream::StorageType::Memory,
                max_bytes: STREAM_BYTES_MAX,
                ..stream::Config::default()
            })
            .await?;
        Ok(Self {
            url,
            jetstream,
            child,
        })
    }

    /// Returns the URL.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the process id, if it was started here.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(|(child, _)| child.pid())
    }

    /// Empties the stream, so that all runs begin with the same memory usage of the server.
    pub(crate) async fn purge(&self) -> Fallible<()> {
        self.jetstream.get_stream(STREAM).await?.purge().await?;
        Ok(())
    }

    /// Returns the number of messages that were ever stored.
    ///
    /// A message that is missing here was not lost by the server under test.
    pub(crate) async fn stored(&self) -> Fallible<u64> {
        Ok(self
            .jetstream
            .get_stream(STREAM)
            .await?
            .get_info()
            .await?
            .state
            .last_sequence)
    }

    /// Returns the names of the stream's consumers.
    pub(crate) async fn consumers(&self) -> Fallible<Vec<String>> {
        let stream = self.jetstream.get_stream(STREAM).await?;
        Ok(stream.consumer_names().try_collect().await?)
    }

    /// Stops the server, if it was started here.
    pub(crate) async fn stop(self) -> Fallible<()> {
        match self.child {
            Some((child, _folder)) => child.stop().await,
            None => Ok(()),
        }
    }
}

/// Returns the `nats-server` to start: the requested one, that in `.tools`, or that in `PATH`.
pub(crate) fn program(requested: Option<PathBuf>) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/nats-2.15.1/bin/nats-server");
    requested
        .or_else(|| own.exists().then_some(own))
        .unwrap_or_else(|| PathBuf::from("nats-server"))
}

fn file_name(program: &Path) -> String {
    program
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn first_url(ports: &Path) -> Option<String> {
    let text = std::fs::read_to_string(ports).ok()?;
    let ports: serde_json::Value = serde_json::from_str(&text).ok()?;
    Some(ports.get("nats")?.get(0)?.as_str()?.to_owned())
}

/// JetStream stream of all scenarios.
pub(crate) const STREAM: &str = "LOAD";
/// 2 GiB, in memory: a replay of a million events of 1 KB.
const STREAM_BYTES_MAX: i64 = 2 * 1024 * 1024 * 1024;
