//! The bare send loop: the least work a server can do for an event stream.
//!
//! It is the limit that the sidecar is compared with. One thread runs one epoll loop. It reads
//! messages from NATS with a parser of its own ([`nats`]), and accepts HTTP/1.1 connections.
//!
//! An HTTP/1.1 connection sends its request once; the path selects a subject. Afterwards the
//! connection is a socket in the list of its subject, and every frame for the subject is one `send`
//! of bytes that were prepared once. Frames that are ready together leave together. There are no
//! timers, no heartbeats and no limits.
//!
//! With `--keep` the loop keeps all frames in memory for the scenario *replay*. A client that
//! sends any `Last-Event-ID` then receives every frame after the first one of its subject.

mod http2;
mod nats;
mod socket;

use std::collections::HashMap;
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use rustls::ServerConfig;
use socket2::{Domain, Type};

use crate::Fallible;
use crate::stage::sidecar;
use http2::Http2;
use nats::Feed;
use socket::Socket;

/// Options of the bare loop.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// NATS server to read from
    #[arg(long)]
    nats: String,
    /// Keep all events in memory, for clients that return
    #[arg(long)]
    keep: bool,
    /// Certificate (PEM), to serve TLS
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, requires = "certificate")]
    key: Option<PathBuf>,
}

/// Serves messages on `load.>` and `core.>` on a free port until the process is killed.
pub(crate) fn run(options: &Options) -> Fallible<()> {
    let mut server = Bare::start(options)?;
    let mut events = Events::with_capacity(1024);
    loop {
        match server.poll.poll(&mut events, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            result => result?,
        }
        for event in &events {
            match event.token() {
                LISTENER => server.accept()?,
                FEED => server.deliver()?,
                Token(token) => server.serve(token - FIRST, event.is_writable())?,
            }
        }
    }
}

struct Bare {
    poll: Poll,
    listener: TcpListener,
    feed: Feed,
    keep: bool,
    tls: Option<Arc<ServerConfig>>,
    /// Connections over HTTP/2.
    http2: Vec<usize>,
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    subjects: HashMap<Vec<u8>, Subject>,
    /// Subjects with frames to send.
    dirty: Vec<Vec<u8>>,
}

struct Connection {
    socket: Socket,
    asked: bool,
    /// `None` on HTTP/1.1.
    http2: Option<Http2>,
    /// Bytes that the socket did not accept. Allocates nothing while the socket accepts everything.
    unsent: Vec<u8>,
    /// With `keep`: the subject, and the number of its bytes that were sent.
    reading: Option<(Vec<u8>, usize)>,
}

#[derive(Default)]
struct Subject {
    connections: Vec<usize>,
    /// Frames to send. Frames that are ready together are sent together.
    frames: Vec<u8>,
    /// The same events for HTTP/2, if there are connections.
    events: Vec<u8>,
    /// With `keep`: all frames, and the length of the first one.
    kept: Vec<u8>,
    first: usize,
}

impl Bare {
    fn start(options: &Options) -> Fallible<Self> {
        let tls = options.certificate.as_deref().zip(options.key.as_deref());
        let tls = tls.map(|(certificate, key)| socket::tls(certificate, key));
        let poll = Poll::new()?;
        let socket = socket2::Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let mut feed = Feed::subscribe(&options.nats, &["load.>", "core.>"])?;
        poll.registry()
            .register(feed.socket(), FEED, Interest::READABLE)?;
        let address = listener.local_addr()?;
        eprintln!(
            "{}",
            serde_json::json!({ "message": "listening", "address": address.to_string() })
        );
        Ok(Self {
            poll,
            listener,
            feed,
            keep: options.keep,
            tls: tls.transpose()?,
            http2: Vec::new(),
            connections: Vec::new(),
            free: Vec::new(),
            subjects: HashMap::new(),
            dirty: Vec::new(),
        })
    }

    fn accept(&mut self) -> Fallible<()> {
        loop {
            let socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nodelay(true)?;
            let mut socket = Socket::new(socket, self.tls.as_ref())?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll.registry().register(
                socket.source(),
                Token(FIRST + index),
                Interest::READABLE,
            )?;
            self.connections[index] = Some(Connection {
                socket,
                asked: false,
                http2: None,
                unsent: Vec::new(),
                reading: None,
            });
        }
    }

    /// Handles a connection that is readable, closed or writable again.
    fn serve(&mut self, index: usize, writable: bool) -> Fallible<()> {
        // Closed by an earlier event of the same batch.
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let mut alive = true;
        if writable && (connection.socket.is_waiting() || !connection.unsent.is_empty()) {
            alive = connection.flush(&self.poll, index)?;
        }
        if alive
            && writable
            && let Some((subject, _)) = &connection.reading
        {
            let kept = self
                .subjects
                .get(subject)
                .map_or(&[][..], |subject| &subject.kept);
            alive = connection.catch_up(kept, &self.poll, index)?;
        }
        let mut request = [0; 2048];
        while alive {
            match connection.socket.read(&mut request) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Ok(0) | Err(_) => alive = false,
                Ok(read) if connection.http2.is_some() => {
                    alive = connection.serve_http2(&request[..read], &self.poll, index)?;
                }
                Ok(read) if request[..read].starts_with(http2::PREFACE) => {
                    connection.http2 = Some(Http2::default());
                    self.http2.push(index);
                    let rest = &request[http2::PREFACE.len()..read];
                    alive = connection.send(&http2::settings(), &self.poll, index)?
                        && connection.serve_http2(rest, &self.poll, index)?;
                }
                Ok(read) if !connection.asked => {
                    // The clients of this tool send their request in one piece.
                    let text = std::str::from_utf8(&request[..read])?;
                    let path = text.split(' ').nth(1).unwrap_or("");
                    let Some(name) = sidecar::subject(path).map(String::into_bytes) else {
                        break;
                    };
                    let returns = text.contains("\r\nlast-event-id:");
                    connection.asked = true;
                    alive = connection.send(HEAD, &self.poll, index)?;
                    let subject = self.subjects.entry(name.clone()).or_default();
                    subject.connections.push(index);
                    if self.keep && alive {
                        let begin = if returns {
                            subject.first
                        } else {
                            subject.kept.len()
                        };
                        connection.reading = Some((name, begin));
                        alive = connection.catch_up(&subject.kept, &self.poll, index)?;
                    }
                }
                Ok(_) => {}
            }
        }
        self.close(index);
        Ok(())
    }

    fn close(&mut self, index: usize) {
        self.connections[index] = None;
        self.free.push(index);
        self.http2.retain(|&other| other != index);
        for subject in self.subjects.values_mut() {
            subject.connections.retain(|&other| other != index);
        }
    }

    /// Sends all messages that NATS has delivered, with one write for each connection.
    fn deliver(&mut self) -> Fallible<()> {
        let mut out = Vec::new();
        while self.feed.fill()? {
            while let Some((name, payload)) = self.feed.next()? {
                let is_new = self.keep || !self.http2.is_empty();
                if is_new && !self.subjects.contains_key(name) {
                    self.subjects.insert(name.to_vec(), Subject::default());
                }
                let Some(subject) = self.subjects.get_mut(name) else {
                    continue;
                };
                let is_read = !subject.connections.is_empty() || !self.http2.is_empty();
                if is_read && subject.frames.is_empty() && subject.events.is_empty() {
                    self.dirty.push(name.to_vec());
                }
                if !self.http2.is_empty() {
                    event(&mut subject.events, payload);
                }
                if !subject.connections.is_empty() {
                    frame(&mut subject.frames, payload);
                }
                if self.keep {
                    frame(&mut subject.kept, payload);
                    if subject.first == 0 {
                        subject.first = subject.kept.len();
                    }
                }
            }
            let mut gone = Vec::new();
            for name in self.dirty.drain(..) {
                let Some(subject) = self.subjects.get_mut(&name) else {
                    continue;
                };
                for &index in &subject.connections {
                    let Some(connection) = self.connections[index].as_mut() else {
                        continue;
                    };
                    let alive = match self.keep {
                        true => connection.catch_up(&subject.kept, &self.poll, index)?,
                        false => connection.send(&subject.frames, &self.poll, index)?,
                    };
                    if !alive {
                        gone.push(index);
                    }
                }
                subject.frames.clear();
                for &index in &self.http2 {
                    let Some(connection) = self.connections[index].as_mut() else {
                        continue;
                    };
                    out.clear();
                    if let Some(http2) = &connection.http2 {
                        http2.send(&subject.events, &mut out);
                    }
                    if !connection.send(&out, &self.poll, index)? {
                        gone.push(index);
                    }
                }
                subject.events.clear();
            }
            for index in gone {
                self.close(index);
            }
        }
        Ok(())
    }
}

// === impl Connection ===

impl Connection {
    /// Sends `bytes` with one `send`. Returns false if the connection must be closed.
    fn send(&mut self, bytes: &[u8], poll: &Poll, index: usize) -> Fallible<bool> {
        if !self.unsent.is_empty() {
            self.unsent.extend_from_slice(bytes);
            return Ok(self.unsent.len() <= UNSENT_MAX);
        }
        let sent = match self.socket.write(bytes) {
            Ok(sent) => sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(_) => return Ok(false),
        };
        self.unsent.extend_from_slice(&bytes[sent..]);
        if sent < bytes.len() || self.socket.is_waiting() {
            self.watch_writable(poll, index)?;
        }
        Ok(true)
    }

    /// Sends frames of the subject until the socket is full, in large writes.
    ///
    /// Returns false if the connection must be closed.
    fn catch_up(&mut self, kept: &[u8], poll: &Poll, index: usize) -> Fallible<bool> {
        let Some((_, sent)) = self.reading.as_mut().filter(|_| self.unsent.is_empty()) else {
            return Ok(true);
        };
        while *sent < kept.len() {
            match self.socket.write(&kept[*sent..]) {
                Ok(taken) => *sent += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.watch_writable(poll, index)?;
                    return Ok(true);
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Reads frames of an HTTP/2 client, and answers them.
    fn serve_http2(&mut self, bytes: &[u8], poll: &Poll, index: usize) -> Fallible<bool> {
        let answer = self.http2.as_mut().map(|http2| http2.read(bytes));
        match answer {
            Some(answer) if !answer.is_empty() => self.send(&answer, poll, index),
            _ => Ok(true),
        }
    }

    fn watch_writable(&mut self, poll: &Poll, index: usize) -> Fallible<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(poll
            .registry()
            .reregister(self.socket.source(), Token(FIRST + index), interest)?)
    }

    fn flush(&mut self, poll: &Poll, index: usize) -> Fallible<bool> {
        let bytes = std::mem::take(&mut self.unsent);
        poll.registry().reregister(
            self.socket.source(),
            Token(FIRST + index),
            Interest::READABLE,
        )?;
        self.send(&bytes, poll, index)
    }
}

/// Appends one event in the sidecar's format, in one chunk.
fn frame(frames: &mut Vec<u8>, payload: &[u8]) {
    let length = b"data: ".len() + payload.len() + ID.len();
    // Writing into a vector cannot fail.
    write!(frames, "{length:x}\r\n").ok();
    event(frames, payload);
    frames.extend_from_slice(b"\r\n");
}

/// Appends one event without a chunk.
fn event(events: &mut Vec<u8>, payload: &[u8]) {
    events.extend_from_slice(b"data: ");
    events.extend_from_slice(payload);
    events.extend_from_slice(ID);
}

const LISTENER: Token = Token(0);
const FEED: Token = Token(1);
/// The token of the first connection.
const FIRST: usize = 2;
/// Unsent bytes at which a client is disconnected: maximum memory for each client that stalls.
const UNSENT_MAX: usize = 16 * 1024 * 1024;
/// An `id:` field as long as a real one, so that the bytes on the wire are comparable.
const ID: &[u8] = b"\nid: 000000-00000000-0000000\n\n";
/// Head and first chunk, as long as those of the sidecar.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store, no-transform\r\n\
x-accel-buffering: no\r\nconnection: close\r\ntransfer-encoding: chunked\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n\
29\r\nretry: 3000\nid: 000000-00000000-0000000\n\n\r\n";
