//! Order of the events of one client: holes, late events, duplicates.

/// Position of a number relative to the numbers before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The expected number, or the first one.
    Next,
    /// Later than expected; the count of missing numbers.
    Hole(u64),
    /// Out of order: fills a hole.
    Late,
    /// Received before, or more than 63 numbers back, which is not stored.
    Duplicate,
}

/// Numbers received by one client, in 16 bytes.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// Expected number; 0 before the first one.
    next: u64,
    /// Bit `k` is set if `next - 1 - k` was received.
    seen: u64,
}

impl Sequence {
    /// Returns the sequence of a client that received all numbers up to `number`.
    pub(crate) fn after(number: u64) -> Self {
        Self {
            next: number + 1,
            seen: u64::MAX,
        }
    }

    /// Returns the highest number; 0 before the first one.
    pub(crate) fn last(&self) -> u64 {
        self.next.saturating_sub(1)
    }

    /// Records one number; numbers begin at 1.
    pub(crate) fn observe(&mut self, number: u64) -> Order {
        if self.next == 0 || number == self.next {
            self.seen = self.seen << 1 | 1;
            self.next = number + 1;
            return Order::Next;
        }
        if number > self.next {
            let hole = number - self.next;
            self.seen = if hole < 63 {
                self.seen << (hole + 1) | 1
            } else {
                1
            };
            self.next = number + 1;
            return Order::Hole(hole);
        }
        let back = self.next - 1 - number;
        if back >= 64 || self.seen >> back & 1 == 1 {
            return Order::Duplicate;
        }
        self.seen |= 1 << back;
        Order::Late
    }
}
