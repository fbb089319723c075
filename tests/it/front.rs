//! Pods behind real proxies: drains, restarts and crashes, and every client receives every event
//! once.

mod crowd;
mod fixture;
mod ledger;
mod publisher;
mod rolling;
mod settings;
