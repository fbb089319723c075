//! One HTTP/2 connection with prior knowledge, and the clients on it.

use std::ops::Range;
use std::sync::Arc;

use h2::client::{Builder, SendRequest};
use hyper::{Request, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::crowd::Crowd;
use super::endpoint::Endpoint;
use super::meter::Tally;
use crate::Fallible;
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
        let mut requests = connect(&crowd.endpoint, &mut tasks).await?;
        drop(connecting);
        for client in clients.clone() {
            let started = stamp::now();
            requests = requests.ready().await?;
            let response = requests.send_request(request(&crowd, client)?, true)?.0;
            asked += 1;
            tasks.spawn(read(response, started, Arc::clone(&crowd), client));
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

async fn connect(
    endpoint: &Endpoint,
    tasks: &mut JoinSet<()>,
) -> Fallible<SendRequest<bytes::Bytes>> {
    let socket = endpoint.connect().await?;
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
    Ok(requests)
}

fn request(crowd: &Crowd, client: usize) -> Fallible<Request<()>> {
    let uri = format!(
        "http://{}{}",
        crowd.endpoint.authority(),
        crowd.endpoint.path(client % crowd.groups)
    );
    let mut request = Request::get(uri).header(header::ACCEPT, "text/event-stream");
    if let Some(token) = crowd.endpoint.token(client) {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some(id) = crowd.visit.last_id(client) {
        request = request.header("last-event-id", id);
    }
    Ok(request.body(())?)
}

async fn read(
    response: h2::client::ResponseFuture,
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
        let mut events = crowd.visit.reader();
        while let Some(data) = body.data().await {
            let data = data?;
            let now = stamp::now();
            meter.update(|_, tally: &mut Tally| {
                tally.read(data.len());
                if !std::mem::replace(&mut opened, true) {
                    tally.open(started, now);
                }
                events.push(&data, &mut |seen| tally.see(seen, now));
            });
            crowd.visit.remember(client, &events);
            body.flow_control().release_capacity(data.len())?;
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
