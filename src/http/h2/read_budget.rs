//! Read budget: how much an HTTP/2 connection reads each time its task runs.
//!
//! The task of the connection calls [`ReadBudget::refill`] before it polls h2. Once 256 bytes are
//! read, the socket (`io`) returns pending and wakes the task, so that the streams opened by these
//! bytes are answered before the next ones are read. Without the budget one gateway that opens a
//! hundred streams at once would leave every buffer of h2 at the size of that burst. Bodies that pass
//! to the application have a larger budget ([`Upload`]); the message of a gRPC call is no such body.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// 256 bytes per run of the task, about six requests: a gateway opens a hundred event streams with
/// four kilobytes. h2 allocates for each request that is read and not answered, and its tables stay
/// at the size of the largest burst.
pub(super) const READ_BYTES: usize = 256;

/// 16 KiB per run, the largest frame of most clients, while a request has a body that passes to the
/// application.
const UPLOAD_BYTES: usize = 16 * 1024;

/// Bytes that the connection may still read in this run of its task.
#[derive(Debug, Default)]
pub(in crate::http) struct ReadBudget {
    left: AtomicUsize,
    /// Number of bodies that pass to the application.
    uploads: AtomicUsize,
}

/// A body that passes to the application; dropping it ends it.
#[derive(Debug)]
pub(in crate::http) struct Upload(Arc<ReadBudget>);

impl ReadBudget {
    /// Starts a run of the task.
    pub(in crate::http) fn refill(&self) {
        let bytes = match self.uploads.load(Ordering::Relaxed) {
            0 => READ_BYTES,
            _ => UPLOAD_BYTES,
        };
        self.left.store(bytes, Ordering::Relaxed);
    }

    /// Counts a body that passes to the application.
    pub(in crate::http) fn upload(self: &Arc<Self>) -> Upload {
        self.uploads.fetch_add(1, Ordering::Relaxed);
        Upload(Arc::clone(self))
    }

    /// Returns the number of bytes that may be read.
    pub(super) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// Counts bytes that were read.
    pub(super) fn spend(&self, bytes: usize) {
        self.left.store(self.left() - bytes, Ordering::Relaxed);
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        self.0.uploads.fetch_sub(1, Ordering::Relaxed);
    }
}
