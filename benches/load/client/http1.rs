//! One client over HTTP/1.1, in clear text or over TLS.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::crowd::Crowd;
use super::request::{self, PONG, SUBSCRIBE};
use crate::Fallible;
use crate::wire::body::{BodyReader, Framing};
use crate::wire::http1::Response;
use crate::wire::stamp;

/// Connects, sends the request, and reads until the event stream ends.
///
/// Releases the permit `connecting` at the first byte of the body.
pub(super) async fn follow(crowd: &Crowd, number: usize, connecting: OwnedSemaphorePermit) {
    let status = match crowd.framing {
        Framing::WebSocket => 101,
        _ => 200,
    };
    let mut client = Client {
        number,
        response: Response::new(status),
        body: crowd.reader(number),
        started: stamp::now(),
        opened: false,
    };
    if let Err(problem) = client.run(crowd, connecting).await {
        crowd
            .meter
            .update(|_, tally| tally.close(client.opened, &problem));
    }
}

struct Client {
    number: usize,
    response: Response,
    body: BodyReader,
    /// Start of the connect.
    started: u64,
    /// True after the first byte of the body.
    opened: bool,
}

impl Client {
    async fn run(&mut self, crowd: &Crowd, connecting: OwnedSemaphorePermit) -> Fallible<()> {
        let socket = crowd.endpoint.connect().await?;
        match crowd.endpoint.tls() {
            Some(tls) => {
                let socket = tls.http1(socket).await?;
                crowd.count_handshake(socket.get_ref().1.handshake_kind());
                self.exchange(socket, crowd, connecting).await
            }
            None => self.exchange(socket, crowd, connecting).await,
        }
    }

    async fn exchange(
        &mut self,
        mut socket: impl AsyncRead + AsyncWrite + Unpin,
        crowd: &Crowd,
        connecting: OwnedSemaphorePermit,
    ) -> Fallible<()> {
        socket.write_all(&self.request(crowd)).await?;
        socket.flush().await?;
        while !self.opened {
            poll_fn(|cx| self.poll_read(&mut socket, crowd, cx)).await?;
        }
        drop(connecting);
        while !self.response.is_over() {
            poll_fn(|cx| self.poll_read(&mut socket, crowd, cx)).await?;
            for _ in 0..self.body.take_pings() {
                socket.write_all(PONG).await?;
                socket.flush().await?;
            }
        }
        Err("the event stream ended".into())
    }

    fn request(&self, crowd: &Crowd) -> Vec<u8> {
        let (path, host) = (
            crowd.endpoint.path(self.number % crowd.groups),
            crowd.endpoint.authority(),
        );
        let last_id = crowd.visit.last_id(self.number);
        let (method, target, message) = match crowd.framing {
            Framing::Grpc => {
                let message = request::subscribe_message(&path, last_id.as_deref());
                ("POST", SUBSCRIBE, message)
            }
            _ => ("GET", &*path, Vec::new()),
        };
        let headers = request::http1_headers(crowd.framing);
        let mut request = format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{headers}");
        if !message.is_empty() {
            request.push_str(&format!("content-length: {}\r\n", message.len()));
        }
        if let Some(token) = crowd.endpoint.token(self.number) {
            request.push_str(&format!("authorization: Bearer {token}\r\n"));
        }
        if let Some(id) = last_id.filter(|_| message.is_empty()) {
            request.push_str(&format!("last-event-id: {id}\r\n"));
        }
        if let Some(coding) = crowd.compression {
            request.push_str(&format!("accept-encoding: {}\r\n", coding.as_str()));
        }
        request.push_str("\r\n");
        [request.into_bytes(), message].concat()
    }

    /// Reads once, into the buffer that all clients share.
    fn poll_read(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        crowd: &Crowd,
        cx: &mut Context<'_>,
    ) -> Poll<Fallible<()>> {
        crowd.meter.update(|scratch, tally| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(socket).poll_read(cx, &mut buffer))?;
            let bytes = buffer.filled();
            if bytes.is_empty() {
                return Poll::Ready(Err("the connection was closed".into()));
            }
            let now = stamp::now();
            tally.read(bytes.len());
            self.response.push(bytes, &mut |body| {
                if !std::mem::replace(&mut self.opened, true) {
                    tally.open(self.started, now);
                }
                self.body.push(body, &mut |seen| tally.see(seen, now));
            })?;
            crowd.visit.remember(self.number, &self.body);
            Poll::Ready(Ok(()))
        })
    }
}
