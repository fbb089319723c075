//! The publisher: a thread of its own that sends stamped events to NATS at a given rate.

use std::time::Duration;

use async_nats::{Client, Subject};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Fallible;
use crate::wire::stamp::{Stamp, now};

/// What is published.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// The NATS server.
    pub(crate) nats: String,
    /// The subject; `{n}` stands for its number.
    pub(crate) subject: String,
    /// How many subjects; events go to them in turn.
    pub(crate) groups: usize,
    /// Payload size in bytes, padding included.
    pub(crate) size: usize,
}

/// What a burst of events came to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// How many events.
    pub(crate) events: u64,
    /// How late the latest one left, measured against the rate. Latencies begin when an event leaves, so lateness is not in them.
    pub(crate) late_max: Duration,
}

/// The handle of the publishing thread, which ends when it is dropped.
pub(crate) struct Publisher {
    orders: mpsc::Sender<Order>,
    published: u64,
}

struct Order {
    events: u64,
    /// Events per second; infinite for as fast as possible.
    rate: f64,
    done: oneshot::Sender<Fallible<Published>>,
}

impl Publisher {
    /// Connects to NATS and waits until that has happened.
    pub(crate) async fn start(work: Work) -> Fallible<Self> {
        let (orders, inbox) = mpsc::channel(1);
        let (ready, connected) = oneshot::channel();
        // A thread of its own: the clients keep theirs busy for milliseconds, and an event must leave when it is due.
        std::thread::Builder::new().name("publisher".to_owned()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(serve(work, inbox, ready)),
                Err(error) => drop(ready.send(Err(error.into()))),
            }
        })?;
        connected.await??;
        Ok(Self { orders, published: 0 })
    }

    /// How many events were published since the start.
    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Publishes `events` at `rate` per second and returns when the last has left.
    pub(crate) async fn publish(&mut self, events: u64, rate: f64) -> Fallible<Published> {
        let (done, result) = oneshot::channel();
        self.orders.send(Order { events, rate, done }).await.map_err(|_| "the publisher is gone")?;
        let published = result.await??;
        self.published += published.events;
        Ok(published)
    }
}

async fn serve(work: Work, mut inbox: mpsc::Receiver<Order>, ready: oneshot::Sender<Fallible<()>>) {
    let client = match async_nats::connect(&work.nats).await {
        Ok(client) => client,
        Err(error) => return drop(ready.send(Err(format!("{}: {error}", work.nats).into()))),
    };
    let mut source = Source::new(client, &work);
    drop(ready.send(Ok(())));
    while let Some(order) = inbox.recv().await {
        let result = source.send(order.events, order.rate).await;
        drop(order.done.send(result));
    }
}

struct Source {
    client: Client,
    subjects: Vec<Subject>,
    sent: u64,
    size: usize,
}

impl Source {
    fn new(client: Client, work: &Work) -> Self {
        let subjects = (0..work.groups).map(|n| Subject::from(work.subject.replace("{n}", &n.to_string()))).collect();
        Self { client, subjects, sent: 0, size: work.size }
    }

    async fn send(&mut self, events: u64, rate: f64) -> Fallible<Published> {
        let begin = Instant::now();
        let mut late_max = Duration::ZERO;
        for index in 0..events {
            let due = begin + Duration::from_secs_f64(index as f64 / rate);
            if Instant::now() < due {
                // The clock of the runtime has a millisecond: at more than 1,000 per second the events leave in small groups.
                tokio::time::sleep_until(due).await;
            }
            if rate.is_finite() {
                late_max = late_max.max(due.elapsed());
            }
            self.send_one().await?;
        }
        self.client.flush().await?;
        Ok(Published { events, late_max })
    }

    async fn send_one(&mut self) -> Fallible<()> {
        let groups = self.subjects.len() as u64;
        let group = usize::try_from(self.sent % groups)?;
        let stamp = Stamp { sent: now(), sequence: self.sent / groups + 1 };
        self.client.publish(self.subjects[group].clone(), stamp.payload(self.size).into()).await?;
        self.sent += 1;
        Ok(())
    }
}
