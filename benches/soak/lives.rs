//! Behaviour of the clients of the soak: their request, their reading, and their end.
//!
//! Each client is one [`Life`], chosen at random, that lasts up to three seconds. Clients share the
//! event ids they received, so that others resume from them, also from old ones.

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

/// State that all clients share.
pub(crate) struct Place {
    origin: String,
    /// Event ids that clients received, including old ones, for others to resume from.
    ids: Mutex<Vec<String>>,
    served: [AtomicU64; Life::KINDS],
}

/// Kinds of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// Reads for a while.
    Reader,
    /// Resumes from an event id of its own or of another client.
    Returner,
    /// Sends a request and does not read.
    Staller,
    /// Opens several event streams on one HTTP/2 connection and does not read one of them.
    Multiplexer,
    /// Disconnects in the middle of its request.
    Quitter,
}

impl Life {
    /// Number of kinds.
    pub(crate) const KINDS: usize = 5;
    /// Names of the kinds, in order.
    pub(crate) const NAMES: [&str; Self::KINDS] = [
        "readers",
        "returners",
        "stallers",
        "multiplexers",
        "quitters",
    ];

    /// Returns a random kind; returners are the most frequent.
    pub(crate) fn random(random: &mut fastrand::Rng) -> Self {
        match random.u8(0..10) {
            0..3 => Self::Reader,
            3..7 => Self::Returner,
            7 => Self::Staller,
            8 => Self::Multiplexer,
            _ => Self::Quitter,
        }
    }

    /// Returns the index of the kind.
    pub(crate) fn kind(self) -> usize {
        self as usize
    }

    /// Runs the client for up to three seconds.
    ///
    /// A request without a response is not an error; the client only counts as not served.
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
    /// Returns the state for clients of this sidecar.
    pub(crate) fn new(sidestream: &Sidestream) -> Self {
        Self {
            origin: sidestream.url(""),
            ids: Mutex::default(),
            served: Default::default(),
        }
    }

    /// Returns an error if no client of some kind was served, because then it was not tested.
    pub(crate) fn every_kind_was_served(&self) -> Result<(), String> {
        let unserved = self
            .served
            .iter()
            .position(|count| count.load(Ordering::Relaxed) == 0);
        unserved.map_or(Ok(()), |kind| {
            Err(format!("no {} were served", Life::NAMES[kind]))
        })
    }

    async fn read(&self, random: &mut fastrand::Rng, end: Instant, id: Option<String>) -> bool {
        // Ids belong to the JetStream route; the other route would reject them.
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
        // Half of the clients reset the connection.
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
            // The first event stream is never read.
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
            // Some stay until they are too old for the stream.
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

/// Maximum number of event ids, of all ages.
const IDS_MAX: usize = 500;
