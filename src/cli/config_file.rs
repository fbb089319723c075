//! Configuration file of commands that run beside a sidecar, if they are not given one.

use std::path::Path;

/// Default files: the one of `run`, then the one of the container image.
const FILES: [&str; 2] = ["sidecar.yaml", "/etc/sidestream/sidecar.yaml"];

/// Returns the file of the command line, or else the first default file that exists.
pub(super) fn config_file(named: Option<&Path>) -> Option<&Path> {
    named.or_else(|| FILES.map(Path::new).into_iter().find(|file| file.exists()))
}
