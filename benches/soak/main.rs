//! The soak: random clients for a long time, then no resource may have leaked.
//!
//! Up to 200 clients connect, read, stall, disconnect and resume at random against the real sidecar
//! and a real nats-server. A warm-up comes first, because windows and the allocator fill up. After
//! it, and again at the end, the soak waits until all clients are disconnected and counts resources
//! ([`census`]): memory, file descriptors, threads, connections, feeds, subscriptions, consumers.
//! The second count must not be higher than the first one.
//!
//! `make soak` runs half an hour; `make test` runs 20 seconds. `--seed` repeats a run.

#![allow(clippy::unwrap_used)] // a failure is the result

mod census;
mod lives;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use clap::Parser;
use tokio::task::JoinSet;

use census::Census;
use lives::{Life, Place};
use testkit::nats::{Nats, free_port};
use testkit::sidestream::{Sidestream, config};

/// Connects, stalls, kills and reconnects clients at random against the real sidecar and NATS.
/// Fails if memory, file descriptors, subscriptions, consumers or feeds do not return to their
/// earlier values.
#[derive(Debug, Parser)]
struct Options {
    /// Duration after the warm-up; without it the soak does nothing
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Seed of the random choices [default: a random one]
    #[arg(long)]
    seed: Option<u64>,
    /// Maximum number of clients at one time
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// Added by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(seconds) = options.seconds else {
        // `cargo bench` and `cargo test --all-targets` run this.
        println!("nothing to do without --seconds; see --help");
        return ExitCode::SUCCESS;
    };
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    println!(
        "soak of {seconds} s with {} clients, --seed {seed}",
        options.clients
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    match runtime.block_on(soak(Duration::from_secs(seconds), options.clients, seed)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("soak: {problem}");
            ExitCode::FAILURE
        }
    }
}

async fn soak(length: Duration, clients: usize, seed: u64) -> Result<(), String> {
    let monitor = free_port();
    let nats = Nats::builder()
        .config(&format!("http: \"127.0.0.1:{monitor}\""))
        .start()
        .await;
    make_stream(&nats).await;
    fill_stream(&nats).await;
    let sidestream = Sidestream::start(config(&nats, ROUTES)).await;
    let publisher = tokio::spawn(publish(nats.client().await));
    let place = Arc::new(Place::new(&sidestream));
    let mut random = fastrand::Rng::with_seed(seed);

    let warm_up = length.clamp(WARM_UP_MIN, WARM_UP_MAX);
    let lived = live(&place, &mut random, clients, warm_up).await;
    let before = settled(&sidestream, monitor, &nats, |_| Ok(())).await?;
    println!(
        "after a warm-up of {} s, {lived}: {before}",
        warm_up.as_secs()
    );

    let lived = live(&place, &mut random, clients, length).await;
    // In a long soak, the process reaches its maximum memory during the warm-up, and keeps it.
    let growth = if length > WARM_UP_MAX {
        GROWTH_MAX
    } else {
        GROWTH_MAX_BRIEFLY
    };
    let wanted = |after: &Census| {
        after
            .counts_as(&before)
            .and_then(|()| after.memory_as(&before, growth))
    };
    let after = settled(&sidestream, monitor, &nats, wanted).await?;
    println!("after {} s more, {lived}: {after}", length.as_secs());
    publisher.abort();
    place.every_kind_was_served()
}

/// Runs random clients for `length`. Returns after all of them are disconnected.
async fn live(
    place: &Arc<Place>,
    random: &mut fastrand::Rng,
    clients: usize,
    length: Duration,
) -> String {
    let (begin, mut lives, mut counts) = (Instant::now(), JoinSet::new(), [0_u64; Life::KINDS]);
    while begin.elapsed() < length {
        if lives.len() < clients {
            let life = Life::random(random);
            counts[life.kind()] += 1;
            lives.spawn(life.live(Arc::clone(place), random.fork()));
        }
        while lives.try_join_next().is_some() {}
        tokio::time::sleep(Duration::from_millis(random.u64(1..10))).await;
    }
    lives.shutdown().await;
    let mut text = String::new();
    for (kind, count) in counts.iter().enumerate() {
        write!(
            text,
            "{}{count} {}",
            if kind > 0 { ", " } else { "" },
            Life::NAMES[kind]
        )
        .ok();
    }
    text
}

/// Waits until all clients are disconnected and `wanted` holds, and returns the counts.
async fn settled(
    sidestream: &Sidestream,
    monitor: u16,
    nats: &Nats,
    wanted: impl Fn(&Census) -> Result<(), String>,
) -> Result<Census, String> {
    let begin = Instant::now();
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        let census = Census::take(sidestream, monitor, nats).await;
        let problem = census.at_rest().and_then(|()| wanted(&census)).err();
        match problem {
            None => return Ok(census),
            Some(problem) if begin.elapsed() > TIMEOUT => {
                return Err(format!("{problem}; {census}"));
            }
            Some(_) => {}
        }
    }
}

async fn make_stream(nats: &Nats) {
    let config = stream::Config {
        name: "SOAK".to_owned(),
        subjects: vec!["soak.>".to_owned()],
        max_messages: STREAM_EVENTS as i64,
        storage: stream::StorageType::Memory,
        ..stream::Config::default()
    };
    jetstream::new(nats.client().await)
        .create_stream(config)
        .await
        .unwrap();
}

/// Fills the stream, so that replays are as long at the beginning as at the end.
async fn fill_stream(nats: &Nats) {
    let jetstream = nats.jetstream().await;
    for number in 0..STREAM_EVENTS {
        let subject = format!("soak.{}", number % lives::SUBJECTS);
        jetstream
            .publish(subject, payload(number).into())
            .await
            .unwrap()
            .await
            .unwrap();
    }
}

/// Returns a payload large enough to fill the sockets of clients that do not read.
fn payload(number: u64) -> String {
    format!(
        "{{\"number\":{number},\"padding\":\"{}\"}}",
        "x".repeat(400)
    )
}

/// Publishes 500 events per second over all subjects, to the stream and to core NATS.
async fn publish(client: async_nats::Client) {
    let mut pace = tokio::time::interval(Duration::from_millis(20));
    for number in 0_u64.. {
        if number % 10 == 0 {
            pace.tick().await;
        }
        let subject = match number % 2 {
            0 => format!("soak.{}", number / 2 % lives::SUBJECTS),
            _ => format!("live.{}", number / 2 % lives::SUBJECTS),
        };
        client
            .publish(subject, payload(number).into())
            .await
            .unwrap();
    }
}

/// Two routes. The window is a fifth of the stream, so that older ids are served by replays.
const ROUTES: &str = "routes:
  - path: /stream/{n}
    sources: [{ stream: SOAK, subjects: [\"soak.{n}\"] }]
    heartbeat: 1s
    window: { events: 1000, bytes: 4MiB, age: 1h }
  - path: /live/{n}
    sources: [{ subjects: [\"live.{n}\"] }]
    heartbeat: 1s
    window: { events: 20, bytes: 1MiB, age: 1h }
";
/// Messages in the stream: those of twenty seconds.
const STREAM_EVENTS: u64 = 5_000;
/// 15 s: windows are full after four seconds (1,000 events at 250 a second), and ids of every age
/// are stored after twelve.
const WARM_UP_MIN: Duration = Duration::from_secs(15);
/// 2 min: with 200 clients, memory grew for about a minute.
const WARM_UP_MAX: Duration = Duration::from_secs(120);
/// 5 %.
const GROWTH_MAX: f64 = 1.05;
/// 50 % after a short warm-up: a thousand clients that each leak 16 KiB exceed it.
const GROWTH_MAX_BRIEFLY: f64 = 1.5;
/// 1 min: NATS removes an orphaned consumer after 30 s.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(250);
