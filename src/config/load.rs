//! Loads a configuration: reads the file, parses the text, checks it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::effective::effective;
use super::environment::{self, Lookup};
use super::model::{Config, RevocationAccess};
use super::problem::{Problem, Problems, Report};
use super::reader::{Outline, Reader};
use super::{read, secrets, tree, units};

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

/// Reads `nats` and `authentication.revocations` of a file. The rest is not checked, and its
/// variables may be missing in the environment.
///
/// # Errors
/// Every problem of these keys. An unreadable file is one problem.
pub fn load_revocation_access(path: &Path) -> Result<RevocationAccess, Problems> {
    let name = path.display().to_string();
    let bytes = read_file(path).map_err(|error| unreadable(&name, &error))?;
    let text = text(&bytes, &name)?;
    let report = Report::new(&name, text);
    let mut access = None;
    if let Some(mut root) = tree::read(&report) {
        // Before anything is removed: an excerpt may show other keys of the same line.
        secrets::hide(&root, &report);
        root.retain(&["nats", "authentication"]);
        if let Some(authentication) = root.get_mut("authentication") {
            authentication.retain(&["revocations"]);
        }
        let environment = |name: &str| std::env::var(name).ok();
        environment::fill(&mut root, &environment, &report);
        access = read::revocation_access(&Reader::new(&report).root(&root));
    }
    report.finish()?;
    access.ok_or_else(|| {
        Problem::of_file(&name, "the file cannot be read as a configuration", None).into()
    })
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
        let reader = Reader::new(&report);
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
pub(super) fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(FILE_BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn unreadable(file: &str, error: &io::Error) -> Problems {
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

pub(super) fn parse_bytes(
    bytes: &[u8],
    file: &str,
    environment: Lookup<'_>,
) -> Result<Loaded, Problems> {
    let Read {
        config, warnings, ..
    } = walk_over(text(bytes, file)?, file, environment)?;
    let content_hash = hash(effective(&config).to_string().as_bytes());
    Ok(Loaded {
        config,
        content_hash,
        text_hash: hash(bytes),
        warnings,
    })
}

/// Returns the text of a file.
fn text<'b>(bytes: &'b [u8], file: &str) -> Result<&'b str, Problems> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Problem::of_file(file, "the file is larger than 1 MiB", None).into());
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count()
            + 1;
        let message = format!("the file is not UTF-8, first in line {line}");
        Problem::of_file(file, message, Some("save it as UTF-8"))
    })?;
    // A byte order mark is not part of the first line.
    Ok(text.strip_prefix('\u{feff}').unwrap_or(text))
}

pub(super) fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
