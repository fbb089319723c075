//! `sidestream schema check`: whether a change of JSON Schemas is backward compatible, for CI.
//!
//! Compares two files, or the `.json` files of two folders by their paths. Each incompatibility is
//! one line on standard output, `FILE#POINTER: REASON`, with the place in the old schema. What is
//! not a schema goes to standard error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::payload::schema::{
    FolderLimits, SchemaDocuments, incompatibilities, read_file, read_folder,
};

/// 16 MiB for one file: far more than a schema for people.
const LIMITS: FolderLimits = FolderLimits {
    file_bytes: 16 << 20,
    bytes: 256 << 20,
    files: 100_000,
};

/// Arguments of `schema`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that every event which is valid under the new schemas is valid under the old ones;
    /// exits with 65 and prints each incompatibility if not
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The schema that consumers know: a file, or a folder of `.json` files
    #[arg(long, value_name = "PATH")]
    old: PathBuf,
    /// The schema that replaces it
    #[arg(long, value_name = "PATH")]
    new: PathBuf,
}

pub(super) fn run(arguments: &Args) -> Exit {
    let Command::Check(check) = &arguments.command;
    let (old, new) = match (read(&check.old), read(&check.new)) {
        (Ok(old), Ok(new)) => (old, new),
        (Err(problem), _) | (_, Err(problem)) => {
            complain(problem);
            return Exit::Usage;
        }
    };
    if old.is_folder != new.is_folder {
        complain(
            "--old and --new: one is a file and the other a folder; compare two files or two folders",
        );
        return Exit::Usage;
    }
    let found = incompatibilities(&old.documents, &new.documents);
    let lines: String = found
        .iter()
        .map(|line| {
            let file = old.file(&line.path);
            format!("{}#{}: {}\n", file.display(), line.pointer, line.reason)
        })
        .collect();
    if found.is_empty() {
        let count = old.documents.paths().count();
        let noun = if count == 1 { "schema" } else { "schemas" };
        return exit_of(print(&format!("{count} {noun}: backward compatible\n")));
    }
    match exit_of(print(&lines)) {
        Exit::Clean => Exit::Finding,
        failure => failure,
    }
}

/// Schemas of one side.
struct Side {
    root: PathBuf,
    is_folder: bool,
    documents: SchemaDocuments,
}

impl Side {
    /// File of a document.
    fn file(&self, path: &str) -> PathBuf {
        if self.is_folder {
            self.root.join(path)
        } else {
            self.root.clone()
        }
    }
}

/// Reads a file, or all schemas of a folder. The error is a line for people.
fn read(root: &Path) -> Result<Side, String> {
    let mut side = Side {
        root: root.to_owned(),
        is_folder: root.is_dir(),
        documents: SchemaDocuments::default(),
    };
    let files = if side.is_folder {
        read_folder(root, LIMITS)?
    } else {
        // Both files have the same path, so that they are compared whatever their names are.
        BTreeMap::from([("schema.json".into(), read_file(root, LIMITS.file_bytes)?)])
    };
    for (path, text) in files {
        let added = side.documents.add(&path, &text);
        added.map_err(|error| format!("{}: {error}", side.file(&path).display()))?;
    }
    Ok(side)
}
