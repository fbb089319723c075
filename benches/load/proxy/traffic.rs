//! Clients of a proxy: each sends a request, reads the whole response, and sends the next one.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use hdrhistogram::Histogram;
use hyper::Request;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::Fallible;
use crate::options::Protocol;

/// Requests that all clients send.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) path: &'static str,
    /// Bytes of the body; 0: GET.
    pub(super) body: usize,
}

/// Requests per second of all clients together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rate {
    /// So that neither proxy nor clients are busy.
    PerSecond(u32),
    /// Each client sends its next request at once.
    Saturated,
}

/// Counts of the clients.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) requests: u64,
    /// Microseconds from a request to the last byte of its response.
    pub(super) latency: Histogram<u64>,
}

/// Connected clients.
pub(super) struct Clients {
    links: Vec<Link>,
    kind: Kind,
    authority: String,
    /// Connections over HTTP/2.
    connections: JoinSet<()>,
}

/// Connection, or a share of one, of a client.
enum Link {
    Http1(Http1),
    Http2(SendRequest<Bytes>),
}

struct Http1 {
    socket: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

/// 32 clients: a browser has about six connections, and a pod several users at once.
const CLIENTS: usize = 32;
/// Clients on each HTTP/2 connection.
const STREAMS: usize = 8;
/// Larger than the responses: the windows of the clients never limit a proxy.
const WINDOW: u32 = 1 << 24;

impl Tally {
    pub(super) fn new() -> Fallible<Self> {
        Ok(Self {
            requests: 0,
            latency: Histogram::new(3)?,
        })
    }

    pub(super) fn add(&mut self, other: &Self) -> Fallible<()> {
        self.requests += other.requests;
        self.latency.add(&other.latency)?;
        Ok(())
    }
}

impl Clients {
    /// Connects all clients. Each sends one request, which is not counted.
    pub(super) async fn connect(
        address: SocketAddr,
        protocol: Protocol,
        kind: Kind,
    ) -> Fallible<Self> {
        let mut clients = Self {
            links: Vec::new(),
            kind,
            authority: address.to_string(),
            connections: JoinSet::new(),
        };
        while clients.links.len() < CLIENTS {
            let socket = TcpStream::connect(address).await?;
            socket.set_nodelay(true)?;
            match protocol {
                Protocol::H1 => clients.links.push(Link::Http1(Http1 {
                    socket,
                    request: http1_request(kind, &clients.authority),
                    buffer: vec![0; 128 << 10],
                })),
                Protocol::H2 => {
                    let (requests, connection) = h2::client::Builder::new()
                        .enable_push(false)
                        .initial_window_size(WINDOW)
                        .initial_connection_window_size(WINDOW)
                        .handshake(socket)
                        .await?;
                    // Every client notices the end of the connection itself.
                    clients.connections.spawn(async { drop(connection.await) });
                    let links = (0..STREAMS).map(|_| Link::Http2(requests.clone()));
                    clients.links.extend(links);
                }
            }
        }
        let warm_up = Duration::from_millis(50);
        clients.run(Rate::Saturated, warm_up).await?;
        Ok(clients)
    }

    /// Sends requests for this time, and returns when all responses are read.
    pub(super) async fn run(&mut self, rate: Rate, time: Duration) -> Fallible<Tally> {
        let began = Instant::now();
        let mut tasks = JoinSet::new();
        let count = self.links.len();
        for (number, link) in self.links.drain(..).enumerate() {
            let pause = match rate {
                Rate::PerSecond(rate) => {
                    Some(Duration::from_secs_f64(count as f64 / f64::from(rate)))
                }
                Rate::Saturated => None,
            };
            let first = pause.map(|pause| pause.mul_f64(number as f64 / count as f64));
            let first = began + first.unwrap_or_default();
            let authority = self.authority.clone();
            tasks.spawn(client(
                link,
                self.kind,
                authority,
                first,
                pause,
                began + time,
            ));
        }
        let mut tally = Tally::new()?;
        while let Some(ended) = tasks.join_next().await {
            let (link, own) = ended??;
            self.links.push(link);
            tally.add(&own)?;
        }
        Ok(tally)
    }
}

/// Sends requests until `end`: one every `pause` from `next` on, or all after each other.
async fn client(
    mut link: Link,
    kind: Kind,
    authority: String,
    mut next: Instant,
    pause: Option<Duration>,
    end: Instant,
) -> Fallible<(Link, Tally)> {
    let mut tally = Tally::new()?;
    loop {
        if let Some(pause) = pause {
            sleep_until(next.into()).await;
            next += pause;
        }
        let sent = Instant::now();
        if sent >= end {
            return Ok((link, tally));
        }
        match &mut link {
            Link::Http1(link) => link.exchange().await?,
            Link::Http2(link) => exchange(link, kind, &authority).await?,
        }
        tally.requests += 1;
        let latency = u64::try_from(sent.elapsed().as_micros())?;
        tally.latency.record(latency.max(1))?;
    }
}

fn http1_request(kind: Kind, authority: &str) -> Vec<u8> {
    let method = if kind.body > 0 { "POST" } else { "GET" };
    let mut head = format!("{method} {} HTTP/1.1\r\nhost: {authority}\r\n", kind.path);
    for (name, value) in FIELDS {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if kind.body > 0 {
        head.push_str(&format!("content-length: {}\r\n", kind.body));
    }
    head.push_str("\r\n");
    let mut request = head.into_bytes();
    request.resize(request.len() + kind.body, b'x');
    request
}

impl Http1 {
    async fn exchange(&mut self) -> Fallible<()> {
        self.socket.write_all(&self.request).await?;
        let mut filled = 0;
        let mut length = None;
        while length.is_none_or(|length| filled < length) {
            let read = self.socket.read(&mut self.buffer[filled..]).await?;
            if read == 0 {
                return Err("the proxy closed the connection".into());
            }
            filled += read;
            if length.is_none() {
                length = response_length(&self.buffer[..filled])?;
            }
        }
        Ok(())
    }
}

/// Returns the length of a response, head and body, if its head is complete.
fn response_length(bytes: &[u8]) -> Fallible<Option<usize>> {
    let Some(end) = memchr::memmem::find(bytes, b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end])?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("the proxy answered {head}").into());
    }
    let is_length = |name: &str| name.eq_ignore_ascii_case("content-length");
    let fields = head.split("\r\n").filter_map(|line| line.split_once(": "));
    let length = fields.clone().find(|(name, _)| is_length(name));
    let (_, length) = length.ok_or("the response has no length")?;
    Ok(Some(end + 4 + length.parse::<usize>()?))
}

async fn exchange(link: &mut SendRequest<Bytes>, kind: Kind, authority: &str) -> Fallible<()> {
    let uri = format!("http://{authority}{}", kind.path);
    let method = if kind.body > 0 { "POST" } else { "GET" };
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in FIELDS {
        request = request.header(name, value);
    }
    if kind.body > 0 {
        request = request.header("content-length", kind.body);
    }
    *link = link.clone().ready().await?;
    let (response, mut body) = link.send_request(request.body(())?, kind.body == 0)?;
    if kind.body > 0 {
        body.send_data(Bytes::from(vec![b'x'; kind.body]), true)?;
    }
    let response = response.await?;
    if response.status() != 200 {
        return Err(format!("the proxy answered {}", response.status()).into());
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    Ok(())
}

/// Fields that a browser sends.
const FIELDS: [(&str, &str); 5] = [
    (
        "user-agent",
        "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    ),
    (
        "accept",
        "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    ),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("cookie", "session=0123456789abcdef0123456789abcdef"),
];
