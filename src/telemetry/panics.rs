//! Panics in the log: one line each, in the format of the other lines.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, PanicHookInfo};

/// Installs the hook that logs each panic of the process.
///
/// The process continues if the panic is caught: tokio catches the panic of a task. Without a hook
/// the standard library writes several lines to standard error that no log collector parses. It
/// still does if the filter of the log disables errors.
pub(super) fn install_hook() {
    let standard = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if tracing::enabled!(tracing::Level::ERROR) {
            write(info);
        } else {
            standard(info);
        }
    }));
}

fn write(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    // Empty unless `RUST_BACKTRACE` is set.
    let backtrace = Backtrace::capture();
    let backtrace =
        (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
    tracing::error!(
        error = message(info.payload()),
        location,
        thread = thread.name().unwrap_or_default(),
        backtrace,
        "panic: a defect of Sidestream or of a library; please report it"
    );
}

fn message(payload: &dyn Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Captured log.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn panic_is_one_log_line_and_the_process_continues() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .json()
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            install_hook();
            let caught = panic::catch_unwind(|| panic!("first line\nsecond line {}", 1));
            drop(panic::take_hook());
            assert!(caught.is_err());
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["level"], "ERROR");
        assert_eq!(line["fields"]["error"], "first line\nsecond line 1");
        assert!(
            line["fields"]["location"]
                .as_str()
                .unwrap()
                .starts_with("src/telemetry/panics.rs:"),
            "{line}"
        );
    }
}
