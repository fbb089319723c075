//! Event-loop lag: how late a runtime runs its tasks.
//!
//! A task on each runtime ticks every 100 ms and records how late the tick was. A runtime that does
//! not run at all records nothing, so a reading also counts the time since its last tick. The admin
//! thread reads all probes a few times a second ([`LoopLagProbes::lag`]); `load_level` reacts.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// 100 ms: ten wake-ups per second and runtime cost nothing, and a delay of 250 ms is measured.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// Probes of all runtimes that serve clients. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct LoopLagProbes(Arc<Mutex<Vec<Arc<LoopLagProbe>>>>);

#[derive(Debug)]
struct LoopLagProbe {
    began: Instant,
    /// Last tick, in milliseconds since `began`.
    last_tick: AtomicU64,
    /// Longest delay of a tick since the last reading, in milliseconds.
    late: AtomicU64,
}

impl LoopLagProbes {
    /// Registers a probe and returns its endless task, to be spawned on the measured runtime.
    pub fn run_probe(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let probe = Arc::new(LoopLagProbe {
            began: Instant::now(),
            last_tick: AtomicU64::new(0),
            late: AtomicU64::new(0),
        });
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&probe));
        async move {
            let mut ticks = interval(TICK_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let due = ticks.tick().await.into_std();
                probe.record(Instant::now().saturating_duration_since(due));
            }
        }
    }

    /// Returns the longest delay of any runtime since the last call, including a delay that still
    /// lasts.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let probes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        probes
            .iter()
            .map(|probe| probe.lag())
            .max()
            .unwrap_or_default()
    }
}

impl LoopLagProbe {
    fn record(&self, late: Duration) {
        self.last_tick
            .store(millis(self.began.elapsed()), Ordering::Relaxed);
        self.late.fetch_max(millis(late), Ordering::Relaxed);
    }

    fn lag(&self) -> Duration {
        let silent = self.began.elapsed().saturating_sub(Duration::from_millis(
            self.last_tick.load(Ordering::Relaxed),
        ));
        let late = Duration::from_millis(self.late.swap(0, Ordering::Relaxed));
        late.max(silent.saturating_sub(TICK_EVERY))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_runtime_is_reported_during_the_delay_and_once_afterwards() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let probes = LoopLagProbes::default();
        let (held, hold) = std::sync::mpsc::sync_channel::<()>(0);
        let probe = probes.run_probe();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::spawn(probe);
                tokio::time::sleep(Duration::from_millis(250)).await;
                // A blocking call: the whole runtime waits.
                hold.recv_timeout(Duration::from_secs(30)).unwrap();
                tokio::time::sleep(TICK_EVERY * 3).await;
            });
        });
        let began = Instant::now();
        while probes.lag() < Duration::from_millis(400) {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the lag of a blocked runtime is not reported"
            );
            std::thread::yield_now();
        }
        held.send(()).unwrap();
        thread.join().unwrap();
        assert!(
            probes.lag() >= Duration::from_millis(300),
            "the lag is reported once after its end"
        );
    }
}
