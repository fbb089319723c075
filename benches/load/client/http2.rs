//! One connection over HTTP/2 with prior knowledge, and its many clients.

use std::ops::Range;
use std::sync::Arc;

use h2::client::{Builder, SendRequest};
use hyper::{Request, header};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::endpoint::Endpoint;
use super::meter::{Meter, Tally};
use crate::Fallible;
use crate::wire::events::EventReader;
use crate::wire::http1::Fault;
use crate::wire::stamp;

/// Connects and opens one event stream for each of `clients`, whose subjects are numbered modulo `groups`.
pub(super) async fn follow(
    endpoint: Arc<Endpoint>,
    clients: Range<usize>,
    groups: usize,
    meter: Arc<Meter>,
    connecting: OwnedSemaphorePermit,
) {
    let mut asked = 0;
    let mut tasks = JoinSet::new();
    let result = async {
        let mut requests = connect(&endpoint, &mut tasks).await?;
        drop(connecting);
        for client in clients.clone() {
            let started = stamp::now();
            requests = requests.ready().await?;
            let response = requests.send_request(request(&endpoint, client % groups)?, true)?.0;
            asked += 1;
            tasks.spawn(read(response, started, Arc::clone(&meter)));
        }
        while tasks.join_next().await.is_some() {}
        Fallible::Ok(())
    };
    if let Err(problem) = result.await {
        for _ in asked..clients.len() {
            meter.update(|_, tally| tally.close(false, &problem));
        }
    }
}

async fn connect(endpoint: &Endpoint, tasks: &mut JoinSet<()>) -> Fallible<SendRequest<bytes::Bytes>> {
    let socket = endpoint.connect().await?;
    let (requests, connection) = Builder::new()
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // A burst of small frames is what this tool is for: without it h2 would end the connection with ENHANCE_YOUR_CALM.
        .data_frame_budget(CONNECTION_WINDOW as usize)
        .handshake(socket)
        .await?;
    tasks.spawn(async {
        // How the connection ended reaches every client as the end of its own event stream.
        connection.await.ok();
    });
    Ok(requests)
}

fn request(endpoint: &Endpoint, n: usize) -> Fallible<Request<()>> {
    let uri = format!("http://{}{}", endpoint.authority(), endpoint.path(n));
    Ok(Request::get(uri).header(header::ACCEPT, "text/event-stream").body(())?)
}

async fn read(response: h2::client::ResponseFuture, started: u64, meter: Arc<Meter>) {
    let mut opened = false;
    let result = async {
        let response = response.await?;
        if response.status() != 200 {
            return Fallible::<()>::Err(Fault::Status(response.status().as_u16()).into());
        }
        let mut body = response.into_body();
        let mut events = EventReader::new();
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
/// 64 MiB: the window of one connection never holds back the sum of its clients.
const CONNECTION_WINDOW: u32 = 1 << 26;
