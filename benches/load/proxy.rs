//! Compares passed and cached requests with nginx: processor time per request, and latency.
//!
//! ```text
//! clients -> sidecar, nginx (one core, one thread each) -> application
//! ```
//!
//! Clients and application have the other core. Both proxies run all the time, and have the same
//! clients in turn for half a second, so that both are measured in the same seconds. The ratio of
//! such a pair is free of the drift of the machine; the order alternates. Latencies are of the
//! requests of all rounds.

mod application;
mod traffic;

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::Fallible;
use crate::guard::verdict::Spread;
use crate::options::{Cores, Protocol};
use crate::stage::nats::{self, Nats};
use crate::stage::process::Cpu;
use crate::stage::recipe::Recipe;
use crate::stage::server::Server;
use crate::wire::body::Framing;
use traffic::{Clients, Kind, Rate, Tally};

/// Options of the comparison.
#[derive(Args, Debug)]
pub(crate) struct Proxy {
    /// sidestream binary to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    sidestream: PathBuf,
    /// Rounds; the report has medians
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Only the lines whose name contains one of these: "h1 GET 512",h2,...
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Milliseconds with each proxy in a round
    #[arg(long, default_value_t = 500)]
    milliseconds: u64,
    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    nats_server: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) cores: Cores,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// A proxy that runs.
struct Running {
    pid: u32,
    http1: SocketAddr,
    /// Address for HTTP/2 with prior knowledge.
    http2: SocketAddr,
}

/// Line of the table.
struct Line {
    name: String,
    kind: Kind,
    protocol: Protocol,
    rate: Rate,
    nginx: Measured,
    sidecar: Measured,
}

/// Results of one proxy.
struct Measured {
    /// Microseconds per request, by round.
    cpu: Vec<f64>,
    tally: Tally,
}

/// Small page, large page, upload; small and large responses of the cache.
const KINDS: [Kind; 5] = [
    Kind {
        name: "GET 512 B",
        path: "/512",
        body: 0,
    },
    Kind {
        name: "GET 64 KiB",
        path: "/65536",
        body: 0,
    },
    Kind {
        name: "POST 16 KiB",
        path: "/512",
        body: 16 << 10,
    },
    Kind {
        name: "cached 512 B",
        path: "/cached/512",
        body: 0,
    },
    Kind {
        name: "cached 64 KiB",
        path: "/cached/65536",
        body: 0,
    },
];

/// 1,000: a tenth of what one core of a proxy can pass.
const MODERATE: Rate = Rate::PerSecond(1000);

impl Proxy {
    /// Measures and prints the table. Fails if a request fails.
    pub(crate) async fn run(&self) -> Fallible<bool> {
        let application = application::start()?;
        let nats = Nats::start(&nats::program(self.nats_server.clone())).await?;
        let recipe = Recipe {
            sidestream: self.sidestream.clone(),
            core: self.cores.server_cpu,
            tls: None,
            log: "warn".to_owned(),
            framing: Framing::Sse,
            compression: None,
            replay: None,
            tokens: None,
            traces: None,
            application: Some(application),
        };
        let sidecar = Server::sidestream(&recipe, nats.url()).await?;
        let (nginx, http2) = Server::nginx_proxy(self.cores.server_cpu, application).await?;
        let running = |server: &Server, http2: Option<SocketAddr>| -> Fallible<Running> {
            let http1 = server.origin().trim_start_matches("http://").parse()?;
            Ok(Running {
                pid: server.pid().ok_or("the proxy has no pid")?,
                http1,
                http2: http2.unwrap_or(http1),
            })
        };
        let proxies = [running(&nginx, Some(http2))?, running(&sidecar, None)?];
        let mut lines = self.lines()?;
        for round in 1..=self.rounds {
            for line in &mut lines {
                self.add_round(line, round, &proxies).await?;
            }
        }
        println!("{}", table(&lines));
        nginx.stop().await?;
        sidecar.stop().await?;
        nats.stop().await?;
        Ok(true)
    }

    fn lines(&self) -> Fallible<Vec<Line>> {
        let mut lines = Vec::new();
        for (protocol, version) in [(Protocol::H1, "h1"), (Protocol::H2, "h2")] {
            for kind in KINDS {
                for (rate, pace) in [(MODERATE, "moderate"), (Rate::Saturated, "saturated")] {
                    let name = format!("{version} {} {pace}", kind.name);
                    let is_chosen = self.only.is_empty()
                        || self.only.iter().any(|part| name.contains(part.as_str()));
                    if is_chosen {
                        lines.push(Line {
                            name,
                            kind,
                            protocol,
                            rate,
                            nginx: Measured::new()?,
                            sidecar: Measured::new()?,
                        });
                    }
                }
            }
        }
        Ok(lines)
    }

    /// Adds a round: the same requests to each proxy.
    async fn add_round(
        &self,
        line: &mut Line,
        round: u16,
        [nginx, sidecar]: &[Running; 2],
    ) -> Fallible<()> {
        let time = Duration::from_millis(self.milliseconds);
        let (kind, protocol, rate) = (line.kind, line.protocol, line.rate);
        let mut pair = [(nginx, &mut line.nginx), (sidecar, &mut line.sidecar)];
        if round.is_multiple_of(2) {
            pair.reverse();
        }
        for (proxy, measured) in pair {
            let address = match protocol {
                Protocol::H1 => proxy.http1,
                Protocol::H2 => proxy.http2,
            };
            let mut clients = Clients::connect(address, protocol, kind).await?;
            let before = Cpu::of(proxy.pid)?;
            let tally = clients.run(rate, time).await?;
            let spent = Cpu::of(proxy.pid)?.since(before).total();
            let cpu = spent.as_secs_f64() * 1e6 / tally.requests as f64;
            measured.cpu.push(cpu);
            measured.tally.add(&tally)?;
        }
        Ok(())
    }
}

impl Measured {
    fn new() -> Fallible<Self> {
        Ok(Self {
            cpu: Vec::new(),
            tally: Tally::new()?,
        })
    }

    fn cpu(&self) -> f64 {
        Spread::of(self.cpu.clone()).map_or(f64::NAN, |spread| spread.median)
    }

    fn latency(&self, quantile: f64) -> f64 {
        self.tally.latency.value_at_quantile(quantile) as f64 / 1000.0
    }
}

fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<26}{:>27}{:>24}{:>16}{:>16}{:>20}\n{:<26}{:>9}{:>9}{:>9}{:>24}{:>8}{:>8}{:>8}{:>8}{:>10}{:>10}\n",
        "",
        "CPU us per request",
        "ratio",
        "p50 ms",
        "p99 ms",
        "requests",
        "",
        "nginx",
        "sidecar",
        "ratio",
        "spread",
        "nginx",
        "sidecar",
        "nginx",
        "sidecar",
        "nginx",
        "sidecar",
    );
    for line in lines {
        let (nginx, sidecar) = (&line.nginx, &line.sidecar);
        let ratios = sidecar.cpu.iter().zip(&nginx.cpu).map(|(own, of)| own / of);
        let Some(ratio) = Spread::of(ratios.collect()) else {
            continue;
        };
        writeln!(
            text,
            "{:<26}{:>9.1}{:>9.1}{:>9.2}{:>24}{:>8.2}{:>8.2}{:>8.2}{:>8.2}{:>10}{:>10}",
            line.name,
            nginx.cpu(),
            sidecar.cpu(),
            ratio.median,
            format!("{:.2}..{:.2}", ratio.low, ratio.high),
            nginx.latency(0.5),
            sidecar.latency(0.5),
            nginx.latency(0.99),
            sidecar.latency(0.99),
            nginx.tally.requests,
            sidecar.tally.requests,
        )
        .ok();
    }
    text
}
