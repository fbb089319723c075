//! The publisher: a thread that sends events at a given rate.
//!
//! Every event carries a [`Stamp`] with the time and its number within its subject. Events go to
//! the subjects in turn, through NATS, or as HTTP requests to servers that do not read from NATS.
//! The thread has its own runtime, because clients keep theirs busy for milliseconds, and an event
//! must leave on time.

mod posts;

use std::net::SocketAddr;
use std::time::Duration;

use async_nats::{Client, Subject};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::Fallible;
use crate::wire::stamp::{Content, Stamp, now};
use posts::Posts;

/// Parameters of the publisher.
#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// Destination.
    pub(crate) outlet: Outlet,
    /// Number of subjects; events go to them in turn.
    pub(crate) groups: usize,
    /// Payload size in bytes, padding included.
    pub(crate) size: usize,
    /// Content of each payload.
    pub(crate) payload: Content,
    /// Events that are published together.
    pub(crate) burst: u64,
}

/// Destination of events; `{n}` is replaced by the number of the subject.
#[derive(Clone, Debug)]
pub(crate) enum Outlet {
    /// A NATS server.
    Nats {
        /// URL of the server.
        url: String,
        /// Subject to publish to.
        subject: String,
    },
    /// A server that accepts events over HTTP.
    Posts {
        /// Address of the server.
        address: SocketAddr,
        /// Path to post to.
        path: String,
    },
}

/// Result of publishing a number of events.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Published {
    /// Number of events.
    pub(crate) events: u64,
    /// Maximum delay of an event compared with the rate.
    ///
    /// Latencies do not include it: they begin when the event leaves.
    pub(crate) late_max: Duration,
}

/// Handle of the publishing thread. The thread ends when the handle is dropped.
pub(crate) struct Publisher {
    orders: mpsc::Sender<Order>,
    published: u64,
}

struct Order {
    events: u64,
    /// Events per second; infinite means as fast as possible.
    rate: f64,
    done: oneshot::Sender<Fallible<Published>>,
}

impl Publisher {
    /// Starts the thread and waits until it is connected.
    pub(crate) async fn start(work: Work) -> Fallible<Self> {
        let (orders, inbox) = mpsc::channel(1);
        let (ready, connected) = oneshot::channel();
        std::thread::Builder::new()
            .name("publisher".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                match runtime {
                    Ok(runtime) => runtime.block_on(serve(work, inbox, ready)),
                    Err(error) => drop(ready.send(Err(error.into()))),
                }
            })?;
        connected.await??;
        Ok(Self {
            orders,
            published: 0,
        })
    }

    /// Returns the number of events published since the start.
    pub(crate) fn published(&self) -> u64 {
        self.published
    }

    /// Publishes `events` at `rate` per second. Returns after the last one has left.
    pub(crate) async fn publish(&mut self, events: u64, rate: f64) -> Fallible<Published> {
        let (done, result) = oneshot::channel();
        self.orders
            .send(Order { events, rate, done })
            .await
            .map_err(|_| "the publisher has ended")?;
        let published = result.await??;
        self.published += published.events;
        Ok(published)
    }
}

async fn serve(work: Work, mut inbox: mpsc::Receiver<Order>, ready: oneshot::Sender<Fallible<()>>) {
    let mut source = match Source::connect(&work).await {
        Ok(source) => source,
        Err(error) => return drop(ready.send(Err(error))),
    };
    drop(ready.send(Ok(())));
    while let Some(order) = inbox.recv().await {
        let result = source.send(order.events, order.rate).await;
        drop(order.done.send(result));
    }
}

struct Source {
    way: Way,
    groups: u64,
    sent: u64,
    size: usize,
    payload: Content,
    burst: u64,
}

enum Way {
    Nats(Client, Vec<Subject>),
    Posts(Posts),
}

impl Source {
    async fn connect(work: &Work) -> Fallible<Self> {
        let numbered = |text: &str| {
            (0..work.groups)
                .map(|n| text.replace("{n}", &n.to_string()))
                .collect::<Vec<_>>()
        };
        let way = match &work.outlet {
            Outlet::Nats { url, subject } => {
                let client = async_nats::connect(url)
                    .await
                    .map_err(|error| format!("{url}: {error}"))?;
                Way::Nats(
                    client,
                    numbered(subject).into_iter().map(Subject::from).collect(),
                )
            }
            Outlet::Posts { address, path } => {
                Way::Posts(Posts::connect(*address, numbered(path)).await?)
            }
        };
        Ok(Self {
            way,
            groups: work.groups as u64,
            sent: 0,
            size: work.size,
            payload: work.payload,
            burst: work.burst,
        })
    }

    async fn send(&mut self, events: u64, rate: f64) -> Fallible<Published> {
        let begin = Instant::now();
        let mut late_max = Duration::ZERO;
        for index in 0..events {
            let due = begin + Duration::from_secs_f64((index - index % self.burst) as f64 / rate);
            if Instant::now() < due {
                if let Way::Posts(posts) = &mut self.way {
                    posts.flush().await?;
                }
                // The timer's resolution is a millisecond: above 1,000 per second, events leave in
                // small groups.
                tokio::time::sleep_until(due).await;
            }
            if rate.is_finite() {
                late_max = late_max.max(due.elapsed());
            }
            self.send_one().await?;
        }
        match &mut self.way {
            Way::Nats(client, _) => client.flush().await?,
            Way::Posts(posts) => posts.flush().await?,
        }
        Ok(Published { events, late_max })
    }

    async fn send_one(&mut self) -> Fallible<()> {
        let group = usize::try_from(self.sent % self.groups)?;
        let stamp = Stamp {
            sent: now(),
            sequence: self.sent / self.groups + 1,
        };
        let payload = stamp.payload(self.size, self.payload);
        match &mut self.way {
            Way::Nats(client, subjects) => {
                client
                    .publish(subjects[group].clone(), payload.into())
                    .await?
            }
            Way::Posts(posts) => posts.send(group, &payload).await?,
        }
        self.sent += 1;
        Ok(())
    }
}

// === impl Outlet ===

impl Outlet {
    /// Returns whether the stream `LOAD` stores these events.
    pub(crate) fn is_stored(&self) -> bool {
        matches!(self, Self::Nats { subject, .. } if subject.starts_with("load."))
    }
}
