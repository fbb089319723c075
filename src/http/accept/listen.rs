//! Listeners that hand their connections over until the pod drains.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use super::connection_task::{self, Drain};
use crate::http::context::Context;
use crate::http::request::rejection::RejectionCode;
use crate::lifecycle::shutdown::Token;
use crate::net::listener::Listener;
use crate::net::tls::Tls;

/// Serves one listener. When `listening` is signaled, what waits in the kernel's queue is still accepted, then the
/// listener closes; its connections hold `drain` until they have ended.
pub async fn serve(
    context: Arc<Context>,
    mut listener: Listener,
    tls: Option<Tls>,
    mut listening: Token,
    drain: Drain,
) {
    let begin = |socket: TcpStream, remote: SocketAddr| {
        let Some(entered) = context.connection_limiter.acquire() else {
            return turn_away(&context, &socket);
        };
        let acceptor = tls.as_ref().map(Tls::acceptor);
        connection_task::serve(&context, socket, remote, entered, acceptor, drain.clone());
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

/// Closes a connection for which not even a refusal's descriptor is left. Reset, so that nothing of it stays: whoever is
/// turned away comes back, and a thousand ends in TIME_WAIT would outlast the shortage.
fn turn_away(context: &Context, socket: &TcpStream) {
    context.count_rejection(RejectionCode::ConnectionReset);
    if let Err(error) = crate::net::socket::abort(socket) {
        tracing::debug!(%error, "a connection could not be reset");
    }
}
