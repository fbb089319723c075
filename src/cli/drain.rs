//! `sidestream drain`: asks the running sidecar, over its control socket, to hand its clients over.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Exit;
use super::output::{complain, exit_of, print};
use crate::{admin, config};

/// What is read when no file is named: the folder's, as `run` does, then the one of the container image.
const FILES: [&str; 2] = ["sidecar.yaml", "/etc/sidestream/sidecar.yaml"];

/// 15 s: the sidecar answers at once, or after a reload that it is in the middle of.
const ANSWER_MAX: Duration = Duration::from_secs(15);

/// What `drain` is told.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Return when the drain is over: with 0 when everybody left in good order, with 75 when somebody was cut
    #[arg(long)]
    wait: bool,
    /// The configuration file of the sidecar, which says where its control socket is [default: sidecar.yaml, else
    /// /etc/sidestream/sidecar.yaml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Args) -> Exit {
    let (places, missing) = match places(arguments.config.as_deref()) {
        Ok(places) => (places, Exit::Unavailable),
        // A sidecar that runs goes on with what the file said before; a preStop hook must reach it all the same.
        Err(problems) => {
            complain(problems);
            (
                admin::places(None, 0).into_iter().take(1).collect(),
                Exit::Usage,
            )
        }
    };
    let socket = match connect(&places) {
        Ok(socket) => socket,
        Err(why) => {
            complain(format_args!(
                "sidestream: no sidecar can be asked to drain:{why}"
            ));
            return missing;
        }
    };
    match ask(&socket, arguments.wait) {
        Ok(answer) => explain(&answer, arguments.wait),
        // It may have been told to end at once: what became of its clients is not known.
        Err(error) if arguments.wait => {
            complain(format_args!(
                "sidestream: the sidecar ended before it said that it was drained: {error}"
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

/// Where the control socket may be, by the configuration; without any, where a sidecar with the defaults has it.
fn places(file: Option<&Path>) -> Result<Vec<PathBuf>, config::Problems> {
    let file = file.or_else(|| FILES.map(Path::new).into_iter().find(|file| file.exists()));
    let admin = file
        .map(config::load)
        .transpose()?
        .map_or_else(admin::Config::default, |loaded| loaded.config.admin);
    Ok(admin::places(
        admin.control.as_deref(),
        admin.address.port(),
    ))
}

/// The first place where somebody listens; the error tells of each.
fn connect(places: &[PathBuf]) -> Result<UnixStream, String> {
    let mut refusals = String::new();
    for place in places {
        match UnixStream::connect(place) {
            Ok(socket) => return Ok(socket),
            Err(error) => refusals += &format!("\n  {}: {error}", place.display()),
        }
    }
    Err(refusals)
}

fn ask(mut socket: &UnixStream, wait: bool) -> io::Result<Value> {
    // A drain has its own end; whoever waits for it does so to that end.
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
        let why = answer["error"].as_str().unwrap_or("without saying why");
        complain(format_args!("sidestream: the sidecar refuses: {why}"));
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
                "sidestream: drained, but not completely: {cut} event streams were cut"
            ));
            if wait { Exit::Incomplete } else { Exit::Clean }
        }
        None if wait => {
            complain(format_args!(
                "sidestream: the drain was broken off in its phase {phase:?}, {left} event streams were left"
            ));
            Exit::Incomplete
        }
        None => exit_of(print(&format!("draining: phase {phase:?}\n"))),
    }
}
