//! Signals while the configuration file is read, or while a configuration waits for its streams.

use std::fs::File;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{publish_core, route};
use testkit::nats::Nats;
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// `O_NONBLOCK` of Linux: a pipe can then be opened for writing only while it is being read.
const NONBLOCK: i32 = 0o4000;

/// Named pipe: a file that blocks its reader.
fn pipe(folder: &Path) -> PathBuf {
    let pipe = folder.join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    pipe
}

/// Waits until the pipe is being read; returns its other end.
async fn until_read(pipe: &Path) -> File {
    eventually(DEADLINE, "the file is being read", || async {
        File::options()
            .write(true)
            .custom_flags(NONBLOCK)
            .open(pipe)
            .ok()
    })
    .await
}

#[tokio::test]
async fn sigterm_is_answered_while_the_file_is_read_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = pipe(folder.path());
    let mut sidestream = Sidestream::builder("").linked_to(&pipe).spawn();
    let _other_end = until_read(&pipe).await;
    sidestream.terminate();
    assert_eq!(
        sidestream.wait_exit(DEADLINE).await,
        0,
        "{:?}",
        sidestream.output()
    );
}

#[tokio::test]
async fn clients_and_sigterm_are_answered_while_the_file_is_read_again() {
    let nats = Nats::start().await;
    let text = config(
        &nats,
        &format!(
            "routes:\n{}drain: {{ accept_for: 0, spread: 0 }}",
            route("/one", "one.>")
        ),
    );
    let mut sidestream = Sidestream::start(text).await;
    let mut client = SseClient::get(sidestream.url("/one")).connect().await;
    let pipe = pipe(sidestream.folder());
    std::fs::rename(&pipe, sidestream.config_file()).unwrap();
    let _other_end = until_read(&sidestream.config_file()).await;
    publish_core(&nats, "one.a", "meanwhile").await;
    assert_eq!(client.next().await.data, "meanwhile");
    sidestream.terminate();
    assert_eq!(
        sidestream.wait_exit(DEADLINE).await,
        0,
        "{:?}",
        sidestream.output()
    );
}

#[tokio::test]
async fn sigterm_is_answered_while_a_configuration_waits_for_its_streams() {
    let nats = Nats::start().await;
    let text = |more: &str| {
        config(
            &nats,
            &format!(
                "routes:\n{}{more}drain: {{ accept_for: 0, spread: 0 }}",
                route("/one", "one.>")
            ),
        )
    };
    let mut sidestream = Sidestream::start(text("")).await;
    sidestream.rewrite_config(&text(
        "  - path: /two\n    sources: [{ stream: NONE, subjects: [\"two.>\"] }]\n",
    ));
    let changed = [("result", "changed")];
    sidestream
        .until_metric("sidestream_config_reloads_total", &changed, |reloads| {
            reloads == 1.0
        })
        .await;
    sidestream.terminate();
    assert_eq!(
        sidestream.wait_exit(DEADLINE).await,
        0,
        "{:?}",
        sidestream.output()
    );
    let applied = sidestream
        .log()
        .iter()
        .any(|line| line["message"] == "configuration applied");
    assert!(
        !applied,
        "the drain waited for a stream that does not exist: {:?}",
        sidestream.output()
    );
}
