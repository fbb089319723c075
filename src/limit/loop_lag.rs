//! How late a runtime is: what it was to do at a time, and when it did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};

/// 100 ms: ten wake-ups a second and runtime cost nothing, and a hold-up of a quarter of a second is seen.
const BEAT_EVERY: Duration = Duration::from_millis(100);

/// The pulses of all runtimes that serve clients.
#[derive(Clone, Debug, Default)]
pub struct LoopLagProbes(Arc<Mutex<Vec<Arc<LoopLagProbe>>>>);

#[derive(Debug)]
struct LoopLagProbe {
    began: Instant,
    /// Milliseconds since it began at which it beat last.
    beat: AtomicU64,
    /// The longest delay of a beat since it was asked last, in milliseconds.
    late: AtomicU64,
}

impl LoopLagProbes {
    /// Beats for ever; to be spawned on the runtime that is looked at.
    pub fn beat(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let pulse = Arc::new(LoopLagProbe {
            began: Instant::now(),
            beat: AtomicU64::new(0),
            late: AtomicU64::new(0),
        });
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::clone(&pulse));
        async move {
            let mut ticks = interval(BEAT_EVERY);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let due = ticks.tick().await.into_std();
                pulse.beaten(Instant::now().saturating_duration_since(due));
            }
        }
    }

    /// The longest delay of any since this was asked last, one that still lasts included.
    #[must_use]
    pub fn lag(&self) -> Duration {
        let pulses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pulses
            .iter()
            .map(|pulse| pulse.lag())
            .max()
            .unwrap_or_default()
    }
}

impl LoopLagProbe {
    fn beaten(&self, late: Duration) {
        self.beat
            .store(millis(self.began.elapsed()), Ordering::Relaxed);
        self.late.fetch_max(millis(late), Ordering::Relaxed);
    }

    fn lag(&self) -> Duration {
        let silent = self
            .began
            .elapsed()
            .saturating_sub(Duration::from_millis(self.beat.load(Ordering::Relaxed)));
        let late = Duration::from_millis(self.late.swap(0, Ordering::Relaxed));
        late.max(silent.saturating_sub(BEAT_EVERY))
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
        let pulses = LoopLagProbes::default();
        let (held, hold) = std::sync::mpsc::sync_channel::<()>(0);
        let beat = pulses.beat();
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::spawn(beat);
                tokio::time::sleep(Duration::from_millis(250)).await;
                // Not an await: the whole runtime waits.
                hold.recv_timeout(Duration::from_secs(30)).unwrap();
                tokio::time::sleep(BEAT_EVERY * 3).await;
            });
        });
        let began = Instant::now();
        while pulses.lag() < Duration::from_millis(400) {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "the hold-up is not seen"
            );
            std::thread::yield_now();
        }
        held.send(()).unwrap();
        thread.join().unwrap();
        assert!(
            pulses.lag() >= Duration::from_millis(300),
            "and it is known when it is over"
        );
    }
}
