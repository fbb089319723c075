//! Collector of traces: accepts every export and keeps nothing.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::Fallible;

/// Starts the collector on a thread of its own, and returns its address. It ends with the process.
pub(crate) fn start() -> Fallible<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("collector".to_owned())
        .spawn(move || runtime.block_on(serve(listener)))?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener) -> Fallible<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (socket, _) = listener.accept().await?;
        let connection =
            http1::Builder::new().serve_connection(TokioIo::new(socket), service_fn(answer));
        // The sidecar closes its connections when it ends.
        tokio::spawn(async { connection.await.ok() });
    }
}

/// Answers with an empty message, which reports that all spans are accepted.
async fn answer(request: Request<Incoming>) -> Result<Response<Empty<Bytes>>, Infallible> {
    request.into_body().collect().await.ok();
    Ok(Response::new(Empty::new()))
}
