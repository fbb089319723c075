//! Reads the filter of the log; a word that is neither a level nor the name of a target is rejected.
//!
//! `tracing_subscriber` takes any word for the name of a target: `warning` would select a target of that name, which
//! does not exist, and the log would be silent.

use std::fmt;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// 1024 bytes: more than all targets there are, each with a level.
pub const BYTES_MAX: usize = 1024;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Words of other systems for a level.
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

/// The crates whose lines are in the log, and those that are often named to silence them.
const CRATES: [&str; 10] = [
    "sidestream",
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

/// The reason why a text is not a filter of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InvalidFilter {
    /// Longer than [`BYTES_MAX`].
    Length,
    /// Nothing, or nothing between two commas.
    Empty,
    /// Spans or fields, which this log does not have.
    Span,
    /// Not a level.
    Level(String),
    /// Neither a level nor a target.
    Word(String),
    /// A directive whose target does not log.
    Target(String),
}

impl InvalidFilter {
    /// A sentence that does not quote the filter.
    #[must_use]
    pub fn explain(&self) -> &'static str {
        match self {
            Self::Length => "a filter of the log has at most 1024 bytes",
            Self::Empty => {
                "a filter of the log is a level, or directives with a comma between two of them"
            }
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

    /// The level that was probably meant.
    #[must_use]
    pub fn meant(&self) -> Option<&'static str> {
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

/// The sentence with the word that it is about.
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

/// Reads the directives of a filter.
///
/// The client library of NATS logs every dropped message at `info`; ours counts them, so its own lines begin at `warn`
/// unless the filter names it.
///
/// # Errors
/// [`InvalidFilter`] for what would select nothing.
pub fn filter(directives: &str) -> Result<EnvFilter, InvalidFilter> {
    if directives.len() > BYTES_MAX {
        return Err(InvalidFilter::Length);
    }
    let mut sound: Vec<&str> = directives.split(',').map(str::trim).collect();
    sound.iter().try_for_each(|directive| check(directive))?;
    if !directives.contains("async_nats") {
        sound.push("async_nats=warn");
    }
    // What is left to be wrong is not known; it is not a filter then.
    EnvFilter::try_new(sound.join(",")).map_err(|_| InvalidFilter::Word(directives.to_owned()))
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
    // An empty one is `error` there.
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
        for sound in [
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
            assert!(filter(sound).is_ok(), "{sound}");
        }
        assert_eq!(filter("info").unwrap().to_string(), "async_nats=warn,info");
        assert_eq!(
            filter("info, async_nats=debug").unwrap().to_string(),
            "async_nats=debug,info"
        );
    }

    #[test]
    fn a_word_that_would_silence_the_log_is_rejected_with_the_level_that_was_meant() {
        let meant = |text: &str| filter(text).unwrap_err().meant();
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
            assert_eq!(meant(word), Some(level), "{word}");
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
            assert_eq!(meant(word), None, "{word}");
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
        let told = filter("warning").unwrap_err().to_string();
        assert!(
            told.starts_with("`warning`: ") && told.contains("`warn`"),
            "{told}"
        );
    }
}
