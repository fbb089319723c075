//! Compares the speed of two builds of the sidecar: `make bench-guard`.
//!
//! `scripts/bench-guard.sh` builds the base commit and the working tree, then starts this
//! subcommand with both binaries. The load tool is that of the working tree for both.
//!
//! Each round runs every scenario once with each build, one directly after the other. The ratio
//! of such a pair is free of the drift of the machine, which is larger than the differences of
//! interest. The order of a pair alternates from round to round, so that a trend within the pair
//! cancels out. Costs are processor time and memory of the sidecar's process, never latency or
//! throughput: on a busy machine these measure the other programs.
//!
//! A scenario that looks slower after the last round is measured again for as many rounds.
//! Otherwise equal builds would fail too often: in ten comparisons over five rounds, one is likely
//! enough to be slower in all rounds by chance. [`verdict`] has the statistics.
//!
//! The storm is also compared with the bare send loop.

pub(crate) mod verdict;

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

use crate::options::{Cores, Options};
use crate::plan::Plan;
use crate::report;
use crate::stage::machine;
use crate::stage::nats::{self, Nats};
use crate::stage::server::Target;
use crate::{Fallible, measure};
use verdict::{Spread, Verdict};

/// Options of the guard.
#[derive(Args, Debug)]
pub(crate) struct Guard {
    /// Binary to compare with
    #[arg(long)]
    base: PathBuf,
    /// Binary to judge
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    tree: PathBuf,
    /// Runs of each scenario with each binary
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Only these scenarios: broadcast,storm,...
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    nats_server: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cores: Cores,
    /// A few clients and one second: tests the guard, measures nothing
    #[arg(long, hide = true)]
    brief: bool,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// One comparison: a scenario, its options, and the cost that is compared.
struct Comparison {
    /// Name for `--only`; several comparisons may share it.
    scenario: &'static str,
    /// Name in the table.
    name: &'static str,
    unit: &'static str,
    options: &'static str,
    /// JSON pointer to the cost in the result of a run.
    cost: &'static str,
    decimals: usize,
    /// Tolerated difference from the base, 0.03 for 3 %.
    limit: f64,
    /// Tolerated multiple of the bare loop's cost, if that is measured too.
    bare_limit: Option<f64>,
    /// More rounds are not worth their time: the figure hardly varies.
    rounds_max: u16,
}

/// Servers that take part in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    Base,
    Tree,
    Bare,
}

/// Costs measured in one round.
#[derive(Clone, Copy, Debug)]
struct Costs {
    base: f64,
    tree: f64,
    bare: Option<f64>,
}

/// All rounds of one comparison.
struct Rounds {
    comparison: &'static Comparison,
    costs: Vec<Costs>,
    /// Description of the first round that was faulty in all attempts.
    fault: Option<String>,
}

/// One line of the table.
struct Row {
    name: String,
    unit: &'static str,
    base: f64,
    tree: f64,
    decimals: usize,
    ratio: Spread,
    /// Limit as it is printed.
    limit: String,
    verdict: Verdict,
}

impl Guard {
    /// Measures and prints the table; returns false if a scenario is slower, or lost events.
    pub(crate) async fn run(&self) -> Fallible<bool> {
        let load_before = machine::load_average();
        let mut all: Vec<Rounds> = self.chosen()?.into_iter().map(Rounds::new).collect();
        let mut runs = 0;
        for round in 1..=self.rounds {
            for rounds in &mut all {
                if round <= rounds.comparison.rounds_max {
                    self.add_round(rounds, round, &mut runs).await?;
                }
            }
        }
        let mut suspects: Vec<&mut Rounds> = all
            .iter_mut()
            .filter(|rounds| rounds.is_suspect())
            .collect();
        for round in 1..=self.rounds {
            for rounds in &mut suspects {
                if round <= rounds.comparison.rounds_max {
                    self.add_round(rounds, self.rounds + round, &mut runs)
                        .await?;
                }
            }
        }
        let rows: Vec<Row> = all.iter().flat_map(Rounds::rows).collect();
        println!("{}", table(&rows, &load_before));
        let mut passed = rows.iter().all(|row| row.verdict != Verdict::Slower);
        for rounds in &all {
            if let Some(fault) = &rounds.fault {
                println!("{}: {fault}", rounds.comparison.name);
                passed = false;
            }
        }
        Ok(passed)
    }

    fn chosen(&self) -> Fallible<Vec<&'static Comparison>> {
        for name in &self.only {
            if !COMPARISONS.iter().any(|one| one.scenario == name) {
                let mut names: Vec<&str> = COMPARISONS.iter().map(|one| one.scenario).collect();
                names.dedup();
                return Err(format!(
                    "unknown scenario {name:?}: expected one of {}",
                    names.join(", ")
                )
                .into());
            }
        }
        Ok(COMPARISONS
            .iter()
            .filter(|one| self.only.is_empty() || self.only.iter().any(|it| it == one.scenario))
            .collect())
    }

    /// Adds a round. Repeats a faulty one: a busy machine makes the sidecar reject connections.
    async fn add_round(&self, rounds: &mut Rounds, round: u16, runs: &mut usize) -> Fallible<()> {
        let comparison = rounds.comparison;
        let mut last_fault = None;
        for _ in 0..ATTEMPTS_MAX {
            match self.round(comparison, round, runs).await? {
                Ok(costs) => {
                    eprintln!(
                        "{}, round {round}: base {:.3}, tree {:.3}, ratio {:.3}",
                        comparison.name,
                        costs.base,
                        costs.tree,
                        costs.tree / costs.base,
                    );
                    rounds.costs.push(costs);
                    return Ok(());
                }
                Err(fault) => {
                    eprintln!("{}, round {round}: {fault}", comparison.name);
                    last_fault = Some(fault);
                }
            }
        }
        rounds.fault = rounds.fault.take().or(last_fault);
        Ok(())
    }

    /// Runs all contenders once. The inner error describes a faulty run, whose cost is meaningless.
    async fn round(
        &self,
        comparison: &Comparison,
        round: u16,
        runs: &mut usize,
    ) -> Fallible<Result<Costs, String>> {
        let mut contenders = vec![Contender::Base, Contender::Tree];
        contenders.extend(comparison.bare_limit.map(|_| Contender::Bare));
        if round.is_multiple_of(2) {
            contenders.reverse();
        }
        let nats = Nats::start(&nats::program(self.nats_server.clone())).await?;
        let (mut base, mut tree, mut bare) = (None, None, None);
        for contender in contenders {
            let (binary, target, cost) = match contender {
                Contender::Base => (&self.base, Target::Sidestream, &mut base),
                Contender::Tree => (&self.tree, Target::Sidestream, &mut tree),
                Contender::Bare => (&self.tree, Target::Bare, &mut bare),
            };
            let options = self.options(comparison, binary.clone())?;
            let plan = Plan::new(&options)?;
            *runs += 1;
            // Also an error if the sidecar rejects all clients.
            let result = match crate::measure_one(&options, &plan, &nats, target, *runs).await {
                Ok(result) => result,
                Err(error) => return Ok(Err(format!("{contender:?}: {error}"))),
            };
            if measure::is_faulty(&result) {
                return Ok(Err(format!(
                    "faults of {contender:?}: {}",
                    result["faults"]
                )));
            }
            *cost = result.pointer(comparison.cost).and_then(Value::as_f64);
        }
        nats.stop().await?;
        let (base, tree) = base
            .zip(tree)
            .ok_or_else(|| format!("{} has no {}", comparison.name, comparison.cost))?;
        Ok(Ok(Costs { base, tree, bare }))
    }

    fn options(&self, comparison: &Comparison, binary: PathBuf) -> Fallible<Options> {
        let mut options = Options::spawning(comparison.options)?;
        options.sidestream = binary;
        options.server_cpu = self.cores.server_cpu;
        options.load_cpu = self.cores.load_cpu;
        if self.brief {
            options.clients = Some(20);
            (options.connections, options.streams) = (Some(2), 10);
            options.seconds = Some(1);
            options.missed = 20;
        }
        Ok(options)
    }
}

// === impl Rounds ===

impl Rounds {
    fn new(comparison: &'static Comparison) -> Self {
        Self {
            comparison,
            costs: Vec::new(),
            fault: None,
        }
    }

    /// Returns whether more rounds are needed to decide that the tree is slower.
    fn is_suspect(&self) -> bool {
        self.rows().iter().any(|row| match row.verdict {
            Verdict::Slower => true,
            Verdict::Noise => row.ratio.median > 1.0 && row.ratio.count > 1,
            Verdict::Ok | Verdict::Faster | Verdict::Above => false,
        })
    }

    fn rows(&self) -> Vec<Row> {
        [self.row_against_base(), self.row_against_bare()]
            .into_iter()
            .flatten()
            .collect()
    }

    fn row_against_base(&self) -> Option<Row> {
        let comparison = self.comparison;
        let ratio = Spread::of(
            self.costs
                .iter()
                .map(|costs| costs.tree / costs.base)
                .collect(),
        )?;
        let base = report::middle(self.costs.iter().map(|costs| costs.base).collect())?;
        let tree = report::middle(self.costs.iter().map(|costs| costs.tree).collect())?;
        Some(Row {
            name: comparison.name.to_owned(),
            unit: comparison.unit,
            base,
            tree,
            decimals: comparison.decimals,
            ratio,
            limit: format!("{:.2}", 1.0 + comparison.limit),
            verdict: ratio.against_base(comparison.limit),
        })
    }

    fn ratios_to_bare(&self, cost: fn(&Costs) -> f64) -> Vec<f64> {
        self.costs
            .iter()
            .filter_map(|costs| Some(cost(costs) / costs.bare?))
            .collect()
    }

    fn row_against_bare(&self) -> Option<Row> {
        let limit = self.comparison.bare_limit?;
        let base = Spread::of(self.ratios_to_bare(|costs| costs.base))?;
        let tree = Spread::of(self.ratios_to_bare(|costs| costs.tree))?;
        Some(Row {
            name: format!("{} / bare", self.comparison.name),
            unit: "x the bare loop",
            base: base.median,
            tree: tree.median,
            decimals: 2,
            ratio: tree,
            limit: format!("{limit:.2}"),
            verdict: tree.against_bound(limit, &base),
        })
    }
}

/// The rows as text, with the load of the machine before and after.
fn table(rows: &[Row], load_before: &str) -> String {
    let mut text = format!(
        "load average before: {load_before}; after: {}\n\n{:<26}{:<20}{:>10}{:>10}{:>8}{:>16}{:>8}{:>8}  verdict\n",
        machine::load_average(),
        "scenario",
        "unit",
        "base",
        "tree",
        "ratio",
        "spread",
        "rounds",
        "limit",
    );
    for row in rows {
        writeln!(
            text,
            "{:<26}{:<20}{:>10}{:>10}{:>8.3}{:>16}{:>8}{:>8}  {}",
            row.name,
            row.unit,
            report::number(row.base, row.decimals),
            report::number(row.tree, row.decimals),
            row.ratio.median,
            format!("{:.3}..{:.3}", row.ratio.low, row.ratio.high),
            row.ratio.count,
            row.limit,
            row.verdict,
        )
        .ok();
    }
    if rows.iter().any(|row| row.verdict == Verdict::Noise) {
        text.push_str(NOISE);
    }
    text
}

/// Attempts at a round without faults.
const ATTEMPTS_MAX: usize = 3;

const NOISE: &str = "noise: beyond the limit, but not in all rounds. Repeat it with more rounds on a quieter machine.\n";

/// Eight scenarios; *broadcast* and *storm* are measured over TLS too, *idle* over three protocols.
const COMPARISONS: [Comparison; 13] = [
    Comparison {
        name: "broadcast",
        options: "--scenario broadcast --seconds 5",
        ..DELIVERIES
    },
    Comparison {
        name: "broadcast, TLS",
        options: "--scenario broadcast --seconds 5 --tls",
        ..DELIVERIES
    },
    Comparison {
        scenario: "single",
        name: "single",
        options: "--scenario single",
        ..DELIVERIES
    },
    Comparison {
        scenario: "many-subjects",
        name: "many-subjects",
        options: "--scenario many-subjects --seconds 4",
        ..DELIVERIES
    },
    Comparison {
        scenario: "many-subjects-core",
        name: "many-subjects-core",
        options: "--scenario many-subjects --source core --seconds 4",
        ..DELIVERIES
    },
    Comparison {
        scenario: "h2",
        name: "h2",
        options: "--scenario h2 --seconds 5",
        ..DELIVERIES
    },
    // Below the 200,000 events after which the load tool has to wait for the load level to fall.
    Comparison {
        scenario: "replay",
        name: "replay from the window",
        unit: "CPU us per event",
        options: "--scenario replay --from window --clients 190",
        cost: "/replay/cpu_us_per_event",
        decimals: 3,
        ..DELIVERIES
    },
    Comparison {
        scenario: "replay",
        name: "replay from JetStream",
        unit: "CPU us per event",
        options: "--scenario replay --from archive --clients 190",
        cost: "/replay/cpu_us_per_event",
        decimals: 3,
        ..DELIVERIES
    },
    Comparison {
        scenario: "storm",
        name: "storm",
        unit: "CPU us per client",
        options: "--scenario storm",
        cost: "/connect/cpu_us_per_client",
        bare_limit: Some(1.35),
        ..DELIVERIES
    },
    Comparison {
        scenario: "storm",
        name: "storm, TLS",
        unit: "CPU us per client",
        options: "--scenario storm --tls",
        cost: "/connect/cpu_us_per_client",
        ..DELIVERIES
    },
    Comparison {
        name: "idle, HTTP/1.1",
        options: "--scenario idle --events 1",
        ..IDLE_BYTES
    },
    Comparison {
        name: "idle, TLS",
        options: "--scenario idle --events 1 --tls",
        ..IDLE_BYTES
    },
    Comparison {
        name: "idle, HTTP/2",
        options: "--scenario idle --events 1 --protocol h2 --connections 100 --streams 100",
        ..IDLE_BYTES
    },
];

/// Defaults of a scenario in which events are delivered.
const DELIVERIES: Comparison = Comparison {
    scenario: "broadcast",
    name: "broadcast",
    unit: "CPU us per delivery",
    options: "",
    cost: "/delivery/cpu_us_per_delivery/total",
    decimals: 2,
    limit: 0.03,
    bare_limit: None,
    rounds_max: u16::MAX,
};

/// Defaults of a scenario in which clients wait.
const IDLE_BYTES: Comparison = Comparison {
    scenario: "idle",
    name: "idle",
    unit: "bytes per client",
    options: "",
    cost: "/memory/idle_per_client_bytes",
    decimals: 0,
    limit: 0.03,
    bare_limit: None,
    rounds_max: 4,
};
