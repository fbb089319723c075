//! The demo's temporary directory: nobody else may read it, and it goes with the demo.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::cli::output;

/// A private directory that is removed, with all that is in it, when this is dropped.
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Creates a new one below the system's temporary directory.
    pub(super) fn create() -> io::Result<Self> {
        let name = format!(
            "sidestream-demo-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        );
        let path = std::env::temp_dir().join(name);
        // `create` fails if the name exists: nobody can have laid a directory of his own there.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            output::complain(format_args!(
                "sidestream demo: {} is left in place: {error}",
                self.0.display()
            ));
        }
    }
}
