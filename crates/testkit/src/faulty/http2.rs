//! HTTP/2 connection to a pod that all requests share, with a small window or without GOAWAY.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use http_body_util::Empty;
use hyper::{Request, Response, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::sync::mpsc::Sender;

use super::Plant;

/// Connection to a pod.
pub(super) struct Upstream {
    pod: u16,
    plant: Plant,
    open: Mutex<Option<SendRequest<Bytes>>>,
}

impl Upstream {
    pub(super) fn new(pod: u16, plant: Plant) -> Self {
        Self {
            pod,
            plant,
            open: Mutex::default(),
        }
    }

    /// Sends a request and copies the body of its response.
    pub(super) async fn pass(
        &self,
        request: Request<Empty<Bytes>>,
        send: Sender<io::Result<Bytes>>,
    ) -> Option<Response<()>> {
        let (mut head, _) = request.into_parts();
        head.version = Version::HTTP_2;
        let authority = format!("127.0.0.1:{}", self.pod);
        head.uri = format!("http://{authority}{}", head.uri.path_and_query()?)
            .parse()
            .ok()?;
        head.headers.remove("host");
        let mut sender = self.connection().await?;
        let (response, _) = sender
            .send_request(Request::from_parts(head, ()), true)
            .ok()?;
        let (head, mut body) = response.await.ok()?.into_parts();
        tokio::spawn(async move {
            loop {
                let data = tokio::select! {
                    () = send.closed() => return,
                    data = body.data() => data,
                };
                let Some(Ok(data)) = data else { return };
                let length = data.len();
                if send.send(Ok(data)).await.is_err()
                    || body.flow_control().release_capacity(length).is_err()
                {
                    return;
                }
            }
        });
        let mut response = Response::from_parts(head, ());
        *response.version_mut() = Version::HTTP_11;
        Some(response)
    }

    /// Returns the open connection, or opens one.
    async fn connection(&self) -> Option<SendRequest<Bytes>> {
        let mut open = self.open.lock().await;
        if let Some(sender) = open.clone()
            && let Ok(sender) = sender.ready().await
        {
            return Some(sender);
        }
        let socket = TcpStream::connect(("127.0.0.1", self.pod)).await.ok()?;
        socket.set_nodelay(true).ok()?;
        let mut builder = h2::client::Builder::new();
        if let Plant::Window(bytes) = self.plant {
            builder.initial_window_size(bytes);
        }
        let socket = WithoutGoaway::new(socket, self.plant == Plant::SwallowGoaway);
        let (sender, connection) = builder.handshake::<_, Bytes>(socket).await.ok()?;
        tokio::spawn(async move { drop(connection.await) });
        let sender = sender.ready().await.ok()?;
        Some(open.insert(sender).clone())
    }
}

/// Socket that discards the GOAWAY frames of the server.
struct WithoutGoaway {
    socket: TcpStream,
    is_active: bool,
    /// Bytes that were received, as far as they are no complete frame.
    raw: Vec<u8>,
    /// Frames for the library.
    frames: Vec<u8>,
}

const FRAME_HEAD: usize = 9;
const GOAWAY: u8 = 0x7;

impl WithoutGoaway {
    fn new(socket: TcpStream, is_active: bool) -> Self {
        Self {
            socket,
            is_active,
            raw: Vec::new(),
            frames: Vec::new(),
        }
    }

    fn sort(&mut self) {
        while let Some(head) = self.raw.first_chunk::<FRAME_HEAD>() {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let kind = head[3];
            if self.raw.len() < FRAME_HEAD + length {
                return;
            }
            let frame = self.raw.drain(..FRAME_HEAD + length);
            if kind != GOAWAY {
                self.frames.extend(frame);
            }
        }
    }
}

impl AsyncRead for WithoutGoaway {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_active {
            return Pin::new(&mut self.socket).poll_read(task, buffer);
        }
        while self.frames.is_empty() {
            let mut bytes = [0; 4096];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.socket).poll_read(task, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.raw.extend_from_slice(read.filled());
            self.sort();
        }
        let part = self.frames.len().min(buffer.remaining());
        buffer.put_slice(&self.frames[..part]);
        self.frames.drain(..part);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WithoutGoaway {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(task)
    }
}
