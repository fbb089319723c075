//! A seeded simulation of the feed core: a source, pods and clients by chance, every reading held against a model.

#![allow(clippy::unwrap_used)] // here a failure is the result

mod client;
mod core;
mod courier;
mod items;
mod pod;
mod source;
mod threads;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::World;

/// A few hundred worlds in about a second.
const SEEDS: u64 = 250;

/// What `make simulate` runs.
const SEEDS_MANY: u64 = 100_000;

/// Runs a world in paused time; everything in it follows from the seed.
fn run(seed: u64, world: impl Future<Output = ()>) {
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(world);
}

fn steps(seed: u64) -> usize {
    fastrand::Rng::with_seed(seed).usize(50..300)
}

fn shared(seed: u64) {
    run(seed, async {
        let mut world = World::new(seed);
        for _ in 0..steps(seed) {
            world.step().await;
        }
        world.end().await;
    });
}

fn on_demand(seed: u64) {
    run(seed, async {
        let mut world = core::World::new(seed);
        for _ in 0..steps(seed) {
            world.step().await;
        }
        world.end().await;
    });
}

/// Runs the seed of the environment, or these; the first that fails says how to run it again.
fn simulate(name: &str, seeds: std::ops::Range<u64>, run: fn(u64)) {
    if let Ok(seed) = std::env::var("SEED") {
        return run(seed.parse().expect("SEED is a number"));
    }
    for seed in seeds {
        if catch_unwind(AssertUnwindSafe(|| run(seed))).is_err() {
            panic!("seed {seed} fails; again: SEED={seed} cargo test --test simulation {name}");
        }
    }
}

#[test]
fn readers_of_a_log_get_every_event_once_or_are_told() {
    simulate("readers_of_a_log", 0..SEEDS, shared);
}

#[test]
fn readers_of_core_subjects_get_every_event_once_or_are_told() {
    simulate("readers_of_core", 0..SEEDS, on_demand);
}

#[test]
#[ignore = "takes minutes"]
fn many_worlds_of_readers_of_core_subjects() {
    simulate("readers_of_core", 0..SEEDS_MANY, on_demand);
}

#[test]
#[ignore = "takes minutes"]
fn many_worlds_of_readers_of_a_log() {
    simulate("readers_of_a_log", 0..SEEDS_MANY, shared);
}
