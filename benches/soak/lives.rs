//! How a client of the soak lives: what it asks for, whether it reads, how it goes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use testkit::h2::H2Client;
use testkit::sidestream::Sidestream;
use testkit::sse::SseClient;

/// Distinct subjects of each route.
pub(crate) const SUBJECTS: u64 = 50;

/// What all lives share.
pub(crate) struct Place {
    origin: String,
    /// Ids that clients had, old ones too: where others come back to.
    ids: Mutex<Vec<String>>,
    served: [AtomicU64; Life::KINDS],
}

/// One way to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Reads for a while.
    Reader,
    /// Comes back with an id that it or another one had.
    Returner,
    /// Asks, and then does not read.
    Staller,
    /// Several event streams in one HTTP/2 connection, of which one is not read.
    Multiplexer,
    /// Goes in the middle of its request.
    Quitter,
}

impl Life {
    /// How many there are.
    pub(crate) const KINDS: usize = 5;
    /// Their names, in order.
    pub(crate) const NAMES: [&str; Self::KINDS] = [
        "readers",
        "returners",
        "stallers",
        "multiplexers",
        "quitters",
    ];

    /// Any of them; those who come back are the most frequent.
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        match random.u8(0..10) {
            0..3 => Self::Reader,
            3..7 => Self::Returner,
            7 => Self::Staller,
            8 => Self::Multiplexer,
            _ => Self::Quitter,
        }
    }

    /// Its number among the kinds.
    pub(crate) fn kind(self) -> usize {
        self as usize
    }

    /// Lives, until it has enough. What the server does not answer is no failure here: it is counted as not served.
    pub(crate) async fn live(self, place: Arc<Place>, mut random: fastrand::Rng) {
        let end = Instant::now() + Duration::from_millis(random.u64(10..3_000));
        let served = match self {
            Self::Reader => place.read(&mut random, end, None).await,
            Self::Returner => {
                let id = place.old_id(&mut random);
                place.read(&mut random, end, id).await
            }
            Self::Staller => place.stall(&mut random, end).await,
            Self::Multiplexer => place.multiplex(&mut random, end).await,
            Self::Quitter => place.quit(&mut random).await,
        };
        place.served[self.kind()].fetch_add(u64::from(served), Ordering::Relaxed);
    }
}

impl Place {
    /// The listener of a sidecar.
    pub(crate) fn new(sidestream: &Sidestream) -> Self {
        Self {
            origin: sidestream.url(""),
            ids: Mutex::default(),
            served: Default::default(),
        }
    }

    /// A soak in which a kind of client was never served says nothing about it.
    pub(crate) fn every_kind_was_served(&self) -> Result<(), String> {
        let unserved = self
            .served
            .iter()
            .position(|count| count.load(Ordering::Relaxed) == 0);
        unserved.map_or(Ok(()), |kind| {
            Err(format!("none of the {} was served", Life::NAMES[kind]))
        })
    }

    async fn read(&self, random: &mut fastrand::Rng, end: Instant, id: Option<String>) -> bool {
        // An id belongs to the stream: the other route would refuse it.
        let path = if id.is_some() {
            stream_path(random)
        } else {
            path(random)
        };
        let mut builder = SseClient::get(format!("{}{path}", self.origin)).browser();
        if let Some(id) = &id {
            builder = builder.last_event_id(id);
        }
        let Ok(mut client) = builder.try_connect().await else {
            return false;
        };
        let mut served = false;
        while let Some(_event) = client
            .next_within(end.saturating_duration_since(Instant::now()))
            .await
        {
            served = true;
            if Instant::now() >= end {
                break;
            }
        }
        if path.starts_with("/stream/") {
            self.keep(client.last_event_id(), random);
        }
        // Half of them vanish without a word.
        if random.bool() {
            client.reset();
        }
        served
    }

    async fn stall(&self, random: &mut fastrand::Rng, end: Instant) -> bool {
        let mut builder =
            SseClient::get(format!("{}{}", self.origin, path(random))).receive_buffer(4_096);
        if let Some(id) = self.old_id(random).filter(|_| random.bool()) {
            builder = SseClient::get(format!("{}{}", self.origin, stream_path(random)))
                .receive_buffer(4_096)
                .last_event_id(&id);
        }
        let Ok(client) = builder.try_connect().await else {
            return false;
        };
        tokio::time::sleep_until(end).await;
        let served = client.status() == 200;
        if random.bool() {
            client.reset();
        }
        served
    }

    async fn multiplex(&self, random: &mut fastrand::Rng, end: Instant) -> bool {
        let builder = H2Client::builder().stream_window(16_384);
        let Ok(client) = builder.try_connect(&self.origin).await else {
            return false;
        };
        let mut streams = Vec::new();
        for _ in 0..random.usize(2..10) {
            let accept = [("accept", "text/event-stream")];
            let Ok(stream) = client.try_request("GET", &path(random), &accept).await else {
                return false;
            };
            streams.push(stream);
        }
        let mut served = false;
        while Instant::now() < end {
            // The first one is never read.
            for stream in &mut streams[1..] {
                served |= stream
                    .next_within(Duration::from_millis(20))
                    .await
                    .is_some();
            }
        }
        if random.bool() {
            streams.into_iter().for_each(testkit::h2::H2Stream::reset);
        }
        served
    }

    async fn quit(&self, random: &mut fastrand::Rng) -> bool {
        let address = self
            .origin
            .trim_start_matches("http://")
            .trim_end_matches('/');
        let Ok(mut socket) = TcpStream::connect(address).await else {
            return false;
        };
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: {address}\r\naccept: text/event-stream\r\n\r\n",
            path(random)
        );
        let part = random.usize(0..=request.len());
        socket.write_all(&request.as_bytes()[..part]).await.is_ok()
    }

    fn old_id(&self, random: &mut fastrand::Rng) -> Option<String> {
        let ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        (!ids.is_empty()).then(|| ids[random.usize(..ids.len())].clone())
    }

    fn keep(&self, id: &str, random: &mut fastrand::Rng) {
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if id.is_empty() {
            return;
        }
        if ids.len() < IDS_MAX {
            ids.push(id.to_owned());
        } else {
            // Some stay for ever, until they are too old for the stream.
            let place = random.usize(..IDS_MAX);
            id.clone_into(&mut ids[place]);
        }
    }
}

fn path(random: &mut fastrand::Rng) -> String {
    if random.bool() {
        stream_path(random)
    } else {
        format!("/live/{}", random.u64(..SUBJECTS))
    }
}

fn stream_path(random: &mut fastrand::Rng) -> String {
    format!("/stream/{}", random.u64(..SUBJECTS))
}

/// Ids from now back to the beginning, more or less evenly.
const IDS_MAX: usize = 500;
