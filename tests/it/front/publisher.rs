//! Publisher of 500 events per second to three JetStream streams, numbered in each stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::interval;

use testkit::nats::Nats;
use testkit::wait::{RECOVERY, eventually};

/// JetStream streams; the subjects are `a.SHARE`, `b.SHARE`, `c.SHARE`.
pub(crate) const STREAMS: [&str; 3] = ["a", "b", "c"];

/// Number of shares: number `n` has the subject of share `n % SHARES`.
pub(crate) const SHARES: u64 = 10;

/// Count of numbers in each JetStream stream.
pub(crate) type Published = [u64; STREAMS.len()];

/// Events per second in all streams together.
const RATE: u64 = 500;

/// 100 ms: events are published in bursts, so that 300 clients do not need 300 system calls per
/// event.
const BURST: Duration = Duration::from_millis(100);

/// Running publisher.
pub(crate) struct Publisher {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Published>,
}

impl Publisher {
    /// Starts publishing.
    pub(crate) async fn start(nats: &Nats) -> Self {
        let (client, jetstream) = (nats.client().await, nats.jetstream().await);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut published = Published::default();
            let mut burst = interval(BURST);
            let mut turn = 0;
            while !stopped.load(Ordering::Relaxed) {
                burst.tick().await;
                for _ in 0..RATE * u64::try_from(BURST.as_millis()).unwrap() / 1000 {
                    let (name, number) = (STREAMS[turn], published[turn]);
                    let subject = format!("{name}.{}", number % SHARES);
                    client
                        .publish(subject, format!("{name} {number}").into())
                        .await
                        .unwrap();
                    published[turn] += 1;
                    turn = (turn + 1) % STREAMS.len();
                }
            }
            client.flush().await.unwrap();
            for (name, count) in STREAMS.iter().zip(published) {
                let stream = jetstream.get_stream(name.to_uppercase()).await.unwrap();
                eventually(RECOVERY, "all numbers are stored", || async {
                    stream.get_info().await.unwrap().state.messages == count
                })
                .await;
            }
            published
        });
        Self { stop, task }
    }

    /// Stops; returns the number of events once all of them are stored.
    pub(crate) async fn stop(self) -> Published {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}
