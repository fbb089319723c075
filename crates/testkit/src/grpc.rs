//! Client of `sidestream.v1.Events/Subscribe`: gRPC over HTTP/2, gRPC-Web over HTTP/2 and HTTP/1.1.
//!
//! It reads frames and fields of protobuf by their documented formats and shares no code with the
//! product. Applications use libraries instead: `tests/clients/grpc`.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{HeaderMap, Request, Uri, Version};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::task::JoinHandle;

use crate::transport::Connector;
use crate::wait::{DEADLINE, within};

/// Path of the method.
pub const METHOD: &str = "/sidestream.v1.Events/Subscribe";

/// Form of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// gRPC: its status is in trailers of HTTP/2.
    Grpc,
    /// gRPC-Web over HTTP/2.
    WebH2,
    /// gRPC-Web over HTTP/1.1.
    WebHttp1,
}

/// Call that is sent once.
#[derive(Clone, Debug)]
pub struct Call<'c> {
    /// Form and HTTP version.
    pub form: Form,
    /// Scheme, host and port.
    pub base: String,
    /// Method of the request.
    pub method: &'c str,
    /// TLS configuration for `https`, with the protocol that it offers.
    pub tls: Option<Arc<ClientConfig>>,
    /// Metadata, in lower case; replaces headers of the same name.
    pub headers: Vec<(&'c str, &'c str)>,
    /// Content.
    pub body: Bytes,
}

/// Call with the head of its response. It is read only on demand.
pub struct Response {
    form: Form,
    /// Status of HTTP.
    pub status: u16,
    /// Head of the response.
    pub headers: HeaderMap,
    body: Body,
    read: BytesMut,
    messages: VecDeque<Message>,
    /// Status of the call, with all its trailers.
    trailers: Option<HashMap<String, String>>,
    /// Ends with its last reader.
    connection: JoinHandle<()>,
}

/// Message of the response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Position; empty: unchanged.
    pub id: String,
    /// Name of the content in the `.proto`; empty: a heartbeat.
    pub content: &'static str,
    fields: Fields,
}

/// Fields of a protobuf message by their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fields(Vec<(u64, Field)>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Field {
    Number(u64),
    Bytes(Bytes),
}

enum Body {
    Http1(Incoming),
    H2(RecvStream),
}

/// Names of the contents, by field number.
const CONTENTS: [&str; 10] = [
    "event", "removed", "open", "position", "gap", "renew", "snapshot", "synced", "end", "close",
];

impl Form {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Grpc, Self::WebH2, Self::WebHttp1];

    /// Protocol that the client offers by ALPN.
    pub fn alpn(self) -> &'static str {
        match self {
            Self::Grpc | Self::WebH2 => "h2",
            Self::WebHttp1 => "http/1.1",
        }
    }

    /// Content type of requests and responses.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Grpc => "application/grpc",
            Self::WebH2 | Self::WebHttp1 => "application/grpc-web+proto",
        }
    }
}

impl<'c> Call<'c> {
    /// Call for the event stream of a path, after an id. `base`: scheme, host and port.
    pub fn new(form: Form, base: impl Into<String>, path: &str, last_event_id: &str) -> Self {
        Self {
            form,
            base: base.into(),
            method: "POST",
            tls: None,
            headers: Vec::new(),
            body: framed(0, &request(path, last_event_id)),
        }
    }

    /// Sends it; returns when the head of the response has arrived.
    pub async fn send(self) -> Response {
        within(DEADLINE, "the call has a response", self.send_now()).await
    }

    async fn send_now(self) -> Response {
        let base: Uri = self.base.parse().unwrap();
        let mut connector = Connector::default();
        if let Some(tls) = &self.tls {
            connector = connector.tls(tls.clone());
        }
        let transport = connector.connect(&base).await.unwrap();
        let mut head = Request::builder().method(self.method);
        let mut headers = vec![("content-type", self.form.content_type())];
        match self.form {
            Form::Grpc => headers.push(("te", "trailers")),
            Form::WebH2 | Form::WebHttp1 => headers.push(("x-grpc-web", "1")),
        }
        headers.retain(|(name, _)| self.headers.iter().all(|(other, _)| other != name));
        headers.extend(&self.headers);
        let authority = base.authority().unwrap().as_str();
        if self.form == Form::WebHttp1 {
            headers.push(("host", authority));
            head = head.uri(METHOD);
        } else {
            let scheme = base.scheme_str().unwrap();
            head = head
                .version(Version::HTTP_2)
                .uri(format!("{scheme}://{authority}{METHOD}"));
        }
        for (name, value) in headers {
            head = head.header(name, value);
        }
        if self.form == Form::WebHttp1 {
            let io = TokioIo::new(transport);
            let (mut requests, connection) =
                hyper::client::conn::http1::handshake(io).await.unwrap();
            let connection = tokio::spawn(async move { drop(connection.await) });
            let request = head.body(Full::new(self.body)).unwrap();
            let (head, body) = requests.send_request(request).await.unwrap().into_parts();
            let (status, body) = (head.status, Body::Http1(body));
            return Response::new(self.form, status.as_u16(), head.headers, body, connection);
        }
        let (requests, connection) = h2::client::handshake(transport).await.unwrap();
        let connection = tokio::spawn(async move { drop(connection.await) });
        let request = head.body(()).unwrap();
        let mut requests = requests.ready().await.unwrap();
        let (answer, mut content) = requests.send_request(request, false).unwrap();
        content.send_data(self.body, true).unwrap();
        let (head, body) = answer.await.unwrap().into_parts();
        let (status, body) = (head.status, Body::H2(body));
        Response::new(self.form, status.as_u16(), head.headers, body, connection)
    }
}

impl Response {
    fn new(
        form: Form,
        status: u16,
        headers: HeaderMap,
        body: Body,
        connection: JoinHandle<()>,
    ) -> Self {
        // Trailers-only: the head has the status.
        let trailers = headers.contains_key("grpc-status").then(|| texts(&headers));
        Self {
            form,
            status,
            headers,
            body,
            read: BytesMut::new(),
            messages: VecDeque::new(),
            trailers,
            connection,
        }
    }

    /// Value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Next message; `None` at the end.
    pub async fn advance(&mut self) -> Option<Message> {
        within(DEADLINE, "the call has another message, or ends", async {
            while self.messages.is_empty() {
                if !self.read().await {
                    return None;
                }
            }
            self.messages.pop_front()
        })
        .await
    }

    /// Next message, which must exist.
    pub async fn next(&mut self) -> Message {
        let message = self.advance().await;
        message.unwrap_or_else(|| panic!("the call ended: {:?}", self.trailers))
    }

    /// Next events; other messages before them are dropped.
    pub async fn events(&mut self, count: usize) -> Vec<Message> {
        let mut events = Vec::with_capacity(count);
        while events.len() < count {
            let message = self.next().await;
            if message.content == "event" {
                events.push(message);
            }
        }
        events
    }

    /// Next message with this content; those before it are dropped.
    pub async fn until(&mut self, content: &str) -> Message {
        loop {
            let message = self.next().await;
            if message.content == content {
                return message;
            }
        }
    }

    /// Reads to the end; returns the messages, and the trailers.
    pub async fn read_to_end(&mut self) -> (Vec<Message>, HashMap<String, String>) {
        let mut messages = Vec::new();
        while let Some(message) = self.advance().await {
            messages.push(message);
        }
        assert!(self.read.is_empty(), "a call ends between messages");
        let trailers = self.trailers.clone();
        (messages, trailers.expect("the call has a status"))
    }

    /// Rest of a body that has no messages.
    pub async fn text(&mut self) -> String {
        let mut text = Vec::new();
        while let Some(bytes) = self.chunk().await {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).unwrap()
    }

    /// Reads until there is a message. Returns false at the end.
    async fn read(&mut self) -> bool {
        let Some(bytes) = self.chunk().await else {
            if let (Form::Grpc, Body::H2(body)) = (self.form, &mut self.body) {
                let trailers = body.trailers().await.unwrap();
                self.trailers = trailers.map(|t| texts(&t)).or(self.trailers.take());
            }
            return false;
        };
        self.read.extend_from_slice(&bytes);
        while let Some((flag, content)) = take_frame(&mut self.read) {
            match flag {
                0 => self.messages.push_back(Message::decode(content)),
                0x80 => {
                    assert_ne!(self.form, Form::Grpc);
                    let lines = std::str::from_utf8(&content).unwrap();
                    let pairs = lines.split_terminator("\r\n").map(|line| {
                        let (name, value) = line.split_once(':').unwrap();
                        (name.to_owned(), value.trim().to_owned())
                    });
                    self.trailers = Some(pairs.collect());
                }
                flag => panic!("flag {flag}"),
            }
        }
        true
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        match &mut self.body {
            Body::Http1(body) => {
                let frame = body.frame().await?.unwrap();
                Some(frame.into_data().unwrap())
            }
            Body::H2(body) => {
                let bytes = body.data().await?.unwrap();
                body.flow_control().release_capacity(bytes.len()).unwrap();
                Some(bytes)
            }
        }
    }
}

impl Drop for Response {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl Message {
    fn decode(bytes: Bytes) -> Self {
        let fields = Fields::decode(bytes);
        let content = CONTENTS.iter().zip(2..).find_map(|(name, number)| {
            let content = fields.bytes(number)?;
            Some((*name, Fields::decode(content)))
        });
        let (content, inner) = content.unwrap_or_default();
        Self {
            id: fields.text(1),
            content,
            fields: inner,
        }
    }

    /// Name of an event.
    pub fn name(&self) -> String {
        assert_eq!(self.content, "event");
        self.fields.text(1)
    }

    /// Subject of an event, or of what was removed.
    pub fn subject(&self) -> String {
        self.fields
            .text(if self.content == "event" { 2 } else { 1 })
    }

    /// Payload of an event.
    pub fn data(&self) -> Bytes {
        assert_eq!(self.content, "event");
        self.fields.bytes(3).unwrap_or_default()
    }

    /// Payload of an event that is a number.
    pub fn number(&self) -> u64 {
        let data = self.data();
        std::str::from_utf8(&data).unwrap().parse().unwrap()
    }

    /// Reason of a gap or a close.
    pub fn reason(&self) -> String {
        self.fields.text(1)
    }

    /// Number of missing events of a gap, `retry` of a close.
    pub fn second(&self) -> Option<u64> {
        self.fields.number(2)
    }

    /// `retry` of the first message, `expires` of a renewal.
    pub fn first(&self) -> Option<u64> {
        self.fields.number(1)
    }
}

impl Fields {
    fn decode(mut bytes: Bytes) -> Self {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(varint(&mut bytes)),
                2 => {
                    let length = varint(&mut bytes);
                    Field::Bytes(bytes.split_to(usize::try_from(length).unwrap()))
                }
                kind => panic!("wire type {kind}"),
            };
            fields.push((key >> 3, field));
        }
        Self(fields)
    }

    fn find(&self, number: u64) -> Option<&Field> {
        let found = self.0.iter().find(|(known, _)| *known == number);
        found.map(|(_, field)| field)
    }

    fn bytes(&self, number: u64) -> Option<Bytes> {
        match self.find(number)? {
            Field::Bytes(bytes) => Some(bytes.clone()),
            Field::Number(_) => None,
        }
    }

    fn text(&self, number: u64) -> String {
        let bytes = self.bytes(number).unwrap_or_default();
        String::from_utf8(bytes.to_vec()).unwrap()
    }

    fn number(&self, number: u64) -> Option<u64> {
        match self.find(number)? {
            Field::Number(value) => Some(*value),
            Field::Bytes(_) => None,
        }
    }
}

/// Message with its head.
pub fn framed(flag: u8, message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[flag][..], &length, message].concat().into()
}

/// `SubscribeRequest`.
pub fn request(path: &str, last_event_id: &str) -> Vec<u8> {
    let mut message = Vec::new();
    for (key, text) in [(0x0a, path), (0x12, last_event_id)] {
        if text.is_empty() {
            continue;
        }
        message.push(key);
        let mut length = text.len();
        while length >= 0x80 {
            message.push(length as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(text.as_bytes());
    }
    message
}

/// Takes the first frame out, if it is complete: its flag and content.
fn take_frame(read: &mut BytesMut) -> Option<(u8, Bytes)> {
    let head = read.get(1..5)?;
    let length = u32::from_be_bytes(head.try_into().unwrap()) as usize;
    if read.len() < 5 + length {
        return None;
    }
    let flag = read.get_u8();
    read.advance(4);
    Some((flag, read.split_to(length).freeze()))
}

fn varint(bytes: &mut Bytes) -> u64 {
    let (mut value, mut shift) = (0, 0);
    loop {
        let byte = bytes.get_u8();
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return value;
        }
        shift += 7;
    }
}

fn texts(headers: &HeaderMap) -> HashMap<String, String> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
        .collect()
}
