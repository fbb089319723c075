//! `sidestream demo`: runs NATS, a publisher, the sidecar and a page on this machine.
//!
//! nats-server and the sidecar are child processes; the publisher and the page run in this process.
//! They start in the order of their dependencies and stop in reverse, so that the sidecar drains
//! while NATS still answers. If one part fails, the demo ends with the end of its log. All files
//! are in a private temporary directory that is removed at the end.

mod child;
mod directory;
mod failure;
mod nats_server;
mod page;
mod publisher;
mod scenario;
mod sidecar;

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use self::child::Child;
use self::directory::Directory;
use self::failure::Failure;
use self::nats_server::NatsServer;
use self::publisher::Publisher;
use self::sidecar::Plan;
use super::exit::Exit;
use super::output;
use crate::net::listener::{self, Sharing};

/// Arguments of `sidestream demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Port of the sidecar for clients
    #[arg(long, value_name = "PORT", default_value_t = 8080, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Port of the sidecar's health checks and metrics
    #[arg(long, value_name = "PORT", default_value_t = 9090, value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,
    /// Port of the page that shows the events
    #[arg(long, value_name = "PORT", default_value_t = 8081, value_parser = clap::value_parser!(u16).range(1..))]
    page_port: u16,
    /// Address of the sidecar and the page; 0.0.0.0 admits other machines, such as a phone
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    address: IpAddr,
}

/// Runs the demo until Ctrl-C, SIGTERM or the end of one of its parts.
pub(super) fn run(args: &Args) -> Exit {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(from_start_to_end(args)),
        Err(error) => Err(Failure::internal(error.to_string())),
    };
    match result {
        Ok(()) => Exit::Clean,
        Err(failure) => {
            output::complain(format_args!("sidestream demo: {}", failure.message));
            failure.exit
        }
    }
}

async fn from_start_to_end(args: &Args) -> Result<(), Failure> {
    let mut stop = Stop::new()?;
    // Dropped last: the children write into it until they exit.
    let directory = Directory::create()?;
    let mut children = Children::default();
    let outcome = tokio::select! {
        biased; // a signal has priority, also during the start
        () = stop.requested() => Ok(()),
        Err(failure) = play(args, &directory, &mut children) => Err(failure),
    };
    if outcome.is_ok() {
        say("\nstopping (Ctrl-C again to stop at once)");
    }
    tokio::select! {
        biased;
        () = stop.requested() => {}
        () = children.end() => {}
    }
    outcome
}

/// Starts everything in the order of dependencies, then waits for a failure.
async fn play(
    args: &Args,
    directory: &Directory,
    children: &mut Children,
) -> Result<Infallible, Failure> {
    let plan = |port| SocketAddr::new(args.address, port);
    let page = bind(plan(args.page_port), "--page-port")?;
    // Bind and close, so that the error for an occupied port names the option.
    drop(bind(plan(args.port), "--port")?);
    drop(bind(plan(args.admin_port), "--admin-port")?);

    let NatsServer {
        child,
        url,
        version,
    } = NatsServer::start(directory.path()).await?;
    let nats = children.nats.insert(child);
    // The publisher comes first: it creates the stream that the sidecar's configuration names.
    let publisher = Publisher::connect(&url).await?;
    let plan = Plan {
        clients: plan(args.port),
        admin: plan(args.admin_port),
        nats: &url,
        directory: directory.path(),
    };
    let sidecar = children.sidecar.insert(sidecar::start(&plan)?);

    let watched = async {
        sidecar::ready(&plan).await?;
        say(&welcome(&plan, page.local_addr()?, version));
        tokio::select! {
            failure = publisher.run() => Err(failure),
            ended = page::serve(page, args.port) => ended.map_err(|error| Failure::internal(error.to_string())),
        }
    };
    tokio::select! {
        biased; // report the cause before its consequences
        death = nats.died() => Err(Failure::unavailable(death)),
        death = sidecar.died() => Err(Failure::internal(death)),
        outcome = watched => outcome,
    }
}

/// Prints to standard output; a closed pipe is ignored.
fn say(text: &str) {
    output::print(&format!("{text}\n")).ok();
}

fn bind(address: SocketAddr, option: &str) -> Result<TcpListener, Failure> {
    let bound = listener::bind(address, Sharing::Alone);
    bound.map_err(|error| {
        Failure::unavailable(format!(
            "{address}: {error} (choose another port with {option})"
        ))
    })
}

fn welcome(plan: &Plan<'_>, page: SocketAddr, version: nats_server::Version) -> String {
    let Plan { nats, .. } = plan;
    let [sidecar, admin, page] = [plan.clients, plan.admin, page].map(sidecar::reachable);
    let nats_port = nats.rsplit(':').next().unwrap_or_default();
    let directory = plan.directory.display();
    format!(
        r#"Sidestream demo, with nats-server {version}

  page      http://{page}/
  events    curl -N 'http://{sidecar}/events?subject=demo.%3E'
            curl -N --http2-prior-knowledge 'http://{sidecar}/events?subject=demo.alerts'
            sidestream tail 'http://{sidecar}/events?subject=demo.orders.>'
  admin     http://{admin}/
  health    http://{admin}/health
  metrics   http://{admin}/metrics
  publish   nats --server {nats} pub demo.hello '{{"hello":"world"}}'
            printf 'PUB demo.hello 2\r\nhi\r\n' > /dev/tcp/127.0.0.1/{nats_port}     (bash, without the nats tool)
  files     {directory} (sidecar.yaml, logs; removed at the end)

Ctrl-C stops everything."#
    )
}

/// Child processes; they must not outlive the demo.
#[derive(Default)]
struct Children {
    nats: Option<Child>,
    sidecar: Option<Child>,
}

impl Children {
    /// Stops the sidecar first: it drains its clients while NATS still answers.
    async fn end(self) {
        for child in [self.sidecar, self.nats].into_iter().flatten() {
            child.end(STOP_TIMEOUT).await;
        }
    }
}

/// SIGINT and SIGTERM.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// 8 s: longer than `drain.timeout` of the demo's configuration.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
