//! The order of the events that one client receives: holes, late ones, duplicates.

/// What one more number says about the order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// The one that was due, or the first of all.
    Next,
    /// So many numbers before it have not come (yet).
    Hole(u64),
    /// Fills a hole: it came, but out of order.
    Late,
    /// Was there before, or stands more than 63 numbers back, where nothing is remembered.
    Duplicate,
}

/// Numbers seen by one client; 16 bytes, whatever it receives.
#[derive(Debug, Default)]
pub(crate) struct Sequence {
    /// The number that is due; 0 before the first.
    next: u64,
    /// Bit `k` set: `next - 1 - k` was seen.
    seen: u64,
}

impl Sequence {
    /// Of a client that had everything up to `number`: what comes next is due, and nothing before it.
    pub(crate) fn after(number: u64) -> Self {
        Self {
            next: number + 1,
            seen: u64::MAX,
        }
    }

    /// Takes over one number (counted from 1).
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
