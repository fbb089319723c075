//! Configuration: from the text of the file to a valid [`Config`], or to every problem at once.
//!
//! ```text
//! bytes -> tree -> secrets -> environment -> reader, read -> Config
//!          YAML    hide       fill ${NAME}   keys, types,    effective: what /config shows
//!          parser  excerpts                  defaults, rules
//! ```
//!
//! - `tree` parses YAML into nodes that keep their locations; it bounds depth, keys, values and
//!   what aliases repeat.
//! - `secrets` notes which parts of the text no excerpt may show.
//! - `environment` fills variables into values, never into the structure.
//! - `reader` reads values by name and type; `read` has one function per section with defaults and
//!   checks between keys. `renamed` has the keys of earlier versions.
//! - `problem` collects errors and warnings with location, excerpt and hint.
//! - [`reload`] reads the file again when its bytes change or on request.
//!
//! Parsing is pure: text and environment in, configuration or problems out. It runs on a thread for
//! blocking work, at startup too. Adding a key: `read`, [`effective()`], `sidecar.yaml`,
//! docs/configuration.md; tests fail if one is missing.

mod effective;
mod environment;
mod problem;
mod read;
mod reader;
pub mod reload;
mod renamed;
mod secrets;
mod spelling;
mod tree;
mod units;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest, Sha256};

pub use effective::effective;
pub use environment::Lookup;
pub use problem::{Problem, Problems};
pub use reader::Outline;

use crate::{admin, feed, http, lifecycle, limit, nats, net, presence, telemetry};
use problem::Report;

/// The whole configuration, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Listeners for clients; at least one.
    pub listen: Vec<net::ListenConfig>,
    /// Admin port and control socket.
    pub admin: admin::Config,
    /// NATS servers and credentials.
    pub nats: nats::Config,
    /// Routes, and the limits of HTTP.
    pub http: http::Config,
    /// Maximum memory of all windows and feeds, in bytes.
    pub window_bytes_max: usize,
    /// Maximum number of feeds.
    pub feeds_max: usize,
    /// Thresholds of open file descriptors.
    pub file_descriptors: limit::Thresholds,
    /// Limits of replays.
    pub replays: feed::replay::ReplayLimits,
    /// Graceful shutdown.
    pub drain: lifecycle::drain::Config,
    /// Presence: which client is connected to which pod.
    pub presence: presence::Config,
    /// Format and filter of the log.
    pub log: telemetry::logs::Config,
}

/// The defaults, without routes, which a file must have.
impl Default for Config {
    fn default() -> Self {
        // 256 MiB: sixteen windows of the default size.
        let window_bytes_max = 256 << 20;
        let feeds_max = feed::budget::feeds_of(window_bytes_max);
        let per_client = limit::PerClient::among(feeds_max);
        Self {
            listen: vec![net::ListenConfig::default()],
            admin: admin::Config::default(),
            nats: nats::Config::default(),
            http: http::Config {
                per_client,
                ..http::Config::default()
            },
            window_bytes_max,
            feeds_max,
            file_descriptors: limit::Thresholds::default(),
            replays: feed::replay::ReplayLimits::default(),
            drain: lifecycle::drain::Config::default(),
            presence: presence::Config::default(),
            log: telemetry::logs::Config::default(),
        }
    }
}

/// Configuration that was loaded from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// SHA-256 of the effective configuration, in hexadecimal digits. Equal in two pods with the
    /// same configuration, even if their files differ in form. Does not depend on secrets.
    pub content_hash: String,
    /// SHA-256 of the file's bytes, in hexadecimal digits.
    pub text_hash: String,
    /// Problems that do not prevent the use of the file.
    pub warnings: Vec<Problem>,
}

/// Maximum size of a file: 1 MiB, as of a ConfigMap.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads and checks a file. Variables are filled from the environment of the process.
///
/// # Errors
/// Every problem of the file, in the order of its lines. An unreadable file is one problem.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let bytes = read_file(path).map_err(|error| unreadable(&name, &error))?;
    parse_bytes(&bytes, &name, &|name| std::env::var(name).ok())
}

/// Parses a duration in the syntax of the file: `250ms`, `15s`, `2m`, `1h`.
///
/// # Errors
/// A sentence that explains the syntax.
pub fn duration(text: &str) -> Result<std::time::Duration, &'static str> {
    units::parse_duration(text)
}

/// Checks a text. Reads nothing else.
///
/// # Errors
/// Every problem of the text, in the order of its lines.
pub fn parse(text: &str, file: &str, environment: Lookup<'_>) -> Result<Config, Problems> {
    walk_over(text, file, environment).map(|read| read.config)
}

/// Returns the keys that a text has and the keys it could have. For tests of the reference file and
/// the documentation.
///
/// # Errors
/// As [`parse`].
pub fn outline(text: &str, file: &str, environment: Lookup<'_>) -> Result<Outline, Problems> {
    walk_over(text, file, environment).map(|read| read.outline)
}

/// Result of reading a text without errors.
struct Read {
    config: Config,
    outline: Outline,
    warnings: Vec<Problem>,
}

fn walk_over(text: &str, file: &str, environment: Lookup<'_>) -> Result<Read, Problems> {
    // A byte order mark is not part of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > FILE_BYTES_MAX {
        return Err(Problem::of_file(file, "the file is larger than 1 MiB", None).into());
    }
    let report = Report::new(file, text);
    let mut read = None;
    if let Some(mut root) = tree::read(&report) {
        secrets::hide(&root, &report);
        environment::fill(&mut root, environment, &report);
        let reader = reader::Reader::new(&report);
        let config = read::config(&reader.root(&root));
        read = config.map(|config| (config, reader.finish()));
    }
    let warnings = report.finish()?;
    // Without a reported error there is a configuration; the error below avoids a panic.
    let (config, outline) = read.ok_or_else(|| {
        Problem::of_file(file, "the file cannot be read as a configuration", None)
    })?;
    Ok(Read {
        config,
        outline,
        warnings,
    })
}

/// Reads at most one byte more than allowed, which is enough to detect a file that is too large.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(file: &str, error: &io::Error) -> Problems {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => Some("pass the file with `--config`"),
        io::ErrorKind::PermissionDenied => Some("give the process read permission"),
        _ => None,
    };
    let why = match error.kind() {
        io::ErrorKind::NotFound => "file not found".to_owned(),
        io::ErrorKind::IsADirectory => "expected a file, found a directory".to_owned(),
        _ => format!("the file cannot be read: {error}"),
    };
    Problem::of_file(file, why, hint).into()
}

fn parse_bytes(bytes: &[u8], file: &str, environment: Lookup<'_>) -> Result<Loaded, Problems> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // Reading stops at the limit, possibly inside a character.
        Err(_) if bytes.len() > FILE_BYTES_MAX => {
            return Err(Problem::of_file(file, "the file is larger than 1 MiB", None).into());
        }
        Err(error) => {
            let line = bytes[..error.valid_up_to()]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            let message = format!("the file is not UTF-8, first in line {line}");
            return Err(Problem::of_file(file, message, Some("save it as UTF-8")).into());
        }
    };
    let Read {
        config, warnings, ..
    } = walk_over(text, file, environment)?;
    let content_hash = hash(effective(&config).to_string().as_bytes());
    Ok(Loaded {
        config,
        content_hash,
        text_hash: hash(bytes),
        warnings,
    })
}

fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests;
