//! Compares the saturation of a sidecar with one shard and with two.
//!
//! A machine with two cores has none left for clients when the sidecar has both. The clients of
//! this comparison are therefore sinks: the kernel discards what arrives (`MSG_TRUNC`), and one
//! thread visits all of them fifty times per second. Sinks, publisher and nats-server still take
//! from the two cores what the column *other cores* has. The last column is therefore free of it:
//! deliveries per second and used core, times the number of shards.
//!
//! ```text
//! rate x 1.25 -> publish for two seconds -> all delivered within a second (metrics)? -> next rate
//! ```

mod sinks;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Fallible;
use crate::publisher::{Outlet, Publisher, Work};
use crate::stage::machine;
use crate::stage::nats::{self, Nats};
use crate::stage::process::Cpu;
use crate::stage::recipe::Recipe;
use crate::stage::server::Server;
use crate::stage::sidecar::Source;
use crate::wire::body::Framing;
use crate::wire::stamp::Content;
use sinks::Sinks;

/// Options of the comparison.
#[derive(Args, Debug)]
pub(crate) struct Shards {
    /// sidestream binary to measure
    #[arg(long, default_value = env!("CARGO_BIN_EXE_sidestream"), hide_default_value = true)]
    sidestream: PathBuf,
    /// Rounds; the report has each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Clients, all on one subject
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    clients: u16,
    /// Events per second in the first step
    #[arg(long, default_value_t = 8000.0)]
    rate: f64,
    /// Bytes of each payload
    #[arg(long, default_value_t = 128)]
    size: usize,
    /// nats-server to start [default: the one in .tools, else in PATH]
    #[arg(long)]
    nats_server: Option<PathBuf>,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Last step without lag.
#[derive(Clone, Copy, Default)]
struct Best {
    per_second: f64,
    /// Cores that the sidecar used.
    busy: f64,
    /// Cores that sinks, publisher and nats-server used.
    load: f64,
}

impl Shards {
    /// Measures and prints the table.
    pub(crate) async fn run(&self) -> Fallible<bool> {
        let [one, _] = machine::two_cores()?.ok_or("the comparison needs two cores")?;
        println!(
            "{:<8}{:>16}{:>8}{:>8}{:>12}{:>22}{:>14}",
            "shards",
            "deliveries/s",
            "ratio",
            "cores",
            "other cores",
            "deliveries/s per core",
            "x cores, ratio"
        );
        for round in 0..self.rounds {
            let mut results = [Best::default(); 2];
            for index in [usize::from(round % 2), usize::from(1 - round % 2)] {
                results[index] = self.saturation([Some(one), None][index]).await?;
            }
            let per_core = |best: &Best| best.per_second / best.busy;
            for (shards, best) in (1..).zip(&results) {
                println!(
                    "{shards:<8}{:>16.0}{:>8.2}{:>8.2}{:>12.2}{:>22.0}{:>14.2}",
                    best.per_second,
                    best.per_second / results[0].per_second,
                    best.busy,
                    best.load,
                    per_core(best),
                    f64::from(shards) * per_core(best) / per_core(&results[0]),
                );
            }
        }
        Ok(true)
    }

    /// Returns the saturation of a sidecar on this core, or on all.
    async fn saturation(&self, core: Option<usize>) -> Fallible<Best> {
        let nats = Nats::start(&nats::program(self.nats_server.clone())).await?;
        let recipe = Recipe {
            sidestream: self.sidestream.clone(),
            core,
            tls: None,
            log: "warn".to_owned(),
            framing: Framing::Sse,
            compression: None,
            replay: None,
            tokens: None,
            traces: None,
            application: None,
        };
        let server = Server::sidestream(&recipe, nats.url()).await?;
        let (path, subject) = Source::Core.route(1);
        let address: SocketAddr = server.origin().trim_start_matches("http://").parse()?;
        let sinks = Sinks::open(address, path, usize::from(self.clients))?;
        let publisher = Publisher::start(Work {
            outlet: Outlet::Nats {
                url: nats.url().to_owned(),
                subject: subject.to_owned(),
            },
            groups: 1,
            size: self.size,
            payload: Content::Padding,
            burst: 1,
        });
        let mut publisher = publisher.await?;
        let (mut best, mut rate, mut tries) = (Best::default(), self.rate, TRIES);
        while tries > 0 && rate < RATE_MAX {
            match self.step(&server, nats.pid(), &mut publisher, rate).await? {
                Some(step) => {
                    (best, tries) = (step, TRIES);
                    rate *= RAISE;
                }
                None => tries -= 1,
            }
        }
        drop(sinks);
        server.stop().await?;
        nats.stop().await?;
        if best.per_second == 0.0 {
            return Err("the clients lag in the first step: begin with a lower --rate".into());
        }
        Ok(best)
    }

    /// Publishes at this rate. `None` if the sidecar lags.
    async fn step(
        &self,
        server: &Server,
        nats: Option<u32>,
        publisher: &mut Publisher,
        rate: f64,
    ) -> Fallible<Option<Best>> {
        let pid = server.pid().ok_or("the sidecar has no pid")?;
        let admin = server.admin().ok_or("the sidecar has no admin port")?;
        let spent =
            |own: Cpu, load: Cpu, nats_cpu: Option<Cpu>| -> Fallible<(Duration, Duration)> {
                let mut others = Cpu::of(std::process::id())?.since(load).total();
                if let Some((pid, before)) = nats.zip(nats_cpu) {
                    others += Cpu::of(pid)?.since(before).total();
                }
                Ok((Cpu::of(pid)?.since(own).total(), others))
            };
        let before = delivered(admin).await?;
        let own = Cpu::of(pid)?;
        let load = Cpu::of(std::process::id())?;
        let nats_cpu = nats.map(Cpu::of).transpose()?;
        let begin = Instant::now();
        let events = (rate * SECONDS).ceil() as u64;
        let published = publisher.publish(events, rate).await?;
        let deadline = Instant::now() + LAG_MAX;
        let expected = events * u64::from(self.clients);
        let mut all = 0;
        while all < expected && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
            all = delivered(admin).await? - before;
        }
        let elapsed = begin.elapsed();
        if all < expected || published.late_max > LAG_MAX {
            // The rest must not count for the next step.
            tokio::time::sleep(2 * LAG_MAX).await;
            return Ok(None);
        }
        let (own, others) = spent(own, load, nats_cpu)?;
        let seconds = elapsed.as_secs_f64();
        Ok(Some(Best {
            per_second: all as f64 / seconds,
            busy: own.as_secs_f64() / seconds,
            load: others.as_secs_f64() / seconds,
        }))
    }
}

/// Returns the number of delivered events from the metrics.
async fn delivered(admin: SocketAddr) -> Fallible<u64> {
    let text = metrics(admin).await?;
    let counts = text
        .lines()
        .filter(|line| line.starts_with("sidestream_events_delivered_total{"))
        .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(counts.sum::<f64>() as u64)
}

async fn metrics(admin: SocketAddr) -> Fallible<String> {
    let mut socket = TcpStream::connect(admin).await?;
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {admin}\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    socket.read_to_string(&mut text).await?;
    Ok(text)
}

/// A second, as in the scenario *saturate*.
const LAG_MAX: Duration = Duration::from_secs(1);
/// Duration of a step.
const SECONDS: f64 = 2.0;
/// Factor from step to step.
const RAISE: f64 = 1.15;
/// On a busy machine a step may fail although the sidecar is fast enough.
const TRIES: usize = 2;
/// More events than the publisher can send.
const RATE_MAX: f64 = 200_000.0;
