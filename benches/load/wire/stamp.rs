//! The stamp that every published event carries: when it was sent, and its number within its subject.

use std::io::Write as _;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`: one clock for all processes of a machine.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}

/// When an event was published and which one of its subject it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// [`now`] at the publisher.
    pub(crate) sent: u64,
    /// Counts from 1 in each subject.
    pub(crate) sequence: u64,
}

impl Stamp {
    /// The payload `{"t":<sent>,"s":<sequence>,"p":"..."}`, padded to `size` bytes where that is more than the stamp needs.
    pub(crate) fn payload(self, size: usize) -> Vec<u8> {
        let mut payload = Vec::with_capacity(size.max(64));
        // Writing into a vector cannot fail.
        write!(
            payload,
            "{{\"t\":{},\"s\":{},\"p\":\"",
            self.sent, self.sequence
        )
        .ok();
        payload.resize(size.saturating_sub(CLOSE.len()).max(payload.len()), b'x');
        payload.extend_from_slice(CLOSE);
        payload
    }

    /// Reads a stamp from the beginning of a payload; `None` if there is none.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(b"{\"t\":")?;
        let (sent, rest) = digits(rest)?;
        let rest = rest.strip_prefix(b",\"s\":")?;
        let (sequence, rest) = digits(rest)?;
        // Without the comma a stamp that was cut in the middle would read as a smaller number.
        (rest.first() == Some(&b',')).then_some(Self { sent, sequence })
    }
}

fn digits(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    let mut read = 0;
    for digit in bytes.iter().take_while(|byte| byte.is_ascii_digit()) {
        number = number
            .checked_mul(10)?
            .checked_add(u64::from(digit - b'0'))?;
        read += 1;
    }
    (read > 0).then(|| (number, &bytes[read..]))
}

const CLOSE: &[u8] = b"\"}";
