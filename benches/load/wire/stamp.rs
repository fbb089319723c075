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

/// Content of a payload after its stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    /// One repeated letter
    Padding,
    /// The fields of an order, in which names repeat and values do not
    Json,
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
    /// Returns the payload `{"t":<sent>,"s":<sequence>,"p":"..."}`, filled to `size` bytes.
    pub(crate) fn payload(self, size: usize, content: Content) -> Vec<u8> {
        let mut payload = Vec::with_capacity(size.max(64));
        // Writing into a vector cannot fail.
        write!(
            payload,
            "{{\"t\":{},\"s\":{},\"p\":\"",
            self.sent, self.sequence
        )
        .ok();
        if content == Content::Json {
            let stamp = payload.len();
            self.put_order(&mut payload);
            payload.truncate(size.saturating_sub(CLOSE.len()).max(stamp));
        }
        payload.resize(size.saturating_sub(CLOSE.len()).max(payload.len()), b'x');
        payload.extend_from_slice(CLOSE);
        payload
    }

    /// Appends the fields of an order, whose values change with the number.
    fn put_order(self, payload: &mut Vec<u8>) {
        const NAMES: [&str; 4] = ["Ada Lovelace", "Grace Hopper", "Alan Turing", "Tony Hoare"];
        const STATES: [&str; 4] = ["created", "paid", "packed", "shipped"];
        const WORDS: [&str; 8] = [
            "leave",
            "parcel",
            "neighbour",
            "fragile",
            "gift wrap",
            "call",
            "second floor",
            "invoice",
        ];
        // SplitMix64: the values of an event do not depend on its time.
        let mut state = self.sequence;
        let mut random = |below: u64| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = state;
            mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            (mixed ^ mixed >> 31) % below
        };
        let pick = |texts: &[&'static str], number: u64| texts[number as usize % texts.len()];
        let (name, status) = (pick(&NAMES, random(4)), pick(&STATES, random(4)));
        write!(
            payload,
            r#"order.updated","id":"{:016x}","customer":{{"id":{},"name":"{name}","premium":{}}},"items":["#,
            random(u64::MAX),
            random(100_000_000),
            random(3) == 0,
        )
        .ok();
        for item in 0..3 {
            let comma = if item == 0 { "" } else { "," };
            let (sku, quantity, price) = (random(1_000_000), random(9), random(20_000));
            let price = price as f64 / 100.0;
            write!(
                payload,
                r#"{comma}{{"sku":"SKU-{sku:06}","quantity":{quantity},"price":{price}}}"#
            )
            .ok();
        }
        let total = random(60_000) as f64 / 100.0;
        write!(
            payload,
            r#"],"total":{total},"currency":"EUR","status":"{status}","note":""#
        )
        .ok();
        while payload.len() < 4096 {
            write!(payload, "{} ", pick(&WORDS, random(8))).ok();
        }
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
