//! What the kernel says about a process: its processor time and its resident memory.

use std::fs::read_to_string;
use std::time::Duration;

use crate::Fallible;

/// Processor time of a process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// All of it, from the scheduler: exact to the nanosecond.
    total: Duration,
    /// In user code and in the kernel, in clock ticks: only good for the proportion.
    user_ticks: u64,
    system_ticks: u64,
}

/// Processor time that was spent between two looks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// In user code.
    pub(crate) user: Duration,
    /// In the kernel, on behalf of the process.
    pub(crate) system: Duration,
}

impl Cpu {
    /// Looks at a process.
    pub(crate) fn of(pid: u32) -> Fallible<Self> {
        let stat = read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in brackets may hold blanks; behind it the numbering of proc(5) goes on with field 3.
        let fields: Vec<&str> = stat
            .rsplit_once(") ")
            .map_or("", |(_, rest)| rest)
            .split(' ')
            .collect();
        let field = |number: usize| fields.get(number - 3).and_then(|field| field.parse().ok());
        let (user_ticks, system_ticks) = field(14)
            .zip(field(15))
            .ok_or("/proc/<pid>/stat has no times")?;
        Ok(Self {
            total: running_time(pid)?,
            user_ticks,
            system_ticks,
        })
    }

    /// What was spent since an earlier look at the same process.
    pub(crate) fn since(self, earlier: Self) -> Spent {
        let total = self.total.saturating_sub(earlier.total);
        let user = self.user_ticks.saturating_sub(earlier.user_ticks) as f64;
        let system = self.system_ticks.saturating_sub(earlier.system_ticks) as f64;
        let share = if user + system > 0.0 {
            user / (user + system)
        } else {
            0.0
        };
        let user = total.mul_f64(share);
        Spent {
            user,
            system: total.saturating_sub(user),
        }
    }
}

impl Spent {
    /// User and kernel together.
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }
}

/// The time on a processor of all threads that are alive: servers do not end threads while they serve.
fn running_time(pid: u32) -> Fallible<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may be gone by now.
        let schedule = read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += schedule
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Resident memory in bytes. `smaps_rollup` counts pages; `VmRSS`, where that is not readable, may lag behind by some.
pub(crate) fn resident_bytes(pid: u32) -> Fallible<u64> {
    let rollup = read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .ok()
        .and_then(|text| kilobytes(&text, "Rss:"));
    let kilobytes = match rollup {
        Some(kilobytes) => kilobytes,
        None => {
            let status = read_to_string(format!("/proc/{pid}/status"))?;
            kilobytes(&status, "VmRSS:").ok_or("/proc/<pid>/status has no VmRSS")?
        }
    };
    Ok(kilobytes * 1024)
}

/// Lets the peak of a process's resident memory begin anew at what it is now (proc(5), `clear_refs`).
pub(crate) fn forget_peak(pid: u32) -> Fallible<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// The most resident memory that a process had since [`forget_peak`], in bytes.
pub(crate) fn peak_bytes(pid: u32) -> Fallible<u64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    Ok(kilobytes(&status, "VmHWM:").ok_or("/proc/<pid>/status has no VmHWM")? * 1024)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
