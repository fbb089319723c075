//! The soak: clients come, stall, break off and come back at random, then everything must be as it was before.
//!
//! `cargo bench --bench soak -- --seconds 1800` is the long one; the seed that it prints repeats one.

#![allow(clippy::unwrap_used)] // here a failure is the result

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

/// Connects, stalls, kills and reconnects clients at random against the real sidecar and NATS, and fails when memory,
/// file descriptors, subscriptions, consumers or feeds do not return to where they were.
#[derive(Debug, Parser)]
struct Options {
    /// How long clients come and go after the warm-up; without it nothing is done
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    seconds: Option<u64>,
    /// Which chances are taken [default: another one each time]
    #[arg(long)]
    seed: Option<u64>,
    /// Clients at one time, at most
    #[arg(long, default_value_t = 200)]
    clients: usize,
    /// What cargo adds
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let Some(seconds) = options.seconds else {
        // Also what `cargo bench` and `cargo test --all-targets` come to.
        println!("--seconds tells how long; --help tells the rest");
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
    // In a long soak the warm-up has found out how much memory the process takes at most and keeps.
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

/// Lets clients live at random; all of them are gone when this returns.
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

/// Looks until nobody is connected any more and `wanted` holds, and tells what is there then.
async fn settled(
    sidestream: &Sidestream,
    monitor: u16,
    nats: &Nats,
    wanted: impl Fn(&Census) -> Result<(), String>,
) -> Result<Census, String> {
    let begin = Instant::now();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let census = Census::take(sidestream, monitor, nats).await;
        let problem = census.at_rest().and_then(|()| wanted(&census)).err();
        match problem {
            None => return Ok(census),
            Some(problem) if begin.elapsed() > PATIENCE => {
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

/// As many events as the stream keeps: replays are as long at the beginning as at the end.
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

/// Large enough that clients who do not read are noticed by their full sockets.
fn payload(number: u64) -> String {
    format!(
        "{{\"number\":{number},\"padding\":\"{}\"}}",
        "x".repeat(400)
    )
}

/// 500 events per second over all subjects, from the stream and from core NATS.
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

/// The window is a fifth of what the stream keeps: who comes back from before it is served by replays.
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
/// Twenty seconds of what is published.
const STREAM_EVENTS: u64 = 5_000;
/// The windows are full after four seconds, 1,000 events at 250 a second, and ids of every age are known after twelve.
const WARM_UP_MIN: Duration = Duration::from_secs(15);
/// With 200 clients memory was seen to grow for about a minute, and then no more.
const WARM_UP_MAX: Duration = Duration::from_secs(120);
/// Five in a hundred.
const GROWTH_MAX: f64 = 1.05;
/// Half, where the warm-up was too short to tell more: what a thousand lives would leave behind if each left 16 KiB.
const GROWTH_MAX_BRIEFLY: f64 = 1.5;
/// A minute: a consumer that was lost is removed by NATS after 30 s.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
