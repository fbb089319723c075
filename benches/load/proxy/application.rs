//! Application of both proxies: answers with as many bytes as the path says.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

use crate::Fallible;

/// 1 MiB: maximum size of a response.
const BYTES_MAX: usize = 1 << 20;

/// Starts the application on a thread of its own, and returns its address. It ends with the
/// process.
pub(super) fn start() -> Fallible<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::Builder::new()
        .name("application".to_owned())
        .spawn(move || runtime.block_on(serve(listener)))?;
    Ok(address)
}

async fn serve(listener: std::net::TcpListener) -> Fallible<()> {
    let listener = TcpListener::from_std(listener)?;
    let content = Bytes::from(vec![b'x'; BYTES_MAX]);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let content = content.clone();
        let service = service_fn(move |request| answer(request, content.clone()));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
        // A proxy closes its connections when it ends.
        tokio::spawn(async { connection.await.ok() });
    }
}

/// Answers after the last byte of the request. Paths are `/<bytes>` and `/cached/<bytes>`.
async fn answer(
    request: Request<Incoming>,
    content: Bytes,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    request.into_body().collect().await.ok();
    let bytes = path.rsplit('/').next().and_then(|text| text.parse().ok());
    let bytes = bytes.unwrap_or(0).min(BYTES_MAX);
    let mut response = Response::new(Full::new(content.slice(..bytes)));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    let cache = if path.starts_with("/cached/") {
        "public, max-age=3600"
    } else {
        "no-store"
    };
    headers.insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    Ok(response)
}
