//! From the file to a configuration that cannot be wrong, or to every problem in it at once.

mod effective;
mod environment;
mod problem;
mod read;
pub mod reload;
mod renamed;
mod secrets;
mod spelling;
mod tree;
mod units;
mod walk;

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest, Sha256};

pub use effective::effective;
pub use environment::Lookup;
pub use problem::{Problem, Problems};
pub use walk::Outline;

use crate::{admin, feed, http, lifecycle, limit, nats, net, presence, telemetry};
use problem::Report;

/// The whole configuration, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where clients connect; at least one.
    pub listen: Vec<net::ListenConfig>,
    /// The operator's side.
    pub admin: admin::Config,
    /// The upstream side.
    pub nats: nats::Config,
    /// The downstream side: routes and limits.
    pub http: http::Config,
    /// All windows and feeds together, in bytes.
    pub window_bytes_max: usize,
    /// The most feeds at one time.
    pub feeds_max: usize,
    /// From which shares of the file descriptors on something is done.
    pub file_descriptors: limit::Thresholds,
    /// How many replays there may be.
    pub replays: feed::replay::ReplayLimits,
    /// How a drain proceeds.
    pub drain: lifecycle::drain::Config,
    /// Presence: which client is connected to which pod.
    pub presence: presence::Config,
    /// How the log is written.
    pub log: telemetry::logs::Config,
}

/// Everything but the routes, which a file must name.
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

/// A configuration and which file it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// What the file says.
    pub config: Config,
    /// SHA-256 of the effective configuration, in hexadecimal digits: equal for two pods that were told the same,
    /// whatever the form of their files. Secrets are not in it.
    pub content_hash: String,
    /// SHA-256 of the file's bytes, in hexadecimal digits.
    pub text_hash: String,
    /// What may not do what was meant.
    pub warnings: Vec<Problem>,
}

/// The largest file that is read. 1 MiB: what fits into a ConfigMap.
pub const FILE_BYTES_MAX: usize = 1 << 20;

/// Reads and checks a file; variables are filled from the process's environment.
///
/// # Errors
/// Every problem of the file, in the order of its lines; a file that cannot be read is one.
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    let name = path.display().to_string();
    let bytes = read_file(path).map_err(|error| unreadable(&name, &error))?;
    parse_bytes(&bytes, &name, &|name| std::env::var(name).ok())
}

/// Reads a duration as the file writes it: `250ms`, `15s`, `2m`, `1h`.
///
/// # Errors
/// A sentence that says what a duration is.
pub fn duration(text: &str) -> Result<std::time::Duration, &'static str> {
    units::parse_duration(text)
}

/// Checks a text. Pure.
///
/// # Errors
/// Every problem of the text, in the order of its lines.
pub fn parse(text: &str, file: &str, environment: Lookup<'_>) -> Result<Config, Problems> {
    walk_over(text, file, environment).map(|read| read.config)
}

/// The names that a text uses and all there are. For the tests of the reference file and of the documentation.
///
/// # Errors
/// As [`parse`].
pub fn outline(text: &str, file: &str, environment: Lookup<'_>) -> Result<Outline, Problems> {
    walk_over(text, file, environment).map(|read| read.outline)
}

/// What there is in a text without faults.
struct Read {
    config: Config,
    outline: Outline,
    warnings: Vec<Problem>,
}

fn walk_over(text: &str, file: &str, environment: Lookup<'_>) -> Result<Read, Problems> {
    // A byte order mark is no character of the first line.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > FILE_BYTES_MAX {
        return Err(Problem::of_file(file, "the file is larger than 1 MiB", None).into());
    }
    let report = Report::new(file, text);
    let mut read = None;
    if let Some(mut root) = tree::read(&report) {
        secrets::hide(&root, &report);
        environment::fill(&mut root, environment, &report);
        let walk = walk::Walk::new(&report);
        let config = read::config(&walk.root(&root));
        read = config.map(|config| (config, walk.finish()));
    }
    let warnings = report.finish()?;
    // Nothing was reported, so there is something; the other arm keeps the types honest without a panic.
    let (config, outline) =
        read.ok_or_else(|| Problem::of_file(file, "the file cannot be understood", None))?;
    Ok(Read {
        config,
        outline,
        warnings,
    })
}

/// Reads at most one byte more than is allowed: enough to see that a file is too large.
fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn unreadable(file: &str, error: &io::Error) -> Problems {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => Some("name the file with `--config`"),
        io::ErrorKind::PermissionDenied => Some("the process needs the right to read it"),
        _ => None,
    };
    let why = match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".to_owned(),
        io::ErrorKind::IsADirectory => "this is a directory, not a file".to_owned(),
        _ => format!("the file cannot be read: {error}"),
    };
    Problem::of_file(file, why, hint).into()
}

fn parse_bytes(bytes: &[u8], file: &str, environment: Lookup<'_>) -> Result<Loaded, Problems> {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        // A file that is cut at the limit may be cut inside of a character.
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
