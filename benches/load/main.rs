//! The load tool: measures a server of event streams with many clients and one publisher.
//!
//! A run starts nats-server and the server under test ([`stage`]), opens the clients ([`client`]),
//! publishes events that carry a timestamp and a number ([`publisher`], [`wire`]), and reports
//! latencies, processor time, memory, and every event that is missing, duplicated or out of order
//! ([`measure`], [`report`]). A scenario is data ([`plan`]). [`bare`] is the server with the least
//! possible cost; [`suite`] measures everything in `docs/benchmarks.md`; [`guard`] compares two
//! builds of the sidecar; [`framings`] compares WebSocket and the other framings with Server-Sent
//! Events; [`proxy`] compares passed requests with nginx; [`shards`] compares one shard
//! with two.
//!
//! Clients run on one thread and count into one meter. The publisher has a thread of its own. On a
//! machine with two cores, the server gets one, and everything else the other.
//!
//! To begin: `cargo bench --bench load -- --spawn --target bare,sidestream`. `--help` has the rest.

mod arguments;
mod bare;
mod client;
mod framings;
mod guard;
mod measure;
mod options;
mod plan;
mod proxy;
mod publisher;
mod report;
mod shards;
mod stage;
mod suite;
mod wire;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use arguments::{Arguments, Command};
use client::endpoint::Endpoint;
use measure::Setting;
use options::{Options, Scenario};
use plan::Plan;
use publisher::Outlet;
use stage::certificate::Certificate;
use stage::collector;
use stage::machine;
use stage::nats::{self, Nats};
use stage::recipe::{Recipe, Traces};
use stage::server::{Server, Target};
use stage::tokens::{Algorithm, Tokens};

/// Errors of the tool are messages to its user; no caller matches on them.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Results of the runs of each target, in the order of the targets.
struct Measured {
    plan: Plan,
    targets: Vec<Target>,
    runs: Vec<Vec<Value>>,
}

/// Exits with 0 if all events arrived once and in order, with 1 if not, and with 2 on an error.
fn main() -> ExitCode {
    let mut arguments = Arguments::parse();
    let result = match &mut arguments.command {
        Some(Command::Bare(options)) => bare::run(options).map(|()| true),
        Some(Command::Suite(suite)) => on_core(Some(suite.load_cpu()), suite.run()),
        Some(Command::Guard(guard)) => guard
            .cores
            .choose()
            .and_then(|()| on_core(guard.cores.load_cpu, guard.run())),
        Some(Command::Framings(framings)) => framings
            .cores
            .choose()
            .and_then(|()| on_core(framings.cores.load_cpu, framings.run())),
        Some(Command::Proxy(proxy)) => proxy
            .cores
            .choose()
            .and_then(|()| on_core(proxy.cores.load_cpu, proxy.run())),
        Some(Command::Shards(shards)) => on_core(None, shards.run()),
        None if !arguments.options.spawn && arguments.options.url.is_none() => {
            // `cargo bench` and `cargo test --all-targets` run this.
            Arguments::command()
                .print_help()
                .map(|()| true)
                .map_err(Into::into)
        }
        None => on_core(arguments.options.load_cpu, load(&arguments.options)),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("load: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the work on this thread until it is done, or a signal ends the program.
fn on_core(core: Option<usize>, work: impl Future<Output = Fallible<bool>>) -> Fallible<bool> {
    machine::raise_file_descriptors()?;
    // Before the first thread and the first child, because all of them inherit the core.
    if let Some(core) = core {
        machine::pin(core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = work => result,
            // Dropping the work kills the children.
            _ = terminate.recv() => Err("terminated".into()),
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })
}

/// Measures and prints the report. Returns true if nothing was lost.
async fn load(options: &Options) -> Fallible<bool> {
    let measured = measure_all(options, 0).await?;
    print_report(options, &measured)?;
    Ok(!measured.runs.iter().flatten().any(measure::is_faulty))
}

/// Measures every target in turn, `--runs` times. `before` is the number of earlier runs.
async fn measure_all(options: &Options, before: usize) -> Fallible<Measured> {
    let plan = Plan::new(options)?;
    let targets = if options.url.is_some() {
        vec![Target::Url]
    } else {
        options.targets.clone()
    };
    let nats = match &options.nats {
        Some(url) => Nats::existing(url).await?,
        None => Nats::start(&nats::program(options.nats_server.clone())).await?,
    };
    let mut runs = vec![Vec::new(); targets.len()];
    for run in 0..usize::from(options.runs) {
        for (index, &target) in targets.iter().enumerate() {
            // The number selects the source address of the clients.
            let number = before + run * targets.len() + index;
            match measure_one(options, &plan, &nats, target, number).await {
                Ok(result) => runs[index].push(result),
                Err(error) if options.forgiving && target.is_peer() => {
                    eprintln!("{}: {error}", target.name())
                }
                Err(error) => return Err(error),
            }
        }
    }
    nats.stop().await?;
    Ok(Measured {
        plan,
        targets,
        runs,
    })
}

/// Starts a collector for traces of this ratio.
fn traces(sample: f64) -> Fallible<Traces> {
    let collector = collector::start()?;
    Ok(Traces { sample, collector })
}

async fn measure_one(
    options: &Options,
    plan: &Plan,
    nats: &Nats,
    target: Target,
    run: usize,
) -> Fallible<Value> {
    let plan = plan.for_target(target);
    nats.purge().await?;
    let is_verified = |_: &Algorithm| target == Target::Sidestream;
    let tokens = options.tokens.filter(is_verified);
    let principals = options.principals.map(|principals| principals as usize);
    let principals = principals.unwrap_or_else(|| plan.client_count());
    let tokens = tokens.map(|algorithm| Tokens::new(algorithm, principals));
    let certificate = options
        .tls
        .then(|| Certificate::new(options.key, options.resume));
    let recipe = Recipe {
        sidestream: options.sidestream.clone(),
        core: options.server_cpu,
        tls: certificate.transpose()?,
        log: options.log.clone(),
        framing: plan.framing,
        compression: plan.compression,
        replay: plan.replay,
        tokens: tokens.transpose()?,
        traces: options.traces.map(traces).transpose()?,
        application: None,
    };
    let (path, subject) = options.source.route(plan.subjects);
    let path = if target == Target::Url { "" } else { path };
    let tokens = recipe.tokens.as_ref().map(Tokens::of_principals);
    let tokens = tokens.unwrap_or_default();
    let resolve = async |server: &Server| {
        let url = format!("{}{path}", server.origin());
        let endpoint = Endpoint::resolve(&url, server.ca(), options.resume).await?;
        Fallible::Ok(endpoint.with_own_source(run).with_tokens(tokens.clone()))
    };
    let mut server = start(options, target, &recipe, nats).await?;
    let mut endpoint = resolve(&server).await?;
    if options.resume {
        measure::first_visit(&plan, &endpoint).await?;
        // The bare loop shares no keys with others.
        if target == Target::Sidestream {
            server.stop().await?;
            server = start(options, target, &recipe, nats).await?;
        }
        endpoint = resolve(&server).await?.with_tickets_of(&endpoint);
    }
    let subject = options.subject.as_deref().unwrap_or(subject);
    let outlet = match server.posts() {
        Some(address) => Outlet::Posts {
            address,
            path: format!("/pub{path}"),
        },
        None => Outlet::Nats {
            url: nats.url().to_owned(),
            subject: subject.to_owned(),
        },
    };
    let next = match plan.scenario {
        Scenario::Million if target == Target::Sidestream => {
            Some(Server::sidestream(&recipe, nats.url()).await?)
        }
        _ => None,
    };
    let successor = match &next {
        Some(next) => Some(resolve(next).await?),
        None => None,
    };
    let setting = Setting {
        endpoint,
        successor,
        pid: server.pid(),
        nats,
        outlet,
    };
    let result = measure::run(&plan, setting).await?;
    server.stop().await?;
    if let Some(next) = next {
        next.stop().await?;
    }
    Ok(result)
}

async fn start(
    options: &Options,
    target: Target,
    recipe: &Recipe,
    nats: &Nats,
) -> Fallible<Server> {
    match (target, &options.url) {
        (Target::Bare | Target::BareH2, _) => Server::bare(recipe, nats.url()).await,
        (Target::Sidestream, _) => Server::sidestream(recipe, nats.url()).await,
        (Target::Nchan, _) => Server::nchan(recipe).await,
        (Target::Node, _) => Server::node(recipe, nats.url()).await,
        (Target::Url, url) => {
            let url = url.as_deref().ok_or("--target url needs --url")?;
            Ok(Server::existing(url, options.pid, options.ca.as_deref()))
        }
    }
}

fn print_report(
    options: &Options,
    Measured {
        plan,
        targets,
        runs,
    }: &Measured,
) -> Fallible<()> {
    let columns: Vec<(String, Value)> = targets
        .iter()
        .zip(runs)
        .map(|(target, runs)| (target.name(), report::median(runs)))
        .collect();
    let title = format!(
        "{}: {} clients, {} subjects, {} events of {} bytes, {}; median of {}",
        serde_json::to_value(plan.scenario)?
            .as_str()
            .unwrap_or_default(),
        plan.client_count(),
        plan.subjects,
        plan.events,
        plan.size,
        if options.tls { "TLS" } else { "clear text" },
        options.runs,
    );
    let table = report::table(&title, &columns);
    if !options.json {
        println!("{table}");
        return Ok(());
    }
    eprintln!("{table}");
    let results: Vec<Value> = columns
        .into_iter()
        .zip(runs)
        .map(|((target, median), runs)| json!({ "target": target, "median": median, "runs": runs }))
        .collect();
    let report = json!({
        "machine": machine::describe(),
        "plan": plan,
        "source": options.source,
        "tls": options.tls,
        "key": options.key,
        "resume": options.resume,
        "tokens": options.tokens,
        "results": results,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
