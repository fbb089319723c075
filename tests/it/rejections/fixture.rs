//! A sidecar under attack, and a witness: a client that must receive every event at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use testkit::nats::{Nats, store};
use testkit::sidestream::{Builder, Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually, within};

/// 20 ms: fifty events per second reveal any delay at little cost.
const TICK: Duration = Duration::from_millis(20);

/// Route of the witness; other routes follow it.
const ROUTES: &str = "routes:
  - path: /witness
    sources: [{ stream: WITNESS, subjects: [\"witness.>\"] }]
  - path: /orders/{id}
    sources: [{ subjects: [\"orders.{id}.>\"] }]
  - path: /events
    sources: [{ subjects: [\"{query.subject}\"], allow: [\"orders.>\", \"news.*\"] }]
  - path: /any
    sources: [{ subjects: [\"{query.subject}\"], allow: [\">\"] }]
  - path: /tenant
    sources: [{ subjects: [\"tenant.{header.x-tenant}.>\"] }]
";

/// Running sidecar with its nats-server and its witness.
pub(crate) struct Fixture {
    pub(crate) sidestream: Sidestream,
    pub(crate) nats: Nats,
    files_before: usize,
    over: Arc<AtomicBool>,
    publishing: JoinHandle<u64>,
    witness: JoinHandle<(u64, bool)>,
}

impl Fixture {
    /// Starts a sidecar with the usual routes, followed by `rest`.
    pub(crate) async fn start(rest: &str) -> Self {
        let nats = Nats::start().await;
        let text = config(&nats, &format!("{ROUTES}{rest}"));
        Self::with(nats, Sidestream::builder(text)).await
    }

    /// Same as [`Fixture::start`], with another list of listeners.
    pub(crate) async fn listening(listen: &str, rest: &str) -> Self {
        let nats = Nats::start().await;
        let text = format!(
            "listen:\n{listen}\nadmin:\n  address: 127.0.0.1:0\nnats:\n  servers: [\"{}\"]\n{ROUTES}{rest}\n",
            nats.url()
        );
        Self::with(nats, Sidestream::builder(text)).await
    }

    async fn with(nats: Nats, builder: Builder) -> Self {
        let jetstream = nats.jetstream().await;
        let stream = async_nats::jetstream::stream::Config {
            name: "WITNESS".into(),
            subjects: vec!["witness.>".into()],
            ..Default::default()
        };
        jetstream.create_stream(stream).await.unwrap();
        let sidestream = builder.start().await;
        let mut client = SseClient::get(sidestream.url("/witness")).connect().await;
        assert_eq!(client.status(), 200);
        // Requests to the admin port end before descriptors are counted.
        let files_before = sidestream.open_files();
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let publishing = tokio::spawn(async move {
            let mut published = 0;
            while !ended.load(Ordering::Relaxed) {
                published += 1;
                store(&jetstream, "witness.tick", published.to_string()).await;
                tokio::time::sleep(TICK).await;
            }
            store(&jetstream, "witness.tick", "end").await;
            published
        });
        let witness = tokio::spawn(async move {
            let (mut received, mut unbroken) = (0, true);
            loop {
                let event = client.next().await;
                if event.data == "end" {
                    return (received, unbroken);
                }
                received += 1;
                unbroken &= event.data == received.to_string();
            }
        });
        Self {
            sidestream,
            nats,
            files_before,
            over,
            publishing,
            witness,
        }
    }

    /// Opens a connection to the first listener in clear text.
    pub(crate) async fn socket(&self) -> TcpStream {
        socket(&self.sidestream.url("/")).await
    }

    /// Sends these bytes; returns the response up to the close of the connection.
    pub(crate) async fn raw(&self, bytes: &[u8]) -> String {
        exchange(self.socket().await, bytes).await
    }

    /// Counter of a rejection code.
    pub(crate) async fn refused(&self, code: &str) -> f64 {
        self.sidestream
            .metric("sidestream_refusals_total", &[("code", code)])
            .await
    }

    /// Waits until the counter of a rejection code is above `before`.
    pub(crate) async fn until_refused(&self, code: &str, before: f64) {
        self.sidestream
            .until_metric("sidestream_refusals_total", &[("code", code)], |value| {
                value > before
            })
            .await;
    }

    /// Asserts that the witness has every event in order, that nothing has panicked, and that no
    /// resource has leaked.
    pub(crate) async fn finish(mut self) {
        self.over.store(true, Ordering::Relaxed);
        let published = within(DEADLINE, "the publisher ends", self.publishing)
            .await
            .unwrap();
        let (received, unbroken) = within(DEADLINE, "the witness has the last event", self.witness)
            .await
            .unwrap();
        assert!(unbroken, "the witness has every event in order");
        assert_eq!(received, published, "the witness has every event");
        assert!(self.sidestream.running(), "the sidecar lives");
        let panics: Vec<_> = self
            .sidestream
            .output()
            .into_iter()
            .filter(|line| line.contains("panicked"))
            .collect();
        assert!(panics.is_empty(), "{panics:?}");
        // The witness itself has disconnected by now.
        let files = self.files_before;
        eventually(DEADLINE, "every descriptor is closed", || async {
            self.sidestream.open_files() <= files
        })
        .await;
        self.sidestream
            .until_metric("sidestream_streams", &[], |streams| streams == 0.0)
            .await;
        self.sidestream
            .until_metric("sidestream_connections", &[], |connections| {
                connections == 0.0
            })
            .await;
    }
}

/// Opens a connection to the host and port of a URL.
pub(crate) async fn socket(url: &str) -> TcpStream {
    let address = url.split('/').nth(2).unwrap();
    TcpStream::connect(address).await.unwrap()
}

/// Sends these bytes and reads until the peer closes or resets the connection.
pub(crate) async fn exchange(mut socket: TcpStream, bytes: &[u8]) -> String {
    // The peer may close before it has read everything.
    let (mut from, mut to) = socket.split();
    let mut answer = Vec::new();
    let both = async {
        let writing = async {
            let _refused = to.write_all(bytes).await;
        };
        let reading = async {
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = from.read(&mut buffer).await {
                answer.extend_from_slice(&buffer[..read]);
            }
        };
        tokio::join!(writing, reading);
    };
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
    within(
        DEADLINE * 2,
        &format!("the sidecar closes after {shown:?}"),
        both,
    )
    .await;
    String::from_utf8_lossy(&answer).into_owned()
}
