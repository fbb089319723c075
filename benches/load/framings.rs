//! Compares the framings: processor time for each delivery, and memory of an idle client.
//!
//! Each round runs all framings of a [`Group`] one directly after the other, with the same sidecar
//! and the same load. A cost is divided by that of Server-Sent Events in the same round, because the
//! machine drifts between rounds. The order alternates from round to round.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::guard::verdict::Spread;
use crate::options::{Cores, Options};
use crate::plan::Plan;
use crate::report;
use crate::stage::machine;
use crate::stage::nats::{self, Nats};
use crate::stage::server::Target;
use crate::suite::page;
use crate::wire::body::Framing;
use crate::{Fallible, measure};

/// Options of the comparison.
#[derive(Args, Debug)]
pub(crate) struct Framings {
    /// sidestream binary to start
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    sidestream: PathBuf,
    /// Runs of each framing
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only these groups: broadcast,broadcast-h2,idle,idle-h2
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    nats_server: Option<PathBuf>,
    /// Document whose figures, between two markers, are replaced
    #[arg(long)]
    write: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cores: Cores,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Framings that are compared with Server-Sent Events, in one scenario.
struct Group {
    /// Name for `--only`.
    name: &'static str,
    title: &'static str,
    options: &'static str,
    /// JSON pointer to the cost in the result of a run.
    cost: &'static str,
    decimals: usize,
    /// Limit of the ratio of WebSocket, if there is a goal.
    goal: Option<f64>,
}

/// Costs of one group: those of [`FRAMINGS`] in each round.
struct Rounds {
    group: &'static Group,
    costs: Vec<[f64; FRAMINGS.len()]>,
}

impl Framings {
    /// Measures, prints the tables, and writes them if requested. Returns true if nothing was lost.
    pub(crate) async fn run(&self) -> Fallible<bool> {
        if let Some(name) = self
            .only
            .iter()
            .find(|name| GROUPS.iter().all(|group| group.name != **name))
        {
            let names = GROUPS.each_ref().map(|group| group.name).join(", ");
            return Err(format!("unknown group {name:?}: expected one of {names}").into());
        }
        let load_before = machine::load_average();
        let chosen = |group: &&Group| {
            self.only.is_empty() || self.only.iter().any(|name| name == group.name)
        };
        let (mut all, mut runs) = (Vec::new(), 0);
        for group in GROUPS.iter().filter(chosen) {
            let mut rounds = Rounds {
                group,
                costs: Vec::new(),
            };
            for round in 0..self.rounds {
                rounds
                    .costs
                    .push(self.round(group, round, &mut runs).await?);
            }
            all.push(rounds);
        }
        let text = page(&all, self.rounds, &load_before);
        println!("{text}");
        if let Some(path) = &self.write {
            page::replace(path, "framings", &text)?;
        }
        Ok(true)
    }

    /// Returns the costs of the framings in one round.
    ///
    /// # Errors
    /// Events were lost in a run.
    async fn round(
        &self,
        group: &Group,
        round: u16,
        runs: &mut usize,
    ) -> Fallible<[f64; FRAMINGS.len()]> {
        let nats = Nats::start(&nats::program(self.nats_server.clone())).await?;
        let mut order: Vec<usize> = (0..FRAMINGS.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        let mut costs = [0.0; FRAMINGS.len()];
        for index in order {
            let mut options = Options::spawning(group.options)?;
            options.framing = FRAMINGS[index].0;
            options.sidestream.clone_from(&self.sidestream);
            options.server_cpu = self.cores.server_cpu;
            options.load_cpu = self.cores.load_cpu;
            let plan = Plan::new(&options)?;
            *runs += 1;
            let result =
                crate::measure_one(&options, &plan, &nats, Target::Sidestream, *runs).await?;
            let name = FRAMINGS[index].1;
            if measure::is_faulty(&result) {
                return Err(
                    format!("{}: faults of {name}: {}", group.name, result["faults"]).into(),
                );
            }
            costs[index] = result
                .pointer(group.cost)
                .and_then(Value::as_f64)
                .ok_or_else(|| format!("{name} has no {}", group.cost))?;
            eprintln!(
                "{}, round {}: {name} {:.3}",
                group.name,
                round + 1,
                costs[index]
            );
        }
        nats.stop().await?;
        Ok(costs)
    }
}

// === impl Rounds ===

impl Rounds {
    fn median(&self, index: usize) -> f64 {
        report::middle(self.costs.iter().map(|costs| costs[index]).collect()).unwrap_or_default()
    }

    /// Returns the ratios of a framing to Server-Sent Events, each within one round.
    fn ratios(&self, index: usize) -> Option<Spread> {
        Spread::of(
            self.costs
                .iter()
                .map(|costs| costs[index] / costs[0])
                .collect(),
        )
    }

    fn put(&self, text: &mut String) {
        writeln!(text, "| **{}** | | | | | |", self.group.title).ok();
        for (index, (framing, name)) in FRAMINGS.iter().enumerate() {
            let cost = report::number(self.median(index), self.group.decimals);
            let Some(ratio) = self.ratios(index).filter(|_| index > 0) else {
                writeln!(text, "| {name} | {cost} | | | | |").ok();
                continue;
            };
            let goal = self.group.goal.filter(|_| *framing == Framing::WebSocket);
            let [goal, reached] = match goal {
                Some(goal) if ratio.median <= goal => [format!("at most {goal}"), "yes".to_owned()],
                Some(goal) => [format!("at most {goal}"), "**no**".to_owned()],
                None => Default::default(),
            };
            let Spread {
                low, median, high, ..
            } = ratio;
            writeln!(
                text,
                "| {name} | {cost} | {median:.2} | {low:.2} to {high:.2} | {goal} | {reached} |"
            )
            .ok();
        }
    }
}

/// Renders the table.
fn page(all: &[Rounds], rounds: u16, load_before: &str) -> String {
    let mut text = page::method(rounds, load_before);
    text.push_str(
        "\n| | cost | x SSE | spread | goal | reached |\n| --- | --- | --- | --- | --- | --- |\n",
    );
    all.iter().for_each(|rounds| rounds.put(&mut text));
    text
}

/// Server-Sent Events first: all others are compared with it.
const FRAMINGS: [(Framing, &str); 4] = [
    (Framing::Sse, "Server-Sent Events"),
    (Framing::Ndjson, "JSON lines"),
    (Framing::WebSocket, "WebSocket"),
    (Framing::Grpc, "gRPC (HTTP/1.1: gRPC-Web)"),
];

const CPU: &str = "/delivery/cpu_us_per_delivery/total";
const IDLE: &str = "/memory/idle_per_client_bytes";

const GROUPS: [Group; 4] = [
    Group {
        name: "broadcast",
        title: "HTTP/1.1, 1,000 clients x 40 events/s: CPU µs per delivery",
        options: "--scenario broadcast --seconds 5",
        cost: CPU,
        decimals: 2,
        goal: Some(1.1),
    },
    Group {
        name: "broadcast-h2",
        title: "10 HTTP/2 connections x 100 clients, 100 events/s: CPU µs per delivery",
        options: "--scenario h2 --seconds 5",
        cost: CPU,
        decimals: 2,
        goal: None,
    },
    Group {
        name: "idle",
        title: "HTTP/1.1, 10,000 idle clients: bytes per client",
        options: "--scenario idle --events 1",
        cost: IDLE,
        decimals: 0,
        goal: Some(1.1),
    },
    Group {
        name: "idle-h2",
        title: "100 HTTP/2 connections x 100 idle clients: bytes per client",
        options: "--scenario idle --events 1 --protocol h2 --connections 100 --streams 100",
        cost: IDLE,
        decimals: 0,
        goal: None,
    },
];
