//! Rolling restarts and crashes with real proxies in front: every client receives every event
//! once.

mod crowd;
pub(crate) mod fixture;
mod ledger;
mod publisher;
mod rolling;
mod settings;
