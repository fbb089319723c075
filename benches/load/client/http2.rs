//! One HTTP/2 connection, with prior knowledge or over TLS, and the clients on it.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::ext::Protocol;
use hyper::{Method, Request, header};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::crowd::Crowd;
use super::meter::Tally;
use super::request::{self, PONG, SUBSCRIBE};
use crate::Fallible;
use crate::wire::body::Framing;
use crate::wire::http1::Fault;
use crate::wire::stamp;

/// Connects and opens an event stream for each of `clients`.
pub(super) async fn follow(
    crowd: Arc<Crowd>,
    clients: Range<usize>,
    connecting: OwnedSemaphorePermit,
) {
    let mut asked = 0;
    let mut tasks = JoinSet::new();
    let result = async {
        let mut requests = connect(&crowd, &mut tasks).await?;
        drop(connecting);
        for client in clients.clone() {
            let started = stamp::now();
            requests = requests.ready().await?;
            let (request, message) = request(&crowd, client)?;
            let is_end = !matches!(crowd.framing, Framing::WebSocket | Framing::Grpc);
            let (response, mut requesting) = requests.send_request(request, is_end)?;
            asked += 1;
            if crowd.framing == Framing::Grpc {
                requesting.send_data(message, true)?;
            }
            let crowd = Arc::clone(&crowd);
            tasks.spawn(read(response, requesting, started, crowd, client));
        }
        while tasks.join_next().await.is_some() {}
        Fallible::Ok(())
    };
    if let Err(problem) = result.await {
        for _ in asked..clients.len() {
            crowd.meter.update(|_, tally| tally.close(false, &problem));
        }
    }
}

async fn connect(crowd: &Crowd, tasks: &mut JoinSet<()>) -> Fallible<SendRequest<Bytes>> {
    let endpoint = &crowd.endpoint;
    let socket = endpoint.connect().await?;
    match endpoint.tls() {
        Some(tls) => {
            let socket = tls.http2(socket).await?;
            crowd.count_handshake(socket.get_ref().1.handshake_kind());
            handshake(crowd, socket, tasks).await
        }
        None => handshake(crowd, socket, tasks).await,
    }
}

async fn handshake(
    crowd: &Crowd,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &mut JoinSet<()>,
) -> Fallible<SendRequest<Bytes>> {
    let (requests, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // Bursts of small frames are the load of this tool; by default h2 would end the
        // connection with ENHANCE_YOUR_CALM.
        .data_frame_budget(CONNECTION_WINDOW as usize)
        .handshake(socket)
        .await?;
    tasks.spawn(async {
        // Every client learns of an error as the end of its own event stream.
        connection.await.ok();
    });
    if crowd.framing == Framing::WebSocket {
        // The settings of the server allow the request (RFC 8441, 3).
        let mut left = SETTINGS_CHECKS;
        while !requests.is_extended_connect_protocol_enabled() {
            left -= 1;
            if left == 0 {
                return Err("the server offers no WebSocket over HTTP/2".into());
            }
            tokio::time::sleep(SETTINGS_INTERVAL).await;
        }
    }
    Ok(requests)
}

/// Returns the request of a client, and its message if it is a call.
fn request(crowd: &Crowd, client: usize) -> Fallible<(Request<()>, Bytes)> {
    let path = crowd.endpoint.path(client % crowd.groups);
    let last_id = crowd.visit.last_id(client);
    let uri = |path: &str| format!("http://{}{path}", crowd.endpoint.authority());
    let mut request = Request::builder().uri(uri(&path));
    let mut message = Vec::new();
    request = match crowd.framing {
        Framing::Sse => request.header(header::ACCEPT, "text/event-stream"),
        Framing::Ndjson => request.header(header::ACCEPT, "application/x-ndjson"),
        Framing::WebSocket => request
            .method(Method::CONNECT)
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .extension(Protocol::from_static("websocket")),
        Framing::Grpc => {
            message = request::subscribe_message(&path, last_id.as_deref());
            request
                .uri(uri(SUBSCRIBE))
                .method(Method::POST)
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
        }
    };
    if let Some(token) = crowd.endpoint.token(client) {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some(coding) = crowd.compression {
        request = request.header(header::ACCEPT_ENCODING, coding.as_str());
    }
    if let Some(id) = last_id.filter(|_| message.is_empty()) {
        request = request.header("last-event-id", id);
    }
    Ok((request.body(())?, message.into()))
}

async fn read(
    response: ResponseFuture,
    mut requesting: SendStream<Bytes>,
    started: u64,
    crowd: Arc<Crowd>,
    client: usize,
) {
    let meter = &crowd.meter;
    let mut opened = false;
    let result = async {
        let response = response.await?;
        if response.status() != 200 {
            return Fallible::<()>::Err(Fault::Status(response.status().as_u16()).into());
        }
        let mut body = response.into_body();
        let mut reader = crowd.reader(client);
        while let Some(data) = body.data().await {
            let data = data?;
            let now = stamp::now();
            meter.update(|_, tally: &mut Tally| {
                tally.read(data.len());
                if !std::mem::replace(&mut opened, true) {
                    tally.open(started, now);
                }
                reader.push(&data, &mut |seen| tally.see(seen, now));
            });
            crowd.visit.remember(client, &reader);
            body.flow_control().release_capacity(data.len())?;
            for _ in 0..reader.take_pings() {
                requesting.send_data(Bytes::from_static(PONG), false)?;
            }
        }
        Err("the event stream ended".into())
    };
    if let Err(problem) = result.await {
        meter.update(|_, tally| tally.close(opened, &problem));
    }
}

/// 1 MiB: a second of 100 events of 10 KB.
const STREAM_WINDOW: u32 = 1 << 20;
/// 64 MiB: the window of a connection never limits the sum of its clients.
const CONNECTION_WINDOW: u32 = 1 << 26;
/// The settings of the server arrive within five seconds.
const SETTINGS_CHECKS: usize = 5_000;
const SETTINGS_INTERVAL: Duration = Duration::from_millis(1);
