//! WebSocket client over raw connections, HTTP/1.1 and HTTP/2, that exposes every frame.
//!
//! It shares no code with the product: frames are read and written byte by byte (RFC 6455), so that
//! a test can also send what no library sends.

use std::future::poll_fn;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf, Bytes, BytesMut};
use h2::ext::Protocol;
use h2::{RecvStream, SendStream};
use hyper::{Method, Uri, Version};
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls::ClientConfig;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::http1;
use crate::transport::{Connector, Transport};
use crate::wait::{DEADLINE, within};

/// Subprotocol of event streams.
pub const SUBPROTOCOL: &str = "sidestream.v1";

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x12, 0x34, 0x56, 0x78];

/// Request for a WebSocket.
#[derive(Clone)]
pub struct Request<'r> {
    /// URL with `http` or `https`.
    pub url: String,
    /// HTTP/2 instead of HTTP/1.1.
    pub is_h2: bool,
    /// TLS configuration for `https` URLs, with the protocol that it offers.
    pub tls: Option<Arc<ClientConfig>>,
    /// Further headers.
    pub headers: Vec<(&'r str, &'r str)>,
    /// Subprotocol; empty: none.
    pub subprotocol: &'r str,
}

/// Open WebSocket.
pub struct WebSocket {
    io: Io,
    buffer: BytesMut,
    /// Headers of the response, names in lower case.
    pub headers: Vec<(String, String)>,
    last_event_id: String,
}

/// Rejected request.
#[derive(Debug)]
pub struct Rejected {
    /// Status code.
    pub status: u16,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

/// Frame of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Text message.
    Text(String),
    /// Ping with its content.
    Ping(Vec<u8>),
    /// Pong with its content.
    Pong(Vec<u8>),
    /// Close with its code and reason; 1005 without a code.
    Close(u16, String),
    /// End of the connection, or of the HTTP/2 stream.
    End,
}

enum Io {
    Http1(Box<Transport>),
    H2 {
        send: SendStream<Bytes>,
        body: RecvStream,
        connection: JoinHandle<()>,
    },
}

impl Request<'_> {
    /// Request over HTTP/1.1 with the subprotocol.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            is_h2: false,
            tls: None,
            headers: Vec::new(),
            subprotocol: SUBPROTOCOL,
        }
    }

    /// Opens the WebSocket.
    pub async fn open(self) -> WebSocket {
        let url = self.url.clone();
        self.try_open()
            .await
            .unwrap_or_else(|rejected| panic!("{url}: {rejected:?}"))
    }

    /// Opens the WebSocket, or returns the rejection.
    pub async fn try_open(self) -> Result<WebSocket, Rejected> {
        within(DEADLINE, "the handshake is answered", async {
            if self.is_h2 {
                self.open_h2().await
            } else {
                self.open_http1().await
            }
        })
        .await
    }

    async fn connect(&self, url: &Uri) -> Transport {
        let connector = match &self.tls {
            Some(tls) => Connector::default().tls(tls.clone()),
            None => Connector::default(),
        };
        connector.connect(url).await.unwrap()
    }

    async fn open_http1(self) -> Result<WebSocket, Rejected> {
        let url: Uri = self.url.parse().unwrap();
        let mut headers = vec![
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "websocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", KEY),
        ];
        if !self.subprotocol.is_empty() {
            headers.push(("Sec-WebSocket-Protocol", self.subprotocol));
        }
        // A header of the test replaces the usual one.
        headers.retain(|(name, _)| !self.headers.iter().any(|(own, _)| own == name));
        headers.extend(&self.headers);
        let mut transport = self.connect(&url).await;
        let head = http1::head("GET", &url, 1, &headers);
        transport.write_all(head.as_bytes()).await.unwrap();
        transport.flush().await.unwrap();
        let mut buffer = BytesMut::new();
        let end = loop {
            if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
                break at + 4;
            }
            assert!(transport.read_buf(&mut buffer).await.unwrap() > 0);
        };
        let head = buffer.split_to(end);
        let text = std::str::from_utf8(&head).unwrap();
        let status = text[9..12].parse().unwrap();
        let headers: Vec<_> = text
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .collect();
        if status != 101 {
            let length = find(&headers, "content-length").unwrap_or("0");
            let length = length.parse().unwrap();
            while buffer.len() < length {
                assert!(transport.read_buf(&mut buffer).await.unwrap() > 0);
            }
            return Err(Rejected {
                status,
                headers,
                body: String::from_utf8_lossy(&buffer).into_owned(),
            });
        }
        let accept = digest(
            &SHA1_FOR_LEGACY_USE_ONLY,
            format!("{KEY}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes(),
        );
        let accept = BASE64.encode(accept);
        assert_eq!(find(&headers, "sec-websocket-accept"), Some(&*accept));
        Ok(WebSocket {
            io: Io::Http1(Box::new(transport)),
            buffer,
            headers,
            last_event_id: String::new(),
        })
    }

    async fn open_h2(self) -> Result<WebSocket, Rejected> {
        let url: Uri = self.url.parse().unwrap();
        let transport = self.connect(&url).await;
        let (mut requests, connection) = h2::client::handshake(transport).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        while !requests.is_extended_connect_protocol_enabled() {
            // The settings of the server arrive with its first bytes.
            requests = requests.ready().await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        let mut request = hyper::Request::builder()
            .version(Version::HTTP_2)
            .method(Method::CONNECT)
            .uri(url)
            .extension(Protocol::from_static("websocket"))
            .header("sec-websocket-version", "13");
        if !self.subprotocol.is_empty() {
            request = request.header("sec-websocket-protocol", self.subprotocol);
        }
        for (name, value) in &self.headers {
            request = request.header(*name, *value);
        }
        let request = request.body(()).unwrap();
        let (answer, send) = requests.send_request(request, false).unwrap();
        let (head, mut body) = answer.await.unwrap().into_parts();
        let headers: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect();
        if head.status != 200 {
            let mut text = BytesMut::new();
            while let Some(Ok(bytes)) = body.data().await {
                text.extend_from_slice(&bytes);
            }
            return Err(Rejected {
                status: head.status.as_u16(),
                headers,
                body: String::from_utf8_lossy(&text).into_owned(),
            });
        }
        Ok(WebSocket {
            io: Io::H2 {
                send,
                body,
                connection,
            },
            buffer: BytesMut::new(),
            headers,
            last_event_id: String::new(),
        })
    }
}

impl WebSocket {
    /// Value of a header of the response.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// Sends a frame with a mask. `first`: its first byte.
    pub async fn send(&mut self, first: u8, content: &[u8]) {
        self.send_bytes(&masked(first, content)).await;
    }

    /// Sends bytes as they are.
    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        match &mut self.io {
            Io::Http1(transport) => {
                // The server may have closed the connection.
                drop(transport.write_all(bytes).await);
                drop(transport.flush().await);
            }
            Io::H2 { send, .. } => {
                drop(send.send_data(Bytes::copy_from_slice(bytes), false));
            }
        }
    }

    /// Next frame.
    pub async fn next(&mut self) -> Frame {
        within(DEADLINE, "the client has another frame", async {
            loop {
                if let Some(frame) = self.parse() {
                    return frame;
                }
                if !self.read().await {
                    assert!(self.buffer.is_empty(), "the connection ends between frames");
                    return Frame::End;
                }
            }
        })
        .await
    }

    /// Next text message, as JSON; other frames before it are dropped.
    pub async fn object(&mut self) -> Value {
        loop {
            match self.next().await {
                Frame::Text(text) => {
                    let object: Value = serde_json::from_str(&text).unwrap();
                    if let Some(id) = object["id"].as_str() {
                        id.clone_into(&mut self.last_event_id);
                    }
                    return object;
                }
                Frame::Ping(content) => self.send(0x8a, &content).await,
                Frame::Pong(_) => {}
                frame => panic!("{frame:?} instead of a message"),
            }
        }
    }

    /// Next `count` events; control objects before them are dropped.
    pub async fn events(&mut self, count: usize) -> Vec<Value> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            let object = self.object().await;
            if object.get("control").is_none() {
                events.push(object);
            }
        }
        events
    }

    /// Next control object of this name; returns the objects before it, too.
    pub async fn until_control(&mut self, name: &str) -> (Vec<Value>, Value) {
        let mut before = Vec::new();
        loop {
            let object = self.object().await;
            if object["control"] == name {
                return (before, object);
            }
            before.push(object);
        }
    }

    /// Position for `last_event_id`.
    pub fn last_event_id(&self) -> &str {
        &self.last_event_id
    }

    async fn read(&mut self) -> bool {
        match &mut self.io {
            Io::Http1(transport) => transport
                .read_buf(&mut self.buffer)
                .await
                .is_ok_and(|count| count > 0),
            Io::H2 { body, .. } => match poll_fn(|task| body.poll_data(task)).await {
                Some(Ok(bytes)) => {
                    self.buffer.extend_from_slice(&bytes);
                    body.flow_control().release_capacity(bytes.len()).unwrap();
                    true
                }
                _ => false,
            },
        }
    }

    fn parse(&mut self) -> Option<Frame> {
        let [first, second, ..] = self.buffer[..] else {
            return None;
        };
        assert_eq!(second & 0x80, 0, "a server does not mask");
        let (start, length) = match second {
            126 => (
                4,
                usize::from(u16::from_be_bytes(self.buffer.get(2..4)?.try_into().ok()?)),
            ),
            127 => (
                10,
                u64::from_be_bytes(self.buffer.get(2..10)?.try_into().ok()?) as usize,
            ),
            length => (2, usize::from(length)),
        };
        if self.buffer.len() < start + length {
            return None;
        }
        self.buffer.advance(start);
        let content = self.buffer.split_to(length).to_vec();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        Some(match (first, &content[..]) {
            (0x81, content) => Frame::Text(text(content)),
            (0x88, []) => Frame::Close(1005, String::new()),
            (0x88, [one, two, reason @ ..]) => {
                Frame::Close(u16::from_be_bytes([*one, *two]), text(reason))
            }
            (0x89, _) => Frame::Ping(content),
            (0x8a, _) => Frame::Pong(content),
            _ => panic!("a frame that begins with {first:#x}"),
        })
    }
}

impl Drop for WebSocket {
    fn drop(&mut self) {
        if let Io::H2 { connection, .. } = &self.io {
            connection.abort();
        }
    }
}

/// Returns a frame as a client sends it.
pub fn masked(first: u8, content: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match content.len() {
        length @ ..126 => frame.push(0x80 | length as u8),
        length @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((length as u16).to_be_bytes());
        }
        length => {
            frame.push(0x80 | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend(MASK);
    let masks = MASK.iter().cycle();
    frame.extend(content.iter().zip(masks).map(|(byte, mask)| byte ^ mask));
    frame
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    let found = headers.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| value.as_str())
}
