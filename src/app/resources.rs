//! Check `resources`: notices that the CPU or memory limit of the running pod has changed.
//!
//! Kubernetes can resize a pod in place. The limits are files of the control group (version 2), which
//! are read every [`INTERVAL`]. The number of shards and `limits.window_bytes` stay as they are: the
//! check is degraded while a restart would start another number of shards, or while the windows no
//! longer fit into the memory limit.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

use crate::feed::Budget;
use crate::lifecycle::health::{Health, Status};
use crate::telemetry::Metrics;

/// 5 s: two reads of files in memory.
const INTERVAL: Duration = Duration::from_secs(5);

/// Environment variable with the folder of the control group, in place of that of the process.
const FOLDER: &str = "SIDESTREAM_CGROUP";

const MOUNT: &str = "/sys/fs/cgroup";

/// Limits of a control group; `None`: without limit, or not known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Limits {
    /// Cores.
    cpu: Option<f64>,
    /// Bytes.
    memory: Option<u64>,
}

/// Resources that the process uses.
struct Used {
    shards: usize,
    cores: usize,
    budget: Arc<Budget>,
}

/// Reads the limits until the runtime ends. `shards`: number of running shards.
pub(super) async fn watch(
    shards: usize,
    budget: Arc<Budget>,
    metrics: Arc<Metrics>,
    health: Health,
) {
    let Some(folder) = folder() else {
        Limits::default().publish(&metrics);
        tracing::debug!("no control group of version 2: changed limits are not noticed");
        return;
    };
    let used = Used {
        shards,
        cores: cores().unwrap_or(shards),
        budget,
    };
    let check = health.degraded("resources", Status::Ok);
    let first = Limits::read(&folder);
    let mut last = first;
    last.publish(&metrics);
    let mut ticks = interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = Limits::read(&folder);
        if now == last {
            continue;
        }
        tracing::info!(
            cpu = now.cpu,
            cpu_before = last.cpu,
            memory = now.memory,
            memory_before = last.memory,
            "limits of the pod changed"
        );
        now.publish(&metrics);
        check.set(now.status(first, &used));
        last = now;
    }
}

impl Limits {
    fn read(folder: &Path) -> Self {
        let text = |file| read_to_string(folder.join(file)).unwrap_or_default();
        Self {
            cpu: parse_cpu(&text("cpu.max")),
            memory: text("memory.max").trim().parse().ok(),
        }
    }

    /// Sets the metrics; 0 is no limit.
    fn publish(self, metrics: &Metrics) {
        let cpu = metrics.cpu_limit_cores.with_label_values::<&str>(&[]);
        cpu.set(self.cpu.unwrap_or(0.0));
        let memory = self.memory.unwrap_or(0);
        let memory = i64::try_from(memory).unwrap_or(i64::MAX);
        metrics.memory_limit_bytes.set(memory);
    }

    fn status(self, first: Self, used: &Used) -> Status {
        let mut reasons = Vec::new();
        let shards = self.shards(used.cores);
        if self.cpu != first.cpu && shards != used.shards {
            reasons.push(format!(
                "the CPU limit has changed: {} shards run, and a restart starts {shards}",
                used.shards
            ));
        }
        let windows = used.budget.max() as u64;
        if self.memory != first.memory
            && let Some(memory) = self.memory.filter(|memory| *memory < windows)
        {
            reasons.push(format!(
                "the memory limit has changed to {memory} bytes, less than `limits.window_bytes` \
                 ({windows}): lower it"
            ));
        }
        if reasons.is_empty() {
            Status::Ok
        } else {
            Status::Degraded(reasons.join("; "))
        }
    }

    /// Returns the number of shards that a start would have, as `available_parallelism` counts.
    fn shards(self, cores: usize) -> usize {
        let limit = self.cpu.map_or(cores, |cpu| cpu as usize);
        limit.clamp(1, cores.max(1))
    }
}

/// Parses `cpu.max`: quota and period in microseconds.
fn parse_cpu(text: &str) -> Option<f64> {
    let (quota, period) = text.trim().split_once(' ')?;
    let (quota, period): (f64, f64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0.0).then_some(quota / period)
}

/// Returns the folder of the control group of this process.
fn folder() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = Path::new(MOUNT).join(group);
    // A container without a namespace of its own has its group at the mount point.
    let folders = [own, MOUNT.into()];
    folders
        .into_iter()
        .find(|folder| folder.join("memory.max").exists() || folder.join("cpu.max").exists())
}

/// Returns the number of cores that this process may run on.
fn cores() -> Option<usize> {
    let status = read_to_string("/proc/self/status").ok()?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed:"))?;
    let bits = mask.trim().chars().filter_map(|digit| digit.to_digit(16));
    Some(bits.map(|digit| digit.count_ones() as usize).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_limit_is_quota_by_period() {
        assert_eq!(parse_cpu("150000 100000\n"), Some(1.5));
        for text in ["max 100000\n", "", "1", "1 0"] {
            assert_eq!(parse_cpu(text), None, "{text}");
        }
    }

    #[test]
    fn shards_of_a_limit_are_those_of_a_start() {
        let shards = |cpu| Limits { cpu, memory: None }.shards(4);
        assert_eq!(shards(None), 4);
        assert_eq!(shards(Some(0.5)), 1);
        assert_eq!(shards(Some(2.9)), 2);
        assert_eq!(shards(Some(64.0)), 4);
    }
}
