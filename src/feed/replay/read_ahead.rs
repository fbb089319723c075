//! Read-ahead: pages of the archive that wait until the members of a session have taken earlier
//! ones.
//!
//! While members write to their clients, the source goes on: each new page of the session then has
//! several events for each member, which it writes at once. The faster the source is compared with
//! the clients, the larger the pages become, up to the session's share of [`BYTES_MAX`].

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::time::{Instant, timeout_at};

use crate::event::Event;
use crate::feed::archive::{Page, Pages, Unavailable};

/// 12 MiB of pages that wait, and the same of pages that members read: divided among the sessions that
/// run.
pub(super) const BYTES_MAX: usize = 12 << 20;

/// 16: events for each member that are worth a write.
const SHARE: usize = 16;

/// 100 ms: wait for further pages, so that a page has [`SHARE`] events for each member.
const FILL_MAX: Duration = Duration::from_millis(100);

/// 512 bytes of an event besides its payload: the event, its subject, and its framing.
const EVENT_BYTES: usize = 512;

/// Pages of one reading, in order.
pub(super) struct ReadAhead {
    /// Owns the future of the next page, so that a dropped [`ReadAhead::read`] does not drop it.
    pages: BoxStream<'static, Result<Page, Unavailable>>,
    ready: VecDeque<Page>,
    /// Number of events in `ready`.
    events: usize,
    /// Estimated size of `ready`.
    bytes: usize,
    /// Failure after the pages in `ready`; nothing is read after it.
    failure: Option<Unavailable>,
}

impl ReadAhead {
    pub(super) fn new(pages: Box<dyn Pages>) -> Self {
        let pages = stream::unfold(pages, |mut pages| async {
            let page = pages.next().await;
            Some((page, pages))
        });
        Self {
            pages: pages.boxed(),
            ready: VecDeque::new(),
            events: 0,
            bytes: 0,
            failure: None,
        }
    }

    /// Reads one page. Waits forever after a failure, and while `bytes_max` bytes wait. A dropped
    /// future loses nothing.
    pub(super) async fn read(&mut self, bytes_max: usize) {
        if self.failure.is_some() || self.bytes >= bytes_max {
            return std::future::pending().await;
        }
        match self.pages.next().await {
            Some(Ok(page)) => {
                self.events += page.events.len();
                self.bytes += size_of_page(&page);
                self.ready.push_back(page);
            }
            Some(Err(failure)) => self.failure = Some(failure),
            // The stream of pages has no end.
            None => std::future::pending().await,
        }
    }

    /// Reads until a page or a failure waits, then until `wanted` events wait, at most
    /// [`FILL_MAX`].
    pub(super) async fn fill(&mut self, wanted: usize, bytes_max: usize) {
        while self.ready.is_empty() && self.failure.is_none() {
            self.read(bytes_max).await;
        }
        let end = Instant::now() + FILL_MAX;
        while self.events < wanted && self.failure.is_none() && self.bytes < bytes_max {
            if timeout_at(end, self.read(bytes_max)).await.is_err() {
                break;
            }
        }
    }

    /// Takes the first page, or the failure after the last one.
    pub(super) fn take_first(&mut self) -> Option<Result<Page, Unavailable>> {
        match self.ready.pop_front() {
            Some(page) => Some(Ok(self.discount(page))),
            None => self.failure.take().map(Err),
        }
    }

    /// Takes the next page if nothing is missing between it and `through`.
    pub(super) fn take_after(&mut self, through: u64) -> Option<Page> {
        let page = self.ready.pop_front_if(|page| page.after == through)?;
        Some(self.discount(page))
    }

    fn discount(&mut self, page: Page) -> Page {
        self.events -= page.events.len();
        self.bytes -= size_of_page(&page);
        page
    }
}

/// Returns how many events a page needs so that the member with the most has [`SHARE`] of them,
/// if `most` of `events` were for one member last time.
pub(super) fn wanted(most: usize, events: usize) -> usize {
    SHARE * events / most.max(1)
}

/// Estimated size of an event in memory.
pub(super) fn size_of_event(event: &Event) -> usize {
    event.data.len() + EVENT_BYTES
}

fn size_of_page(page: &Page) -> usize {
    page.events.iter().map(size_of_event).sum()
}
