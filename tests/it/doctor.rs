//! `sidestream doctor` through real proxies: planted faults are named, and healthy paths have none.

mod fixture;
mod healthy;
mod planted;
mod without_probes;
