//! `sidestream drain`: starts the drain of the running sidecar over its control socket.
//!
//! Used as a preStop hook: with `--wait` it returns when the drain is over. If the configuration
//! file has become invalid, the running sidecar still uses the previous one, so the default place
//! of the socket is tried.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::config_file::config_file;
use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::{admin, config};

/// 15 s: the sidecar answers at once, or after a running reload.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// Arguments of `drain`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Wait until the drain is over; exit with 0 if every event stream ended in good order, with 75
    /// if some were cut
    #[arg(long)]
    wait: bool,
    /// The configuration file of the sidecar, which names its control socket [default:
    /// sidecar.yaml, else /etc/sidestream/sidecar.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Args) -> Exit {
    let (places, missing) = match places(arguments.config.as_deref()) {
        Ok(places) => (places, Exit::Unavailable),
        // The running sidecar uses the previous file; a preStop hook must reach it nevertheless.
        Err(problems) => {
            complain(problems);
            (
                admin::candidates(None, 0).into_iter().take(1).collect(),
                Exit::Usage,
            )
        }
    };
    let socket = match connect(&places) {
        Ok(socket) => socket,
        Err(why) => {
            complain(format_args!(
                "sidestream: cannot reach a sidecar to drain:{why}"
            ));
            return missing;
        }
    };
    match ask(&socket, arguments.wait) {
        Ok(answer) => explain(&answer, arguments.wait),
        // It may have exited at once; the state of its clients is unknown.
        Err(error) if arguments.wait => {
            complain(format_args!(
                "sidestream: the sidecar exited before it reported a complete drain: {error}"
            ));
            Exit::Incomplete
        }
        Err(error) => {
            complain(format_args!(
                "sidestream: the sidecar did not answer: {error}"
            ));
            Exit::Unavailable
        }
    }
}

/// Possible paths of the control socket, from the configuration or its defaults.
fn places(file: Option<&Path>) -> Result<Vec<PathBuf>, config::Problems> {
    let file = config_file(file);
    let admin = file
        .map(config::load)
        .transpose()?
        .map_or_else(admin::Config::default, |loaded| loaded.config.admin);
    Ok(admin::candidates(
        admin.control.as_deref(),
        admin.address.port(),
    ))
}

/// Connects to the first socket that accepts; the error lists every attempt.
fn connect(places: &[PathBuf]) -> Result<UnixStream, String> {
    let mut errors = String::new();
    for place in places {
        match UnixStream::connect(place) {
            Ok(socket) => return Ok(socket),
            Err(error) => errors += &format!("\n  {}: {error}", place.display()),
        }
    }
    Err(errors)
}

fn ask(mut socket: &UnixStream, wait: bool) -> io::Result<Value> {
    // With `--wait` no timeout: the drain has its own deadline.
    socket.set_read_timeout((!wait).then_some(ANSWER_MAX))?;
    socket.write_all(if wait { b"drain wait\n" } else { b"drain\n" })?;
    let mut line = String::new();
    if BufReader::new(socket).read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    serde_json::from_str(&line).map_err(io::Error::other)
}

fn explain(answer: &Value, wait: bool) -> Exit {
    if answer["ok"] != true {
        let why = answer["error"].as_str().unwrap_or("no reason given");
        complain(format_args!(
            "sidestream: the sidecar rejects the drain: {why}"
        ));
        return Exit::Unavailable;
    }
    let drain = &answer["drain"];
    let (phase, left) = (
        drain["phase"].as_str().unwrap_or_default(),
        &drain["streams_left"],
    );
    match answer["complete"].as_bool() {
        Some(true) => exit_of(print("drained\n")),
        Some(false) => {
            let cut = &drain["cut"];
            complain(format_args!(
                "sidestream: drain incomplete: {cut} event streams were cut"
            ));
            if wait { Exit::Incomplete } else { Exit::Clean }
        }
        None if wait => {
            complain(format_args!(
                "sidestream: the drain was interrupted in phase {phase:?} with {left} event streams left"
            ));
            Exit::Incomplete
        }
        None => exit_of(print(&format!("draining: phase {phase:?}\n"))),
    }
}
