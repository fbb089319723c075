//! The control socket: one command a line, one JSON object a line in answer.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::socket::Socket;
use super::{Parts, health};
use crate::lifecycle::phase::{Phase, Progress};
use crate::net::slots::{Bounds, Slot, Slots};
use crate::telemetry::Metrics;

/// 16: people and scripts, one at a time. A connection between two commands is closed when a new one needs its slot.
const BOUNDS: Bounds = Bounds {
    silent_max: 16,
    connected_max: 16,
    busy_max: 16,
    first_byte_max: IDLE_MAX,
};

/// 256: the longest command is one word.
const LINE_BYTES_MAX: u64 = 256;

/// 30 s: who asks nothing, or takes no answer, for so long has gone to lunch.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// 10 s: a reload reads some files. Other commands wait for it.
const OUTCOME_MAX: Duration = Duration::from_secs(10);

/// 100 ms: as at any listener, a shortage of descriptors must not become a busy loop.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// What the application is asked to do.
#[derive(Debug)]
pub enum Command {
    /// To read the configuration again now.
    Reload {
        /// Where the outcome is told.
        outcome: oneshot::Sender<Outcome>,
    },
    /// To drain; asked again, it is the same drain.
    Drain {
        /// Told when it has begun.
        outcome: oneshot::Sender<Outcome>,
    },
}

/// How a command went; the error is a sentence for people.
pub type Outcome = Result<(), String>;

/// Slots of the control socket.
pub(super) fn slots(metrics: &Metrics) -> Slots {
    Slots::new("control", BOUNDS, &metrics.admin_refusals_total)
}

/// Serves for ever, without a socket as well.
pub(super) async fn serve(socket: Option<&Socket>, parts: &Arc<Parts>, slots: &Slots) {
    let listener = match socket.map(Socket::listener) {
        None => return std::future::pending().await,
        Some(Ok(listener)) => listener,
        Some(Err(error)) => {
            tracing::error!(%error, "the control socket cannot be listened at");
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
                        ended = converse(connection, &parts, &slot) => if let Err(error) = ended {
                            tracing::debug!(%error, "a connection to the control socket ended early");
                        },
                    }
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to the control socket could not be accepted");
                tokio::time::sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

async fn converse(connection: UnixStream, parts: &Parts, slot: &Slot) -> std::io::Result<()> {
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
            _ if !complete => refused("a command is one word and a newline"),
            Some(_) => obey(&line, parts).await,
            None => refused("too many commands at one time"),
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

async fn obey(line: &[u8], parts: &Parts) -> Value {
    match line.trim_ascii() {
        b"status" => {
            let mut status = health::report(parts);
            status["ok"] = true.into();
            status
        }
        b"reload" => match ask(&parts.commands, |outcome| Command::Reload { outcome }).await {
            Ok(()) => json!({ "ok": true }),
            Err(why) => refused(&why),
        },
        b"drain" => drain(parts, false).await,
        b"drain wait" => drain(parts, true).await,
        _ => refused("the commands are: drain, drain wait, reload, status"),
    }
}

/// Begins a drain, or finds that one has begun; and waits for its end if that is wanted. What comes back says where it
/// stands, and once it is over whether everybody left in good order.
async fn drain(parts: &Parts, wait: bool) -> Value {
    if !parts.drain.borrow().is_draining()
        && let Err(why) = ask(&parts.commands, |outcome| Command::Drain { outcome }).await
    {
        return refused(&why);
    }
    let mut drain = parts.drain.clone();
    let over = |progress: &Progress| progress.phase == Phase::Done;
    // An error means that it will not change any more.
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
async fn ask(
    commands: &mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<Outcome>) -> Command,
) -> Outcome {
    let (tell, told) = oneshot::channel();
    // One that does not fit is refused at once: the application is not listening, or has enough to do.
    commands
        .try_send(command(tell))
        .map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => "too many commands at one time".to_owned(),
            mpsc::error::TrySendError::Closed(_) => "the sidecar is ending".to_owned(),
        })?;
    match tokio::time::timeout(OUTCOME_MAX, told).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err("the sidecar is ending".to_owned()),
        Err(_) => Err(format!("no outcome within {} s", OUTCOME_MAX.as_secs())),
    }
}

fn refused(why: &str) -> Value {
    json!({ "ok": false, "error": why })
}
