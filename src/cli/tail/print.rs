//! Output formats of `tail`: JSON lines for programs, plain or coloured text for people.

use std::fmt::Write;
use std::io::IsTerminal;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::cli::output;
use crate::encoding::sse::decode::ReceivedEvent;

/// Reports about the connection on standard error. Parts of the text come from the server.
pub(super) fn report(what: &str) {
    output::complain(format_args!("sidestream tail: {}", harmless(what)));
}

/// Output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// One JSON object per line.
    Json,
    /// One line per line of data, with nothing added.
    Plain,
    /// As `Plain`, with few colours and without control characters that a terminal would interpret.
    Terminal { colours: bool },
}

impl Style {
    /// Chooses the format for standard output; respects `NO_COLOR` (no-color.org) and dumb
    /// terminals.
    pub(super) fn detect(json: bool) -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        match (json, std::io::stdout().is_terminal()) {
            (true, _) => Self::Json,
            (false, false) => Self::Plain,
            (false, true) => {
                let dumb = set("TERM").is_none_or(|term| term == "dumb");
                Self::Terminal {
                    colours: !dumb && set("NO_COLOR").is_none(),
                }
            }
        }
    }

    /// Appends one event, received `at`, to `out`.
    pub(super) fn write(self, event: &ReceivedEvent, at: SystemTime, out: &mut String) {
        match self {
            Self::Json => json(event, at, out),
            Self::Plain => line(event, out, |_, text| text.to_owned()),
            Self::Terminal { colours: false } => line(event, out, |_, text| harmless(text)),
            Self::Terminal { colours: true } => {
                line(event, out, |part, text| part.coloured(&harmless(text)))
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Part {
    Id,
    Name,
    Data,
}

impl Part {
    fn coloured(self, text: &str) -> String {
        match self {
            Self::Id => format!("\x1b[2m{text}\x1b[0m"),
            Self::Name => format!("\x1b[1;36m{text}\x1b[0m"),
            Self::Data => text.to_owned(),
        }
    }
}

/// `id  name  data`: one line that can be searched; further lines of data are indented.
fn line(event: &ReceivedEvent, out: &mut String, show: impl Fn(Part, &str) -> String) {
    // A column of its own even when there is nothing in it.
    let id = if event.id.is_empty() { "-" } else { &event.id };
    out.push_str(&show(Part::Id, id));
    out.push_str("  ");
    out.push_str(&show(Part::Name, &event.event));
    for (number, text) in event.data.split('\n').enumerate() {
        out.push_str(if number == 0 { "  " } else { "\n    " });
        out.push_str(&show(Part::Data, text));
    }
    out.push('\n');
}

fn json(event: &ReceivedEvent, at: SystemTime, out: &mut String) {
    #[derive(Serialize)]
    struct Line<'a> {
        id: &'a str,
        event: &'a str,
        data: &'a str,
        received: u64,
    }
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let received = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    let line = Line {
        id: &event.id,
        event: &event.event,
        data: &event.data,
        received,
    };
    // Three strings and a number always serialise.
    out.push_str(&serde_json::to_string(&line).unwrap_or_default());
    out.push('\n');
}

/// Control characters as people see them: an event must not move the cursor or rename the window.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && character != '\t' {
            // Writing into a string does not fail.
            write!(shown, "\\u{{{:x}}}", u32::from(character)).ok();
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn written(style: Style, id: &str, data: &str) -> String {
        let event = ReceivedEvent {
            id: id.into(),
            event: "created".into(),
            data: data.into(),
        };
        let mut out = String::new();
        style.write(
            &event,
            UNIX_EPOCH + Duration::from_millis(1_700_000_000_123),
            &mut out,
        );
        out
    }

    #[test]
    fn an_event_is_one_line_and_its_further_lines_are_indented() {
        assert_eq!(written(Style::Plain, "a-7-ff", "x"), "a-7-ff  created  x\n");
        assert_eq!(
            written(Style::Plain, "", "x\n\ny"),
            "-  created  x\n    \n    y\n"
        );
    }

    #[test]
    fn json_is_one_object_per_line_with_the_time_of_arrival_in_milliseconds() {
        assert_eq!(
            written(Style::Json, "a-7-ff", "x\ny\u{1b}"),
            "{\"id\":\"a-7-ff\",\"event\":\"created\",\"data\":\"x\\ny\\u001b\",\"received\":1700000000123}\n"
        );
    }

    #[test]
    fn an_event_cannot_steer_the_terminal() {
        let hostile = "\u{1b}]0;mine\u{7}\u{9b}2J\tfine";
        for colours in [false, true] {
            let out = written(Style::Terminal { colours }, "1", hostile);
            assert!(
                out.contains("\\u{1b}]0;mine\\u{7}\\u{9b}2J\tfine"),
                "{out:?}"
            );
        }
        assert!(
            written(Style::Plain, "1", hostile).contains(hostile),
            "a file gets what was sent"
        );
    }

    #[test]
    fn colours_are_sparing() {
        let out = written(Style::Terminal { colours: true }, "1", "x");
        assert_eq!(out, "\x1b[2m1\x1b[0m  \x1b[1;36mcreated\x1b[0m  x\n");
    }
}
