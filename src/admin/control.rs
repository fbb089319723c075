//! Control socket: one command per line, one JSON object per line as response.
//!
//! Commands: `status`, `reload`, `drain`, `drain wait`. A command becomes a [`Command`] with a
//! oneshot sender, which the application answers; it waits at most 10 s. A connection is one task
//! of the admin's runtime, with a slot like a connection of the admin port.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::health;
use super::parts::{Command, Outcome, Parts};
use super::socket::Socket;
use crate::lifecycle::phase::{Phase, Progress};
use crate::net::slots::{Bounds, Slot, Slots};
use crate::telemetry::Metrics;

/// 16 people and scripts. An idle connection is closed if a new one needs its slot.
const BOUNDS: Bounds = Bounds {
    silent_max: 16,
    connected_max: 16,
    busy_max: 16,
    first_byte_max: IDLE_MAX,
};

/// 256: the longest command is one word.
const LINE_BYTES_MAX: u64 = 256;

/// 30 s without a command, or without reading the response, close the connection.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// 10 s: a reload reads files, and other commands wait for it.
const OUTCOME_MAX: Duration = Duration::from_secs(10);

/// 100 ms: prevents a busy loop while file descriptors are short.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// Returns the slots of the control socket.
pub(super) fn slots(metrics: &Metrics) -> Slots {
    Slots::new("control", BOUNDS, &metrics.admin_refusals_total)
}

/// Serves the control socket. Without one, waits forever.
pub(super) async fn serve(socket: Option<&Socket>, parts: &Arc<Parts>, slots: &Slots) {
    let listener = match socket.map(Socket::listener) {
        None => return std::future::pending().await,
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            tracing::error!(%error, "cannot listen on the control socket");
            return std::future::pending().await;
        }
    };
    loop {
        match listener.accept().await {
            Ok((connection, _)) => {
                let (parts, slot) = (Arc::clone(parts), slots.enter(None));
                tokio::spawn(async move {
                    if !slot.first_byte(connection.readable()).await {
                        return;
                    }
                    tokio::select! {
                        () = slot.evicted() => {}
                        ended = serve_connection(connection, &parts, &slot) => if let Err(error) = ended {
                            tracing::debug!(%error, "control connection failed");
                        },
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a control connection");
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(
    connection: UnixStream,
    parts: &Parts,
    slot: &Slot,
) -> std::io::Result<()> {
    let (from, mut to) = connection.into_split();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut bounded = (&mut from).take(LINE_BYTES_MAX);
        let read = tokio::time::timeout(IDLE_MAX, bounded.read_until(b'\n', &mut line));
        let Ok(read) = read.await else { return Ok(()) };
        if read? == 0 {
            return Ok(());
        }
        let complete = line.ends_with(b"\n");
        let busy = slot.begin();
        let answer = match &busy {
            _ if !complete => rejected("end the command with a newline; it has at most 256 bytes"),
            Some(_) => execute(&line, parts).await,
            None => rejected("too many concurrent commands; try again"),
        };
        let answer = format!("{answer}\n");
        let Ok(written) = tokio::time::timeout(IDLE_MAX, to.write_all(answer.as_bytes())).await
        else {
            return Ok(());
        };
        written?;
        if !complete {
            return Ok(());
        }
    }
}

async fn execute(line: &[u8], parts: &Parts) -> Value {
    match line.trim_ascii() {
        b"status" => {
            let mut status = health::report(parts);
            status["ok"] = true.into();
            status
        }
        b"reload" => match send(&parts.commands, |outcome| Command::Reload { outcome }).await {
            Ok(()) => json!({ "ok": true }),
            Err(why) => rejected(&why),
        },
        b"drain" => drain(parts, false).await,
        b"drain wait" => drain(parts, true).await,
        _ => rejected("unknown command; use drain, drain wait, reload or status"),
    }
}

/// Starts a drain or joins the running one, and waits for its end if `wait` is set. The response
/// has the progress, and after the end whether no event stream was cut.
async fn drain(parts: &Parts, wait: bool) -> Value {
    if !parts.drain.borrow().is_draining()
        && let Err(why) = send(&parts.commands, |outcome| Command::Drain { outcome }).await
    {
        return rejected(&why);
    }
    let mut drain = parts.drain.clone();
    let over = |progress: &Progress| progress.phase == Phase::Done;
    // An error means that the sender is gone: the last value is final.
    let progress = match wait {
        true => drain
            .wait_for(over)
            .await
            .map_or_else(|_| *parts.drain.borrow(), |progress| *progress),
        false => *drain.borrow(),
    };
    let complete = over(&progress).then_some(progress.cut == 0);
    json!({ "ok": true, "complete": complete, "drain": health::drain(progress) })
}

/// Sends a command to the application and waits for its outcome.
async fn send(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Outcome>) -> Command,
) -> Outcome {
    let (outcome, received) = oneshot::channel();
    // A full queue rejects at once: the application is not ready, or busy with other commands.
    commands
        .try_send(command(outcome))
        .map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                "too many concurrent commands; try again".to_owned()
            }
            mpsc::error::TrySendError::Closed(_) => "the sidecar is shutting down".to_owned(),
        })?;
    match tokio::time::timeout(OUTCOME_MAX, received).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("the sidecar is shutting down".to_owned()),
        Err(_) => Err(format!("no outcome within {} s", OUTCOME_MAX.as_secs())),
    }
}

fn rejected(why: &str) -> Value {
    json!({ "ok": false, "error": why })
}
