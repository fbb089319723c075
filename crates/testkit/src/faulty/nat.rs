//! NAT that forgets silent connections: later bytes of either side are discarded, and neither side
//! is notified.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Result};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Running NAT. Dropping it ends it.
pub struct Nat {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Nat {
    /// Starts a NAT to a port of loopback, which forgets connections that are silent for this long.
    pub async fn start(port: u16, forget_after: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    forward(client, server, forget_after).await;
                });
            }
        });
        Self { address, accepting }
    }

    /// URL of a path.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(client: TcpStream, server: TcpStream, forget_after: Duration) {
    let (heard, last) = watch::channel(Instant::now());
    let is_forgotten = Arc::new(AtomicBool::new(false));
    let forget = {
        let is_forgotten = is_forgotten.clone();
        async move {
            loop {
                let end = *last.borrow() + forget_after;
                if end <= Instant::now() {
                    is_forgotten.store(true, Ordering::Relaxed);
                    return std::future::pending::<()>().await;
                }
                sleep_until(end).await;
            }
        }
    };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = forget => {}
        ended = async {
            tokio::try_join!(
                copy(from_client, to_server, &heard, &is_forgotten),
                copy(from_server, to_client, &heard, &is_forgotten),
            )
        } => drop(ended),
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    heard: &watch::Sender<Instant>,
    is_forgotten: &AtomicBool,
) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if is_forgotten.load(Ordering::Relaxed) {
            if read == 0 {
                return std::future::pending().await;
            }
            continue;
        }
        heard.send_replace(Instant::now());
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}
