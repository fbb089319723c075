//! Probe of `sidestream doctor`: what it asks for, and the body of its response.
//!
//! ```text
//! Sidestream-Doctor: report                                a JSON document about the request
//! Sidestream-Doctor: goaway                                the same, and the connection ends:
//!                                                          GOAWAY, or `Connection: close`
//! Sidestream-Doctor: lines; count=24; every=100; bytes=512 an event stream of timed lines
//! ```

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::header::HeaderName;
use serde_json::{Map, Value};
use tokio::sync::OwnedSemaphorePermit;

use super::probe_body::{Lines, ProbeBody};
use crate::http::application::response_body::PassedBody;

/// Header of a probe, and of its response.
pub(super) const PROBE: HeaderName = HeaderName::from_static("sidestream-doctor");

/// Probe of a request that was authenticated.
pub(in crate::http) struct Probe {
    pub(super) plan: Plan,
    pub(super) report: Map<String, Value>,
    /// The pod drains.
    pub(super) draining: Arc<AtomicBool>,
    pub(super) permit: OwnedSemaphorePermit,
}

/// Response that a probe asks for.
pub(super) enum Plan {
    Report { ends_connection: bool },
    Lines(Lines),
}

impl Plan {
    /// Parses the header of a probe. A text that is not known asks for a report.
    pub(super) fn parse(text: &[u8]) -> Self {
        let text = str::from_utf8(text).unwrap_or_default();
        let mut parts = text.split(';').map(str::trim);
        match parts.next() {
            Some("goaway") => Self::Report {
                ends_connection: true,
            },
            Some("lines") => {
                let mut lines = Lines::default();
                for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                    let Ok(value) = value.parse() else { continue };
                    match name {
                        "count" => lines.count = value,
                        "every" => lines.every = Duration::from_millis(u64::from(value)),
                        "bytes" => lines.bytes = value,
                        _ => {}
                    }
                }
                Self::Lines(lines.bounded())
            }
            _ => Self::Report {
                ends_connection: false,
            },
        }
    }
}

impl Probe {
    /// Returns whether the connection ends with the response.
    pub(in crate::http) fn ends_connection(&self) -> bool {
        matches!(
            self.plan,
            Plan::Report {
                ends_connection: true
            }
        )
    }

    /// Returns the body. `window`: bytes that HTTP/2 flow control allows for it at once.
    pub(in crate::http) fn into_body(mut self, window: Option<usize>) -> PassedBody {
        match self.plan {
            Plan::Report { .. } => {
                self.report.insert("window".into(), window.into());
                let text = Value::Object(self.report).to_string();
                PassedBody::stored(text.into())
            }
            Plan::Lines(lines) => {
                PassedBody::probe(ProbeBody::new(lines, self.draining, self.permit))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Lines {
        match Plan::parse(text.as_bytes()) {
            Plan::Lines(lines) => lines,
            Plan::Report { .. } => panic!("{text} asks for a report"),
        }
    }

    #[test]
    fn probe_names_its_lines_within_bounds() {
        let asked = lines("lines; count=3;every=250; bytes=64; more=1; count=x");
        assert_eq!(
            (asked.count, asked.every, asked.bytes),
            (3, Duration::from_millis(250), 64)
        );
        let longest = lines("lines; count=4000000000; every=4000000000; bytes=4000000000");
        assert!(longest.total() <= Lines::TIME_MAX);
        assert!(longest.count * longest.bytes <= Lines::BYTES_MAX);
        let most = lines("lines; count=4000000000; every=0; bytes=4000000000");
        assert!(most.count * most.bytes <= Lines::BYTES_MAX);
    }

    #[test]
    fn text_that_is_not_known_asks_for_a_report() {
        for (text, ends) in [
            ("report", false),
            ("", false),
            ("more", false),
            ("goaway", true),
        ] {
            let Plan::Report { ends_connection } = Plan::parse(text.as_bytes()) else {
                panic!("{text}");
            };
            assert_eq!(ends_connection, ends, "{text}");
        }
    }
}
