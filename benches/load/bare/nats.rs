//! The part of the NATS protocol that a subscriber needs: subscribe, read messages, answer pings.
//!
//! The parser is the cheapest one possible: messages are slices of the read buffer. It parses
//! `MSG`, `PING` and `-ERR`; messages with headers are an error, since the load tool sends none.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::ToSocketAddrs as _;

use mio::net::TcpStream;

use crate::Fallible;

/// A subscribed connection. Messages are slices of its read buffer.
pub(super) struct Feed {
    socket: TcpStream,
    buffer: Vec<u8>,
    /// Range of the buffer that is not consumed yet.
    begin: usize,
    end: usize,
}

impl Feed {
    /// Connects and subscribes. Returns after the server has confirmed both.
    pub(super) fn subscribe(url: &str, subjects: &[&str]) -> Fallible<Self> {
        let authority = url.trim_start_matches("nats://");
        let address = authority
            .to_socket_addrs()?
            .next()
            .ok_or("the NATS server has no address")?;
        let mut socket = std::net::TcpStream::connect(address)?;
        let mut hello = String::from(
            "CONNECT {\"verbose\":false,\"pedantic\":false,\"name\":\"load bare\"}\r\n",
        );
        for (id, subject) in subjects.iter().enumerate() {
            hello.push_str(&format!("SUB {subject} {}\r\n", id + 1));
        }
        hello.push_str("PING\r\n");
        socket.write_all(hello.as_bytes())?;
        let mut answer = Vec::new();
        while memchr::memmem::find(&answer, b"PONG\r\n").is_none() {
            let mut bytes = [0; 4096];
            let read = socket.read(&mut bytes)?;
            answer.extend_from_slice(&bytes[..read]);
            if read == 0 || memchr::memmem::find(&answer, b"-ERR").is_some() {
                return Err(format!(
                    "NATS rejects the connection: {}",
                    String::from_utf8_lossy(&answer)
                )
                .into());
            }
        }
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket: TcpStream::from_std(socket),
            buffer: vec![0; BUFFER_BYTES],
            begin: 0,
            end: 0,
        })
    }

    /// Returns the socket, to register it with epoll.
    pub(super) fn socket(&mut self) -> &mut TcpStream {
        &mut self.socket
    }

    /// Reads once. Returns false if nothing is available.
    pub(super) fn fill(&mut self) -> Fallible<bool> {
        self.buffer.copy_within(self.begin..self.end, 0);
        self.end -= self.begin;
        self.begin = 0;
        if self.end == self.buffer.len() {
            return Err("a message is larger than the buffer".into());
        }
        match self.socket.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err("NATS has closed the connection".into()),
            Ok(read) => {
                self.end += read;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns subject and payload of the next complete message.
    pub(super) fn next(&mut self) -> Fallible<Option<(&[u8], &[u8])>> {
        loop {
            let line_begin = self.begin;
            let Some(length) = memchr::memmem::find(&self.buffer[line_begin..self.end], b"\r\n")
            else {
                return Ok(None);
            };
            let line = &self.buffer[line_begin..line_begin + length];
            let payload_begin = line_begin + length + 2;
            if let Some(message) = line.strip_prefix(b"MSG ") {
                let (subject, size) = read_message(message).ok_or("invalid MSG line from NATS")?;
                let payload_end = payload_begin + size;
                if payload_end + 2 > self.end {
                    return Ok(None);
                }
                let subject = line_begin + 4..line_begin + 4 + subject;
                self.begin = payload_end + 2;
                return Ok(Some((
                    &self.buffer[subject],
                    &self.buffer[payload_begin..payload_end],
                )));
            }
            if line == b"PING" {
                self.socket.write_all(b"PONG\r\n")?;
            } else if line.starts_with(b"-ERR") || line.starts_with(b"HMSG") {
                return Err(String::from_utf8_lossy(line).into());
            }
            self.begin = payload_begin;
        }
    }
}

/// Returns the length of the subject and the size of the payload of `subject sid [reply] size`.
fn read_message(line: &[u8]) -> Option<(usize, usize)> {
    let subject = memchr::memchr(b' ', line)?;
    let size = memchr::memrchr(b' ', line)? + 1;
    Some((
        subject,
        std::str::from_utf8(&line[size..]).ok()?.parse().ok()?,
    ))
}

/// 2 MiB: holds the largest message (1 MiB by default) and a burst.
const BUFFER_BYTES: usize = 2 * 1024 * 1024;
