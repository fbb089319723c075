//! The command line: argv to a command, a command to an exit code.

mod check;
mod demo;
mod drain;
mod inject;
mod injector;
mod output;
mod run;
mod tail;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::logs::FlushAtEnd;

/// Parses the arguments (the first one is the program's name), does what they say and returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let _flushed = FlushAtEnd;
    let exit = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli.command.run(),
        Err(error) => explain(&error),
    };
    ExitCode::from(exit as u8)
}

/// How a command ended: what the shell, a supervisor or Kubernetes is told. The numbers are those of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Exit {
    /// All is well.
    Clean = 0,
    /// Bad usage or a bad configuration: trying again changes nothing.
    Usage = 64,
    /// A needed service is missing or refuses.
    Unavailable = 69,
    /// An error of our own.
    Internal = 70,
    /// A drain that did not complete.
    Incomplete = 75,
}

/// Brings events from NATS to browsers and services over Server-Sent Events.
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
    /// Parse and validate the configuration without connecting to anything; prints every problem
    Check(Config),
    /// Ask the running sidecar to hand its clients over to other pods
    Drain(drain::Args),
    /// Follow an event stream: print its events, reconnect and resume when it breaks
    Tail(tail::Args),
    /// Try everything on this machine: NATS, a publisher, the sidecar and a page to watch it
    Demo(demo::Args),
    /// Add the sidecar to the workloads of manifests; who does it twice gets the same
    Inject(inject::Args),
    /// Take the sidecar out again
    Uninject(inject::Files),
    /// Run the webhook that adds the sidecar to pods with the label `sidestream.dev/inject: "true"`
    Injector(Box<injector::Args>),
}

impl Command {
    fn run(self) -> Exit {
        match self {
            Self::Drain(arguments) => drain::run(&arguments),
            Self::Tail(arguments) => tail::run(&arguments),
            Self::Demo(arguments) => demo::run(&arguments),
            Self::Inject(arguments) => inject::inject(&arguments),
            Self::Uninject(files) => inject::uninject(&files),
            Self::Injector(arguments) => injector::run(*arguments),
            Self::Run(config) => run::run(&config.config),
            Self::Check(config) => check::run(&config.config),
        }
    }
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct Config {
    /// The configuration file
    #[arg(long, value_name = "FILE", default_value = "sidecar.yaml")]
    config: PathBuf,
}

/// Prints clap's answer. Its own exit code for bad usage is 2, which supervisors take for many things; ours is 64.
fn explain(answer: &clap::Error) -> Exit {
    let printed = answer.print();
    if answer.use_stderr() {
        Exit::Usage
    } else {
        output::exit_of(printed)
    }
}

const EXIT_CODES: &str = "\
Exit codes:
  0   clean
  64  bad usage or a bad configuration
  69  a needed service is unavailable, or refuses
  70  internal error
  75  a drain that did not complete";
