//! How late a runtime is: what it was to do at a time, and when it did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// 100 ms: ten wake-ups a second and runtime cost nothing, and a hold-up of a quarter of a second is seen.
const TICK_EVERY: Duration = Duration::from_millis(100);

/// The probes of all runtimes that serve clients.
#[derive(Clone, Debug, Default)]
pub struct LoopLagProbes(Arc<Mutex<Vec<Arc<LoopLagProbe>>>>);

#[derive(Debug)]
struct LoopLagProbe {
    began: Instant,
    /// Milliseconds since it began at which it beat last.
    last_tick: AtomicU64,
    /// The longest delay of a beat since it was asked last, in milliseconds.
    late: AtomicU64,
}

impl LoopLagProbes {
    /// Beats for ever; to be spawned on the runtime that is looked at.
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

    /// The longest delay of any since this was asked last, one that still lasts included.
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
    fn a_runtime_that_is_held_up_is_late_while_it_is_and_once_afterwards() {
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
                // Not an await: the whole runtime waits.
                hold.recv_timeout(Duration::from_secs(30)).unwrap();
                tokio::time::sleep(TICK_EVERY * 3).await;
            });
        });
        let began = Instant::now();
        while probes.lag() < Duration::from_millis(400) {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the hold-up is not seen"
            );
            std::thread::yield_now();
        }
        held.send(()).unwrap();
        thread.join().unwrap();
        assert!(
            probes.lag() >= Duration::from_millis(300),
            "and it is known when it is over"
        );
    }
}
