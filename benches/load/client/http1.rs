//! One client over HTTP/1.1, in clear text or under TLS.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::endpoint::Endpoint;
use super::meter::Meter;
use crate::Fallible;
use crate::wire::events::EventReader;
use crate::wire::http1::Response;
use crate::wire::stamp;

/// Connects, asks, and reads until the event stream ends. `connecting` goes back with the first byte of the body.
pub(super) async fn follow(endpoint: &Endpoint, n: usize, meter: &Meter, connecting: OwnedSemaphorePermit) {
    let mut client =
        Client { response: Response::new(), events: EventReader::new(), started: stamp::now(), opened: false };
    if let Err(problem) = client.run(endpoint, n, meter, connecting).await {
        meter.update(|_, tally| tally.close(client.opened, &problem));
    }
}

struct Client {
    response: Response,
    events: EventReader,
    /// When the connect began.
    started: u64,
    /// Whether a byte of the body was read.
    opened: bool,
}

impl Client {
    async fn run(
        &mut self,
        endpoint: &Endpoint,
        n: usize,
        meter: &Meter,
        connecting: OwnedSemaphorePermit,
    ) -> Fallible<()> {
        let socket = endpoint.connect().await?;
        match endpoint.tls() {
            Some((connector, name)) => {
                let socket = connector.connect(name.clone(), socket).await?;
                self.exchange(socket, endpoint, n, meter, connecting).await
            }
            None => self.exchange(socket, endpoint, n, meter, connecting).await,
        }
    }

    async fn exchange(
        &mut self,
        mut socket: impl AsyncRead + AsyncWrite + Unpin,
        endpoint: &Endpoint,
        n: usize,
        meter: &Meter,
        connecting: OwnedSemaphorePermit,
    ) -> Fallible<()> {
        let (path, host) = (endpoint.path(n), endpoint.authority());
        let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\naccept: text/event-stream\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        socket.flush().await?;
        while !self.opened {
            poll_fn(|cx| self.poll_read(&mut socket, meter, cx)).await?;
        }
        drop(connecting);
        while !self.response.is_over() {
            poll_fn(|cx| self.poll_read(&mut socket, meter, cx)).await?;
        }
        Err("the event stream ended".into())
    }

    /// One read, into the buffer that all clients share.
    fn poll_read(
        &mut self,
        socket: &mut (impl AsyncRead + Unpin),
        meter: &Meter,
        cx: &mut Context<'_>,
    ) -> Poll<Fallible<()>> {
        meter.update(|scratch, tally| {
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
                self.events.push(body, &mut |seen| tally.see(seen, now));
            })?;
            Poll::Ready(Ok(()))
        })
    }
}
