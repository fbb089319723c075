//! The machine: its description, the limit of file descriptors, and CPU affinity.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};

use crate::Fallible;

/// Raises the soft limit of file descriptors to the hard limit, and returns it.
///
/// Children inherit it.
pub(crate) fn raise_file_descriptors() -> Fallible<u64> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Runs `act` with this thread pinned to a core, and restores the affinity afterwards.
///
/// Processes started by `act` inherit the core before their first thread exists. Setting their
/// affinity afterwards would be too late for servers that count their cores.
pub(crate) fn on_core<R>(core: Option<usize>, act: impl FnOnce() -> R) -> Fallible<R> {
    let Some(core) = core else { return Ok(act()) };
    let home = sched_getaffinity(None)?;
    pin(core)?;
    let result = act();
    sched_setaffinity(None, &home)?;
    Ok(result)
}

/// Pins this thread to a core, and every thread and process that it starts from now on.
pub(crate) fn pin(core: usize) -> Fallible<()> {
    let mut cores = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(format!("there is no core {core}").into());
    }
    cores.set(core);
    sched_setaffinity(None, &cores).map_err(|error| format!("core {core}: {error}"))?;
    Ok(())
}

/// Returns the first two cores that this thread may run on, or `None` if it has only one.
pub(crate) fn two_cores() -> Fallible<Option<[usize; 2]>> {
    let allowed = sched_getaffinity(None)?;
    let mut cores = (0..CpuSet::MAX_CPU).filter(|core| allowed.is_set(*core));
    Ok(cores
        .next()
        .zip(cores.next())
        .map(|(one, other)| [one, other]))
}

/// Returns the load average of the last one, five and fifteen minutes.
pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(", ")
}

/// Describes the machine: processor, cores, kernel.
pub(crate) fn describe() -> Value {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let processors = read("/proc/cpuinfo");
    let value = |line: &str| {
        line.split_once(':')
            .map(|(_, value)| value.trim().to_owned())
    };
    let model = processors
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(value);
    json!({
        "processor": model,
        "cores": processors.lines().filter(|line| line.starts_with("processor")).count(),
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
    })
}
