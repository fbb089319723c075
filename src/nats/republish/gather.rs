//! All that several subscriptions of one connection have brought, in one go.

use std::future::poll_fn;
use std::task::Poll;

use async_nats::{Message, Subscriber};
use futures_util::StreamExt as _;

/// Waits for a message and takes all that are there; nothing when the client is over.
///
/// Each subscription has its own way from the connection to here. The connection fills them in the order of the wire, on
/// the thread that runs this; all that they hold at one moment, sorted, is in order. Bounded by what they hold at most.
pub(super) async fn gather(subscribers: &mut [Subscriber]) -> Option<Vec<Message>> {
    let all = poll_fn(|context| {
        let (mut messages, mut is_over) = (Vec::new(), false);
        for subscriber in &mut *subscribers {
            loop {
                match subscriber.poll_next_unpin(context) {
                    Poll::Ready(Some(message)) => messages.push(message),
                    Poll::Ready(None) => {
                        is_over = true;
                        break;
                    }
                    Poll::Pending => break,
                }
            }
        }
        if !messages.is_empty() {
            Poll::Ready(Some(messages))
        } else if is_over {
            Poll::Ready(None)
        } else {
            Poll::Pending
        }
    });
    // Not interrupted half way: what is left in one subscription may stand before what was taken from another.
    tokio::task::unconstrained(all).await
}

/// What is there now, without waiting.
pub(super) fn ready(subscribers: &mut [Subscriber]) -> Vec<Message> {
    use futures_util::FutureExt as _;
    gather(subscribers).now_or_never().flatten().unwrap_or_default()
}
