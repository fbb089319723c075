//! Events as pipelined HTTP POST requests on one connection.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, BufWriter};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::task::JoinHandle;

use crate::Fallible;

/// Connection to the server. Responses are discarded: a rejected event is missing at the clients.
pub(super) struct Posts {
    out: BufWriter<OwnedWriteHalf>,
    /// Request line and headers, up to the length of the body.
    heads: Vec<String>,
    answers: JoinHandle<()>,
}

impl Posts {
    /// Connects. `paths` has the path of each subject.
    pub(super) async fn connect(address: SocketAddr, paths: Vec<String>) -> Fallible<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (mut answers, out) = socket.into_split();
        let answers = tokio::spawn(async move {
            let mut bytes = vec![0; 64 * 1024];
            while !matches!(answers.read(&mut bytes).await, Ok(0) | Err(_)) {}
        });
        let head = |path| {
            format!(
                "POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: text/plain\r\ncontent-length: "
            )
        };
        Ok(Self {
            out: BufWriter::new(out),
            heads: paths.into_iter().map(head).collect(),
            answers,
        })
    }

    /// Writes one event. It leaves at the next flush at the latest.
    pub(super) async fn send(&mut self, subject: usize, payload: &[u8]) -> Fallible<()> {
        if self.answers.is_finished() {
            return Err("the server closed the connection of the publisher".into());
        }
        self.out.write_all(self.heads[subject].as_bytes()).await?;
        self.out
            .write_all(format!("{}\r\n\r\n", payload.len()).as_bytes())
            .await?;
        Ok(self.out.write_all(payload).await?)
    }

    /// Sends all written events.
    pub(super) async fn flush(&mut self) -> Fallible<()> {
        Ok(self.out.flush().await?)
    }
}

impl Drop for Posts {
    fn drop(&mut self) {
        self.answers.abort();
    }
}
