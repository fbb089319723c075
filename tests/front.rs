//! Behind real proxies, pods are drained, restarted and killed, and every client has every event once.

#![allow(clippy::unwrap_used)] // here a failure is the result

mod support;

#[path = "front/crowd.rs"]
mod crowd;
#[path = "front/ledger.rs"]
mod ledger;
#[path = "front/publisher.rs"]
mod publisher;
#[path = "front/rolling.rs"]
mod rolling;
#[path = "front/settings.rs"]
mod settings;
#[path = "front/stage.rs"]
mod stage;

use std::time::Duration;

/// 30 s: what a restart and the replays after it may take on a busy machine.
const RECOVERY: Duration = Duration::from_secs(30);
