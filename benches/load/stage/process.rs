//! Processor time and resident memory of a process, from `/proc`.

use std::fs::read_to_string;
use std::time::Duration;

use crate::Fallible;

/// Processor time of a process since its start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cpu {
    /// User and kernel time from the scheduler: exact to the nanosecond.
    total: Duration,
    /// User and kernel time in clock ticks: precise enough only for the proportion.
    user_ticks: u64,
    system_ticks: u64,
}

/// Processor time between two readings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spent {
    /// Time in user code.
    pub(crate) user: Duration,
    /// Time in the kernel for the process.
    pub(crate) system: Duration,
}

impl Cpu {
    /// Reads the times of a process.
    pub(crate) fn of(pid: u32) -> Fallible<Self> {
        let stat = read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may contain spaces; field 3 of proc(5) follows it.
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

    /// Returns the time since an earlier reading of the same process.
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
    /// Returns the sum of user and kernel time.
    pub(crate) fn total(self) -> Duration {
        self.user + self.system
    }
}

/// Returns the processor time of all threads that exist: servers end no threads while they serve.
fn running_time(pid: u32) -> Fallible<Duration> {
    let mut nanoseconds = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        // The thread may have ended.
        let schedule = read_to_string(task?.path().join("schedstat")).unwrap_or_default();
        nanoseconds += schedule
            .split(' ')
            .next()
            .and_then(|field| field.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Returns the resident memory in bytes.
///
/// `smaps_rollup` counts pages. `VmRSS` is the fallback and may lag by a few pages.
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

/// Resets the peak of the resident memory to its current value (proc(5), `clear_refs`).
pub(crate) fn reset_peak(pid: u32) -> Fallible<()> {
    Ok(std::fs::write(format!("/proc/{pid}/clear_refs"), "5")?)
}

/// Returns the peak of the resident memory since [`reset_peak`], in bytes.
pub(crate) fn peak_bytes(pid: u32) -> Fallible<u64> {
    let status = read_to_string(format!("/proc/{pid}/status"))?;
    Ok(kilobytes(&status, "VmHWM:").ok_or("/proc/<pid>/status has no VmHWM")? * 1024)
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}
