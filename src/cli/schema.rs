//! `sidestream schema check`: whether a change of JSON Schemas is backward compatible, for CI.
//!
//! Compares two files, or the `.json` files of two folders by their paths. Each incompatibility is
//! one line on standard output, `FILE#POINTER: REASON`, with the place in the old schema. What is
//! not a schema goes to standard error.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::exit::Exit;
use super::output::{complain, exit_of, print};
use crate::payload::schema::{SchemaDocuments, incompatibilities};

/// Largest schema file, 16 MiB: far more than a schema for people.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Deepest folder below the one that is compared; also ends cycles of symbolic links.
const FOLDER_DEPTH_MAX: usize = 32;

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
        Exit::Clean => Exit::Incompatible,
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
    if !side.is_folder {
        // Both files have the same path, so that they are compared whatever their names are.
        add(&mut side.documents, "schema.json", root)?;
        return Ok(side);
    }
    let mut files = Vec::new();
    list(root, "", FOLDER_DEPTH_MAX, &mut files)
        .map_err(|error| format!("{}: {error}", root.display()))?;
    if files.is_empty() {
        return Err(format!("{}: the folder has no .json files", root.display()));
    }
    for path in files {
        add(&mut side.documents, &path, &root.join(&path))?;
    }
    Ok(side)
}

fn add(documents: &mut SchemaDocuments, path: &str, file: &Path) -> Result<(), String> {
    let text = bytes(file).map_err(|error| format!("{}: {error}", file.display()))?;
    documents
        .add(path, &text)
        .map_err(|error| format!("{}: {error}", file.display()))
}

fn bytes(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(file)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("is larger than 16 MiB"));
    }
    Ok(bytes)
}

/// Adds the paths of all `.json` files below a folder, relative to the first one.
fn list(folder: &Path, prefix: &str, depth: usize, files: &mut Vec<String>) -> io::Result<()> {
    if depth == 0 {
        return Err(io::Error::other("folders are nested too deeply"));
    }
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| !name.starts_with('.')) else {
            continue;
        };
        let relative = format!("{prefix}{name}");
        if path.is_dir() {
            list(&path, &format!("{relative}/"), depth - 1, files)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "json")
        {
            files.push(relative);
        }
    }
    Ok(())
}
