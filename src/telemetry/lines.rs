//! A line of the log as JSON, written straight into the line's buffer.
//!
//! The same bytes as `tracing_subscriber`'s own JSON with `flatten_event` (a test compares them), for a quarter of the
//! time: every client that comes and goes has a line, and in a storm of reconnects theirs was a tenth of all that it cost.

use std::cell::RefCell;
use std::fmt::{self, Write as _};

use time::OffsetDateTime;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::time::SystemTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent};
use tracing_subscriber::registry::LookupSpan;

/// Writes events as JSON, one a line.
pub(super) struct Lines {
    /// Events of the `log` crate (rustls): their level and target stand among their fields.
    foreign: Format<Json, SystemTime>,
}

impl Lines {
    pub(super) fn new() -> Self {
        let json = tracing_subscriber::fmt::format().json();
        Self {
            foreign: json
                .flatten_event(true)
                .with_current_span(false)
                .with_span_list(false),
        }
    }
}

impl<S> FormatEvent<S, JsonFields> for Lines
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if event.metadata().target() == "log" {
            return self.foreign.format_event(context, writer, event);
        }
        thread_local! {
            static LINE: RefCell<String> = RefCell::default();
        }
        LINE.with(|line| match line.try_borrow_mut() {
            Ok(mut line) => {
                line.clear();
                line.shrink_to(LINE_BYTES_KEPT);
                put_line(&mut line, event)?;
                writer.write_str(&line)
            }
            // Only if a value logged something itself while it is written.
            Err(_) => {
                let mut line = String::new();
                put_line(&mut line, event)?;
                writer.write_str(&line)
            }
        })
    }
}

/// 4 KiB: more than nearly every line has.
const LINE_BYTES_KEPT: usize = 4 * 1024;

/// Fifty pieces of a line go to a string at a fifth of what they take on the way to the writer, which is reached through
/// three others.
fn put_line(line: &mut String, event: &Event<'_>) -> fmt::Result {
    let metadata = event.metadata();
    line.push_str("{\"timestamp\":\"");
    line.push_str(Stamp::new(OffsetDateTime::now_utc()).as_str());
    line.push_str("\",\"level\":\"");
    line.push_str(metadata.level().as_str());
    line.push('"');
    let mut fields = Fields {
        line,
        written: Ok(()),
    };
    event.record(&mut fields);
    fields.written?;
    line.push_str(",\"target\":\"");
    put_escaped(line, metadata.target());
    line.push_str("\"}\n");
    Ok(())
}

/// Fields as members of an object that has some already.
struct Fields<'l> {
    line: &'l mut String,
    /// What is written after an error is nothing.
    written: fmt::Result,
}

impl Fields<'_> {
    fn member(&mut self, field: &Field, value: impl FnOnce(&mut String) -> fmt::Result) {
        let Self { line, written } = self;
        *written = written.and_then(|()| {
            line.push_str(",\"");
            put_escaped(line, field.name());
            line.push_str("\":");
            value(line)
        });
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.member(field, |line| {
            line.push('"');
            put_escaped(line, value);
            line.push('"');
            Ok(())
        });
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.member(field, |line| {
            line.push('"');
            write!(Escaped(line), "{value:?}")?;
            line.push('"');
            Ok(())
        });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.member(field, |line| {
            line.write_str(if value { "true" } else { "false" })
        });
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.member(field, |line| write!(line, "{value}"));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no infinity; `Value` makes it null, as it writes all others.
        self.member(field, |line| {
            write!(line, "{}", serde_json::Value::from(value))
        });
    }
}

/// Text within a string of JSON.
struct Escaped<'l>(&'l mut String);

impl fmt::Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        put_escaped(self.0, text);
        Ok(())
    }
}

/// What cannot stand in a string of JSON as it is (RFC 8259, 7).
fn is_special(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Nearly nothing has what cannot stand there: it goes over in one piece.
fn put_escaped(line: &mut String, text: &str) {
    let mut rest = text;
    while let Some(place) = rest.bytes().position(is_special) {
        let (plain, special) = rest.split_at(place);
        line.push_str(plain);
        match special.as_bytes()[0] {
            b'"' => line.push_str("\\\""),
            b'\\' => line.push_str("\\\\"),
            b'\n' => line.push_str("\\n"),
            b'\r' => line.push_str("\\r"),
            b'\t' => line.push_str("\\t"),
            0x08 => line.push_str("\\b"),
            0x0c => line.push_str("\\f"),
            control => {
                let digit = |number: u8| char::from(b"0123456789abcdef"[usize::from(number)]);
                line.push_str("\\u00");
                line.push(digit(control >> 4));
                line.push(digit(control & 0xf));
            }
        }
        rest = &special[1..];
    }
    line.push_str(rest);
}

/// `2026-11-22T23:20:21.123456Z`
struct Stamp([u8; 27]);

impl Stamp {
    fn new(at: OffsetDateTime) -> Self {
        let mut text = *b"0000-00-00T00:00:00.000000Z";
        let mut put = |end: usize, digits: usize, mut number: u32| {
            for digit in text[end - digits..end].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
        };
        put(4, 4, at.year().unsigned_abs());
        put(7, 2, u8::from(at.month()).into());
        put(10, 2, at.day().into());
        put(13, 2, at.hour().into());
        put(16, 2, at.minute().into());
        put(19, 2, at.second().into());
        put(26, 6, at.microsecond());
        Self(text)
    }

    fn as_str(&self) -> &str {
        // Digits and what stands between them.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use proptest::prelude::*;
    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl MakeWriter<'_> for Written {
        type Writer = Self;

        fn make_writer(&self) -> Self {
            self.clone()
        }
    }

    impl Written {
        fn take(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    /// What is logged, as this writes it and as `tracing_subscriber` does, without their time.
    fn both(log: impl Fn()) -> (String, String) {
        let (ours, theirs) = (Written::default(), Written::default());
        let library = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let subscriber = tracing_subscriber::registry()
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .event_format(Lines::new())
                    .with_writer(ours.clone()),
            )
            .with(
                library
                    .with_current_span(false)
                    .with_span_list(false)
                    .with_writer(theirs.clone()),
            );
        tracing::subscriber::with_default(subscriber, log);
        let [ours, theirs] = [ours, theirs].map(|written| {
            let text = written.take();
            let time = r#"{"timestamp":"2026-11-22T23:20:21.123456Z""#.len();
            assert!(
                text.starts_with("{\"timestamp\":\"2") && text[..time].ends_with("Z\""),
                "{text}"
            );
            text[time..].to_owned()
        });
        (ours, theirs)
    }

    #[test]
    fn a_line_is_what_the_library_writes_whatever_kinds_of_fields_it_has() {
        let error: Box<dyn std::error::Error> = "no \"way\"".into();
        let (ours, theirs) = both(|| {
            tracing::warn!(
                client.addr = %"127.0.0.1:80",
                text = "plain",
                debug = ?Some("quoted"),
                yes = true,
                no = false,
                count = 7_u64,
                less = -7_i64,
                large = u128::MAX,
                seconds = 1.0,
                part = 0.1 + 0.2,
                small = 1e-9,
                never = f64::INFINITY,
                error = &*error,
                none = Option::<u64>::None,
                "a message with {}", "words"
            );
        });
        assert_eq!(ours, theirs);
        assert!(
            serde_json::from_str::<serde_json::Value>(&format!("{{\"a\":1{ours}")).is_ok(),
            "{ours}"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_escaped_as_the_library_does(text in any::<String>(), control in 0_u8..0x20) {
            let text = format!("{text}{}\"\\{text}", char::from(control));
            let (ours, theirs) = both(|| tracing::info!(text, debug = ?text, "{text}"));
            prop_assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn the_time_is_that_of_rfc_3339_to_the_microsecond() {
        let stamp = |nanoseconds| {
            Stamp::new(OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).unwrap())
                .as_str()
                .to_owned()
        };
        assert_eq!(stamp(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(
            stamp(1_709_210_096_000_789_999),
            "2024-02-29T12:34:56.000789Z"
        );
    }
}
