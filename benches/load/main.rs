//! The load tool: many clients, a publisher, one server; what arrived, when, and what it cost.
//!
//! `cargo bench --bench load -- --spawn --target bare,sidestream` is a beginning, `--help` tells the rest.

mod bare;
mod client;
mod measure;
mod options;
mod plan;
mod publisher;
mod report;
mod stage;
mod wire;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use client::endpoint::Endpoint;
use measure::Setting;
use options::{Arguments, Command, Options};
use plan::Plan;
use stage::machine;
use stage::nats::{self, Nats};
use stage::server::{Recipe, Server, Target};

/// Every failure of the tool is a sentence for the person who runs it.
type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// 0: everything arrived once and in order. 1: it did not. 2: the tool could not do its work.
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match &arguments.command {
        Some(Command::Bare { nats, keep }) => bare::run(nats, *keep).map(|()| true),
        None if !arguments.options.spawn && arguments.options.url.is_none() => {
            // Also what `cargo bench` and `cargo test --all-targets` come to.
            Arguments::command().print_help().map(|()| true).map_err(Into::into)
        }
        None => load(&arguments.options),
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

fn load(options: &Options) -> Fallible<bool> {
    machine::raise_file_descriptors()?;
    // Before the first thread and the first child: all of them inherit it.
    if let Some(core) = options.load_cpu {
        machine::pin(core)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            result = measure_all(options) => result,
            // Dropping what runs kills the children.
            _ = terminate.recv() => Err("terminated".into()),
            _ = tokio::signal::ctrl_c() => Err("interrupted".into()),
        }
    })
}

/// Every target in turn, as often as asked; true if nothing was lost.
async fn measure_all(options: &Options) -> Fallible<bool> {
    let plan = Plan::new(options)?;
    let targets = if options.url.is_some() { &[Target::Url][..] } else { &options.targets };
    let nats = match &options.nats {
        Some(url) => Nats::existing(url).await?,
        None => Nats::start(&nats::program(options.nats_server.clone())).await?,
    };
    let mut runs = vec![Vec::new(); targets.len()];
    for run in 0..usize::from(options.runs) {
        for (index, &target) in targets.iter().enumerate() {
            // Each run has a source address of its own.
            runs[index].push(measure_one(options, &plan, &nats, target, run * targets.len() + index).await?);
        }
    }
    nats.stop().await?;
    tell(options, &plan, targets, &runs)?;
    Ok(!runs.iter().flatten().any(measure::is_faulty))
}

async fn measure_one(options: &Options, plan: &Plan, nats: &Nats, target: Target, run: usize) -> Fallible<Value> {
    let plan = plan.for_target(target);
    nats.purge().await?;
    let recipe = Recipe {
        sidestream: options.sidestream.clone(),
        core: options.server_cpu,
        tls: options.tls,
        log: options.log.clone(),
        replay: plan.replay,
    };
    let server = match (target, &options.url) {
        (Target::Bare, _) => Server::bare(&recipe, nats.url()).await?,
        (Target::Sidestream, _) => Server::sidestream(&recipe, nats.url()).await?,
        (Target::Url, url) => {
            let url = url.as_deref().ok_or("--target url needs --url")?;
            Server::existing(url, options.pid, options.ca.as_deref())
        }
    };
    let (path, subject) = options.source.route(plan.subjects);
    let path = if target == Target::Url { "" } else { path };
    let endpoint = Endpoint::resolve(&format!("{}{path}", server.origin()), server.ca()).await?.with_own_source(run);
    let subject = options.subject.as_deref().unwrap_or(subject);
    let setting = Setting { endpoint, pid: server.pid(), nats, subject };
    let result = measure::run(&plan, setting).await?;
    server.stop().await?;
    Ok(result)
}

fn tell(options: &Options, plan: &Plan, targets: &[Target], runs: &[Vec<Value>]) -> Fallible<()> {
    let name = |target: &Target| serde_json::to_value(target).ok().and_then(|name| Some(name.as_str()?.to_owned()));
    let columns: Vec<(String, Value)> = targets
        .iter()
        .zip(runs)
        .map(|(target, runs)| (name(target).unwrap_or_default(), report::median(runs)))
        .collect();
    let title = format!(
        "{}: {} clients, {} subjects, {} events of {} bytes, {}; median of {}",
        serde_json::to_value(plan.scenario)?.as_str().unwrap_or_default(),
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
        "results": results,
    });
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
