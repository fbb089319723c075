//! Filter of the log: `log.filter` with its directives checked.
//!
//! `tracing_subscriber` accepts any word as the name of a target. `warning` would select a target
//! of that name, which does not exist, and the log would be silent. So a word that is neither a
//! level nor a target of a known crate is rejected, with the level that was probably meant.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// 1024 bytes: longer than a filter with every target.
pub const BYTES_MAX: usize = 1024;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Words of other systems and their level.
const SYNONYMS: [(&str, &str); 14] = [
    ("warning", "warn"),
    ("err", "error"),
    ("fatal", "error"),
    ("critical", "error"),
    ("crit", "error"),
    ("notice", "info"),
    ("information", "info"),
    ("normal", "info"),
    ("verbose", "debug"),
    ("all", "trace"),
    ("none", "off"),
    ("silent", "off"),
    ("quiet", "off"),
    ("disabled", "off"),
];

/// Crates that log, and crates that are often named to silence them.
const CRATES: [&str; 12] = [
    "sidestream",
    "sidestream_common",
    "sidestream_injector",
    "async_nats",
    "h2",
    "hyper",
    "hyper_util",
    "mio",
    "nkeys",
    "rustls",
    "tokio",
    "tokio_rustls",
];

/// Reason for which a text is not a filter of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidFilter {
    /// Longer than [`BYTES_MAX`].
    Length,
    /// Empty, or with an empty directive between commas.
    Empty,
    /// With spans or fields, which this log does not have.
    Span,
    /// Not a level.
    Level(String),
    /// Neither a level nor a target.
    Word(String),
    /// A directive whose target does not log.
    Target(String),
}

impl InvalidFilter {
    /// Returns a sentence that does not quote the filter.
    #[must_use]
    pub fn explain(&self) -> &'static str {
        match self {
            Self::Length => "a filter of the log has at most 1024 bytes",
            Self::Empty => "a filter of the log is a level, or directives separated by commas",
            Self::Span => {
                "the log has no spans: a directive is a level, or a target such as `sidestream::http=debug`"
            }
            Self::Level(_) => {
                "a level of the log is `off`, `error`, `warn`, `info`, `debug` or `trace`"
            }
            Self::Word(_) => {
                "a word of this filter is neither a level (`off`, `error`, `warn`, `info`, `debug`, `trace`) nor a \
                 target such as `sidestream::http`"
            }
            Self::Target(_) => {
                "a target is `sidestream`, `async_nats` or another part that logs, and a module of it"
            }
        }
    }

    /// Returns the level that was probably meant.
    #[must_use]
    pub fn suggestion(&self) -> Option<&'static str> {
        let (Self::Level(word) | Self::Word(word)) = self else {
            return None;
        };
        let word = word.to_ascii_lowercase();
        let synonym = SYNONYMS
            .iter()
            .find(|(other, _)| *other == word)
            .map(|(_, level)| *level);
        let near = |level: &&&str| {
            word.len() > 1 && (word.starts_with(**level) || level.starts_with(&word))
        };
        synonym.or_else(|| LEVELS.iter().find(near).copied())
    }
}

/// The sentence, with the invalid word.
impl fmt::Display for InvalidFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(word) | Self::Word(word) | Self::Target(word) => {
                write!(f, "`{}`: {}", word.escape_debug(), self.explain())
            }
            Self::Length | Self::Empty | Self::Span => f.write_str(self.explain()),
        }
    }
}

impl std::error::Error for InvalidFilter {}

/// Parses the directives of a filter.
///
/// The NATS client library logs every dropped message at `info`. A metric counts them, so its level
/// is `warn` unless the filter names the library.
///
/// # Errors
/// [`InvalidFilter`] if a directive would select nothing.
pub fn filter(directives: &str) -> Result<EnvFilter, InvalidFilter> {
    if directives.len() > BYTES_MAX {
        return Err(InvalidFilter::Length);
    }
    let mut valid: Vec<&str> = directives.split(',').map(str::trim).collect();
    valid.iter().try_for_each(|directive| check(directive))?;
    if !directives.contains("async_nats") {
        valid.push("async_nats=warn");
    }
    // No other error is known.
    EnvFilter::try_new(valid.join(",")).map_err(|_| InvalidFilter::Word(directives.to_owned()))
}

fn check(directive: &str) -> Result<(), InvalidFilter> {
    if directive.is_empty() {
        return Err(InvalidFilter::Empty);
    }
    if directive.contains(['[', ']', '{', '}']) {
        return Err(InvalidFilter::Span);
    }
    match directive.split_once('=') {
        None if is_level(directive) || is_target(directive) => Ok(()),
        None => Err(InvalidFilter::Word(directive.to_owned())),
        Some((target, _)) if !is_target(target) => Err(InvalidFilter::Target(directive.to_owned())),
        Some((_, level)) if !is_level(level) => Err(InvalidFilter::Level(level.to_owned())),
        Some(_) => Ok(()),
    }
}

fn is_level(word: &str) -> bool {
    // `LevelFilter` parses an empty word as `error`.
    !word.is_empty() && word.parse::<LevelFilter>().is_ok()
}

fn is_target(word: &str) -> bool {
    let mut parts = word.split("::");
    let is_name = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    parts.next().is_some_and(|first| CRATES.contains(&first)) && parts.all(is_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_a_filter() {
        for valid in [
            "info",
            "INFO",
            " warn ",
            "off",
            "5",
            "info,sidestream::http=debug",
            "sidestream",
            "sidestream::feed::buffer=trace, info",
            "debug,h2=off,async_nats=info",
        ] {
            assert!(filter(valid).is_ok(), "{valid}");
        }
        assert_eq!(filter("info").unwrap().to_string(), "async_nats=warn,info");
        assert_eq!(
            filter("info, async_nats=debug").unwrap().to_string(),
            "async_nats=debug,info"
        );
    }

    #[test]
    fn word_that_would_silence_the_log_is_rejected_with_a_suggestion() {
        let suggestion = |text: &str| filter(text).unwrap_err().suggestion();
        for (word, level) in [
            ("warning", "warn"),
            ("WARNING", "warn"),
            ("infoo", "info"),
            ("inf", "info"),
            ("verbose", "debug"),
            ("all", "trace"),
            ("errors", "error"),
            ("none", "off"),
            ("info,sidestream::http=debugg", "debug"),
        ] {
            assert_eq!(suggestion(word), Some(level), "{word}");
        }
        for word in [
            "x",
            "*",
            "6",
            "loud",
            "app",
            "sidestream:http",
            "sidestream::",
            "my::sidestream",
            "i",
        ] {
            assert!(
                matches!(filter(word), Err(InvalidFilter::Word(_))),
                "{word}"
            );
            assert_eq!(suggestion(word), None, "{word}");
        }
        assert_eq!(
            filter("infoo=debug").unwrap_err(),
            InvalidFilter::Target("infoo=debug".into())
        );
        assert_eq!(
            filter("sidestream=").unwrap_err(),
            InvalidFilter::Level(String::new())
        );
        for text in ["", " ", "info,,debug", ",info"] {
            assert_eq!(filter(text).unwrap_err(), InvalidFilter::Empty, "{text:?}");
        }
        assert_eq!(filter("[span]=info").unwrap_err(), InvalidFilter::Span);
        assert_eq!(
            filter(&"info,".repeat(1000)).unwrap_err(),
            InvalidFilter::Length
        );
        let error = filter("warning").unwrap_err().to_string();
        assert!(
            error.starts_with("`warning`: ") && error.contains("`warn`"),
            "{error}"
        );
    }
}
