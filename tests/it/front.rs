//! Behind real proxies, pods are drained, restarted and killed, and every client has every event once.

mod crowd;
mod fixture;
mod ledger;
mod publisher;
mod rolling;
mod settings;
