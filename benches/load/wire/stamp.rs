//! The stamp in every published event: the time of publication and a number within the subject.

use std::io::Write as _;

use rustix::time::{ClockId, clock_gettime};

/// Returns nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share.
pub(crate) fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(time.tv_nsec).unwrap_or(0);
    seconds * 1_000_000_000 + nanoseconds
}

/// Time of publication and number of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Time of publication, from [`now`].
    pub(crate) sent: u64,
    /// Number within the subject, from 1.
    pub(crate) sequence: u64,
}

impl Stamp {
    /// Returns the payload `{"t":<sent>,"s":<sequence>,"p":"..."}`, padded to `size` bytes.
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

    /// Parses the stamp at the beginning of a payload.
    pub(crate) fn parse(payload: &[u8]) -> Option<Self> {
        let rest = payload.strip_prefix(b"{\"t\":")?;
        let (sent, rest) = digits(rest)?;
        let rest = rest.strip_prefix(b",\"s\":")?;
        let (sequence, rest) = digits(rest)?;
        // Without the comma, a truncated stamp would parse as a smaller number.
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
