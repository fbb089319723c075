//! Listeners of a shard: accept connections until the pod drains.
//!
//! [`serve`] is one task per listener and shard. Each accepted connection takes a permit of the
//! connection limiter and gets a task of its own (`connection_task`). At the start of the drain the
//! listener accepts what waits in the kernel's queue, so that the close resets no client.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::connection_task::{self, Drain};
use crate::http::context::Context;
use crate::http::request::rejection_code::RejectionCode;
use crate::lifecycle::shutdown::Token;
use crate::net::listener::Listener;
use crate::net::tls::Tls;

/// Serves one listener until `listening` is requested to end. Its connections hold `drain` until
/// they have ended.
pub async fn serve(
    context: Arc<Context>,
    mut listener: Listener,
    tls: Option<Tls>,
    mut listening: Token,
    drain: Drain,
) {
    let begin = |socket: TcpStream, remote: SocketAddr| {
        let Some(permit) = context.connection_limiter.acquire() else {
            return reset(&context, &socket);
        };
        let acceptor = tls.as_ref().map(Tls::acceptor);
        connection_task::serve(&context, socket, remote, permit, acceptor, drain.clone());
    };
    loop {
        tokio::select! {
            biased;
            () = listening.requested() => break,
            (socket, remote) = listener.accept() => begin(socket, remote),
        }
    }
    listener.accept_queued(begin).await;
}

/// Resets a connection: the file descriptor reserve is exhausted. An orderly close would leave the
/// socket in TIME_WAIT, and a thousand of those would outlast the shortage.
fn reset(context: &Context, socket: &TcpStream) {
    context.count_rejection(RejectionCode::ConnectionReset);
    if let Err(error) = crate::net::socket::abort(socket) {
        tracing::debug!(%error, "connection could not be reset");
    }
}
