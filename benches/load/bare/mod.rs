//! The bare send loop: the least that a server can do for an event stream, as the limit to compare with.
//!
//! One thread, one epoll. A connection is asked for its path once; afterwards it is a socket in a list, and every
//! frame for its subject is one `send` of bytes that were prepared once. No timers, no heartbeats, no limits. Resuming
//! means: whoever comes with an id, whichever, gets all that was kept behind the first event of its subject.

mod nats;

use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use socket2::{Domain, Socket, Type};

use crate::Fallible;
use crate::stage::sidecar;
use nats::Feed;

/// Serves on a free port what NATS sends on `load.>` and `core.>`, until it is killed. With `keep` it forgets nothing.
pub(crate) fn run(nats: &str, keep: bool) -> Fallible<()> {
    let mut server = Bare::start(nats, keep)?;
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
    connections: Vec<Option<Connection>>,
    free: Vec<usize>,
    subjects: HashMap<Vec<u8>, Subject>,
    /// Subjects with frames to send.
    dirty: Vec<Vec<u8>>,
}

struct Connection {
    socket: TcpStream,
    asked: bool,
    /// What the socket did not take; without memory as long as it takes everything.
    unsent: Vec<u8>,
    /// Where frames are kept: the subject, and how many of its bytes were sent.
    reading: Option<(Vec<u8>, usize)>,
}

#[derive(Default)]
struct Subject {
    connections: Vec<usize>,
    /// Frames that are ready together go out together.
    frames: Vec<u8>,
    /// Where frames are kept: all of them so far, and how many bytes the first of them has.
    kept: Vec<u8>,
    first: usize,
}

impl Bare {
    fn start(nats: &str, keep: bool) -> Fallible<Self> {
        let poll = Poll::new()?;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        socket.listen(4096)?;
        socket.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(socket.into());
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        let mut feed = Feed::subscribe(nats, &["load.>", "core.>"])?;
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
            keep,
            connections: Vec::new(),
            free: Vec::new(),
            subjects: HashMap::new(),
            dirty: Vec::new(),
        })
    }

    fn accept(&mut self) -> Fallible<()> {
        loop {
            let mut socket = match self.listener.accept() {
                Ok((socket, _)) => socket,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            socket.set_nodelay(true)?;
            let index = self.free.pop().unwrap_or_else(|| {
                self.connections.push(None);
                self.connections.len() - 1
            });
            self.poll
                .registry()
                .register(&mut socket, Token(FIRST + index), Interest::READABLE)?;
            self.connections[index] = Some(Connection {
                socket,
                asked: false,
                unsent: Vec::new(),
                reading: None,
            });
        }
    }

    /// A connection has sent something, has gone, or takes bytes again.
    fn serve(&mut self, index: usize, writable: bool) -> Fallible<()> {
        // Gone in the same round of events.
        let Some(connection) = self.connections.get_mut(index).and_then(Option::as_mut) else {
            return Ok(());
        };
        let mut alive = true;
        if writable && !connection.unsent.is_empty() {
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
        for subject in self.subjects.values_mut() {
            subject.connections.retain(|&other| other != index);
        }
    }

    /// Everything that NATS has sent so far, one write for each connection that it concerns.
    fn deliver(&mut self) -> Fallible<()> {
        while self.feed.fill()? {
            while let Some((name, payload)) = self.feed.next()? {
                if self.keep && !self.subjects.contains_key(name) {
                    self.subjects.insert(name.to_vec(), Subject::default());
                }
                let Some(subject) = self.subjects.get_mut(name) else {
                    continue;
                };
                if !subject.connections.is_empty() && subject.frames.is_empty() {
                    self.dirty.push(name.to_vec());
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
    /// One `send`; false if the connection is of no use any more.
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
        if sent < bytes.len() {
            self.unsent.extend_from_slice(&bytes[sent..]);
            self.tell_when_writable(poll, index)?;
        }
        Ok(true)
    }

    /// As much of what its subject keeps as the socket takes, in large writes; false as with [`Connection::send`].
    fn catch_up(&mut self, kept: &[u8], poll: &Poll, index: usize) -> Fallible<bool> {
        let Some((_, sent)) = self.reading.as_mut().filter(|_| self.unsent.is_empty()) else {
            return Ok(true);
        };
        while *sent < kept.len() {
            match self.socket.write(&kept[*sent..]) {
                Ok(taken) => *sent += taken,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.tell_when_writable(poll, index)?;
                    return Ok(true);
                }
                Err(_) => return Ok(false),
            }
        }
        Ok(true)
    }

    fn tell_when_writable(&mut self, poll: &Poll, index: usize) -> Fallible<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        Ok(poll
            .registry()
            .reregister(&mut self.socket, Token(FIRST + index), interest)?)
    }

    fn flush(&mut self, poll: &Poll, index: usize) -> Fallible<bool> {
        let bytes = std::mem::take(&mut self.unsent);
        poll.registry()
            .reregister(&mut self.socket, Token(FIRST + index), Interest::READABLE)?;
        self.send(&bytes, poll, index)
    }
}

/// One event as the sidecar writes it, in one chunk.
fn frame(frames: &mut Vec<u8>, payload: &[u8]) {
    let length = b"data: ".len() + payload.len() + ID.len();
    // Writing into a vector cannot fail.
    write!(frames, "{length:x}\r\ndata: ").ok();
    frames.extend_from_slice(payload);
    frames.extend_from_slice(ID);
    frames.extend_from_slice(b"\r\n");
}

const LISTENER: Token = Token(0);
const FEED: Token = Token(1);
/// The token of the first connection.
const FIRST: usize = 2;
/// A client that is so far behind is given up; max memory = this x clients that do not read.
const UNSENT_MAX: usize = 16 * 1024 * 1024;
/// As long as a real one, so that the bytes on the wire are comparable.
const ID: &[u8] = b"\nid: 000000-00000000-0000\n\n";
/// Head and first chunk, of the size that the sidecar sends.
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store, no-transform\r\n\
x-accel-buffering: no\r\nconnection: close\r\ntransfer-encoding: chunked\r\ndate: Thu, 01 Jan 1970 00:00:00 GMT\r\n\r\n\
26\r\nretry: 3000\nid: 000000-00000000-0000\n\n\r\n";
