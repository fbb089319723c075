//! Source: one configured origin of events.
//!
//! ```text
//! composition root --owns--> Source --> feeds --> one cursor per client
//! route -----------opens------^                       |
//!                             +---- Weak<dyn Origin> --+
//! ```
//!
//! Routes open readers on a [`Source`] and do not know its kind. Only the composition root does: it
//! creates each kind with its writer and starts the task that writes. The reverse direction, a
//! cursor that uses the source of its feed, is the trait `Origin`.
//!
//! [`StreamBuffer`](super::StreamBuffer), [`RepublishSource`](super::RepublishSource) and
//! [`CoreSource`](super::CoreSource) implement it. All methods are called when a reader opens, or
//! from time to time; none is called per event.

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;

use crate::event::SourceTag;
use crate::subject::FilterSet;

use super::gap::GapReason;
use super::limits::{Limits, SourceSize};
use super::open_error::OpenError;
use super::opening::Opened;
use super::options::FeedOptions;
use super::resume::Start;

/// Future that opens a reader.
pub type OpenFuture<'a> = BoxFuture<'a, Result<Opened, OpenError>>;

/// One configured origin of events.
pub trait Source: fmt::Debug + Send + Sync {
    /// Name of the stream, or `core`: the `source` of logs and metrics.
    fn name(&self) -> &str;

    /// Tag of the source's event ids.
    ///
    /// # Errors
    /// [`OpenError::NotReady`] before the source has started, [`OpenError::Rejected`] while NATS
    /// rejects it.
    fn tag(&self) -> Result<SourceTag, OpenError>;

    /// Returns whether readers may start.
    fn is_ready(&self) -> bool;

    /// Returns whether all pods assign the same positions to the events. A client can then resume
    /// on any pod.
    fn are_positions_shared(&self) -> bool;

    /// Reason of the gap of a reader whose id has no position under the source's tag.
    fn unknown_tag_reason(&self) -> GapReason {
        if self.are_positions_shared() {
            GapReason::Recreated
        } else {
            GapReason::Restarted
        }
    }

    /// Opens a reader of all events that match. It receives everything that is published after the
    /// future is ready.
    ///
    /// # Errors
    /// [`OpenError`] if NATS is not available or a limit is reached.
    fn open<'a>(
        &'a self,
        filters: FilterSet,
        options: &'a Arc<FeedOptions>,
        start: Start,
    ) -> OpenFuture<'a>;

    /// Returns whether a reader of a finite event stream with everything up to this sequence number
    /// has everything: no message follows, and the newest one ends it.
    ///
    /// # Errors
    /// [`OpenError`] if NATS is not available.
    fn is_finished<'a>(
        &'a self,
        _filters: &'a FilterSet,
        _seq: u64,
    ) -> BoxFuture<'a, Result<bool, OpenError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// Messages that the server has ready and the source has not received; 0 if the server pushes
    /// them.
    fn pending(&self) -> u64 {
        0
    }

    /// Changes the limits of the buffer that all feeds share, from the next event on. Without a
    /// buffer it does nothing: each feed has the limits of its [`FeedOptions`].
    fn set_limits(&self, _limits: Limits) {}

    /// Evicts events older than the age limit.
    fn sweep(&self, now: Instant);

    /// Number of events, bytes and feeds in memory.
    fn size(&self) -> SourceSize;
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Poll};

    use futures_util::FutureExt as _;
    use futures_util::task::noop_waker;

    use super::*;
    use crate::feed::tests::{drain, event, filters, options};
    use crate::feed::{Batch, Budget, Change, Cursor, Read, ReadPolicy, buffer, core_source};

    /// Reads once more after everything was read.
    fn read_end(cursor: &mut Cursor) -> Poll<Read> {
        let waker = noop_waker();
        cursor.poll_read(
            &mut Context::from_waker(&waker),
            &mut Batch::default(),
            &mut ReadPolicy::all(1024),
        )
    }

    #[test]
    fn dropped_buffer_is_freed_while_a_reader_is_left_and_the_reader_ends() {
        let limits = Limits::default();
        let (mut writer, buffer) =
            buffer::writer::channel("S", limits, &Budget::new(1 << 20, 100), None);
        let first = event(1, "a");
        writer.begin(first.position.tag, 0);
        let options = options(limits);
        let opened = buffer.open(filters(&["a"]), &options, Start::Live);
        let mut cursor = opened.now_or_never().unwrap().unwrap().cursor;
        writer.append(vec![first]);
        let freed = Arc::downgrade(&buffer);
        drop((writer, buffer));
        assert_eq!(freed.strong_count(), 0, "a cursor does not keep its source");
        assert_eq!(drain(&mut cursor), [Ok(1)]);
        assert!(!cursor.checkpoint(), "the head of the source is not known");
        assert_eq!(read_end(&mut cursor), Poll::Ready(Read::Ended));
    }

    #[tokio::test]
    async fn dropped_core_source_is_freed_while_a_reader_is_left_and_the_reader_ends() {
        let tag = SourceTag::of_process("p");
        let (core, mut writer) = core_source::channel(tag, &Budget::new(1 << 20, 100));
        let options = options(Limits::default());
        let mut cursor = {
            let opening = core.open(filters(&["a"]), &options, Start::Live);
            let subscribing = async {
                let Some(Change::Subscribe { feed, .. }) = writer.change().await else {
                    panic!("a new feed subscribes")
                };
                writer.confirm_subscribed(feed);
            };
            tokio::join!(opening, subscribing).0.unwrap().cursor
        };
        let freed = Arc::downgrade(&core);
        drop(core);
        assert_eq!(freed.strong_count(), 0, "a cursor does not keep its source");
        assert!(
            writer.change().await.is_none(),
            "the writer's task ends without a source"
        );
        drop(writer);
        assert_eq!(read_end(&mut cursor), Poll::Ready(Read::Ended));
    }
}
