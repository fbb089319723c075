//! The memory of all windows together, counted exactly and kept within one bound.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// How many bytes all windows may hold. The least recently read shrink first.
#[derive(Default)]
pub struct Budget {
    used: AtomicUsize,
    max: AtomicUsize,
    windows: Mutex<Vec<Weak<dyn Shrink>>>,
}

/// A window that can give memory back.
pub(super) trait Shrink: Send + Sync {
    /// When it was last read: the tick of [`Budget::tick`] at that time.
    fn last_read(&self) -> u64;
    /// Drops the oldest half of what it holds; false if nothing was left to drop.
    fn shrink(&self) -> bool;
}

/// Bytes taken from the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { max: AtomicUsize::new(bytes_max), ..Self::default() })
    }

    /// Changes the bound; it takes effect with the next event.
    pub fn set_max(&self, bytes_max: usize) {
        self.max.store(bytes_max, Ordering::Relaxed);
    }

    /// Bytes held now.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// The bound.
    #[must_use]
    pub fn max(&self) -> usize {
        self.max.load(Ordering::Relaxed)
    }

    pub(super) fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        Charge { budget: self.clone(), bytes }
    }

    pub(super) fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn join(&self, window: Weak<dyn Shrink>) {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        // Forget the dead before the list grows: its length stays within twice the living.
        if windows.len() == windows.capacity() {
            windows.retain(|window| window.strong_count() > 0);
        }
        windows.push(window);
    }

    /// Shrinks windows until the bound holds. Called after appending, with no lock held.
    pub(super) fn enforce(&self) {
        if self.used() <= self.max() {
            return;
        }
        let mut windows: Vec<Arc<dyn Shrink>> = {
            let mut all = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|window| window.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        windows.sort_by_key(|window| window.last_read());
        while self.used() > self.max() {
            // One round over all, the least recently read first; the most recently read gives last.
            let mut gave = false;
            for window in &windows {
                gave |= window.shrink();
                if self.used() <= self.max() {
                    break;
                }
            }
            if !gave {
                return;
            }
        }
    }
}

impl std::fmt::Debug for Budget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Budget({} of {})", self.used(), self.max())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.sub(self.bytes);
    }
}
