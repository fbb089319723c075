//! Command line: parses arguments into a command, runs it, and maps its result to an exit code.
//!
//! One file per command. A command returns an `Exit`; no other code exits the process. Text for
//! people goes through `output`, because standard output may be a closed pipe.

mod asyncapi;
mod check;
mod client;
mod config_file;
mod demo;
mod doctor;
mod drain;
mod exit;
mod inject;
mod kick;
mod output;
mod revocation;
mod revoke;
mod run;
mod schema;
mod tail;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::logs::FlushAtEnd;
use exit::{EXIT_CODES, Exit};

/// Runs the command in the arguments (the first is the name of the program); returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _flushed = FlushAtEnd;
    let exit = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command.run(),
        Err(error) => explain(&error),
    };
    ExitCode::from(exit as u8)
}

/// Streams NATS events to browsers and services over Server-Sent Events.
#[derive(Debug, Parser)]
#[command(name = "sidestream", version, arg_required_else_help = true, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the sidecar
    Run(Config),
    /// Check the configuration without connecting to anything; prints every problem
    Check(Config),
    /// Print the AsyncAPI document of the configuration: its channels, messages and credentials
    Asyncapi(asyncapi::Args),
    /// Drain the running sidecar: its clients continue on other pods (graceful shutdown)
    Drain(drain::Args),
    /// Revoke the credentials of a subject, session, token or client on all pods
    Revoke(revoke::Args),
    /// End the open event streams of a client on all pods; it may return
    Kick(kick::Args),
    /// Follow an event stream: print its events, reconnect and resume after interruptions
    Tail(tail::Args),
    /// Find faults of the proxies between here and an event stream, and the lines to change
    Doctor(doctor::Args),
    /// Run everything on this machine: NATS, a publisher, the sidecar and a page that shows the
    /// events
    Demo(demo::Args),
    /// Add the sidecar to the workloads in manifests; idempotent
    Inject(inject::Args),
    /// Remove the sidecar from the workloads in manifests
    Uninject(inject::Files),
    /// Compare JSON Schemas of events
    Schema(schema::Args),
    /// Moved to a program of its own, `sidestream-injector`
    #[command(hide = true)]
    Injector(Moved),
}

impl Command {
    fn run(self) -> Exit {
        match self {
            Self::Asyncapi(arguments) => asyncapi::run(&arguments),
            Self::Drain(arguments) => drain::run(&arguments),
            Self::Revoke(arguments) => revoke::run(&arguments),
            Self::Kick(arguments) => kick::run(&arguments),
            Self::Tail(arguments) => tail::run(&arguments),
            Self::Doctor(arguments) => doctor::run(&arguments),
            Self::Demo(arguments) => demo::run(&arguments),
            Self::Inject(arguments) => inject::inject(&arguments),
            Self::Uninject(files) => inject::uninject(&files),
            Self::Schema(arguments) => schema::run(&arguments),
            Self::Injector(_) => {
                output::complain(INJECTOR_MOVED);
                Exit::Usage
            }
            Self::Run(config) => run::run(&config.config),
            Self::Check(config) => check::run(&config.config),
        }
    }
}

/// Arguments of a command that does not exist any longer.
#[derive(Debug, clap::Args)]
struct Moved {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    _arguments: Vec<String>,
}

const INJECTOR_MOVED: &str = "sidestream: the webhook is now a program and an image of its own: run \
    `sidestream-injector` of the image `sidestream-injector` with the same arguments";

/// Path of the configuration.
#[derive(Debug, clap::Args)]
struct Config {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "sidecar.yaml")]
    config: PathBuf,
}

/// Prints clap's answer. Exits with 64 for invalid usage; clap's own 2 has other meanings in
/// supervisors.
fn explain(answer: &clap::Error) -> Exit {
    let printed = answer.print();
    if answer.use_stderr() {
        Exit::Usage
    } else {
        output::exit_of(printed)
    }
}
