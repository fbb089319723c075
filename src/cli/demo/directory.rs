//! Temporary directory of the demo: private to the user, removed at the end.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::cli::output;

/// Private directory that is removed with its contents on drop.
pub(super) struct Directory(PathBuf);

impl Directory {
    /// Creates a directory in the system's temporary directory.
    pub(super) fn create() -> io::Result<Self> {
        let name = format!(
            "sidestream-demo-{}-{:08x}",
            std::process::id(),
            fastrand::u32(..)
        );
        let path = std::env::temp_dir().join(name);
        // `create` fails if the name exists, so a prepared directory of another user is never used.
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    /// Path of the directory.
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
