//! Schema documents of a folder: its `.json` files by their paths.
//!
//! Names that begin with a dot are skipped, among them the directories with which the kubelet
//! mounts a ConfigMap. Links are followed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;

use bytes::Bytes;

use super::schemas::limits;

/// Deepest folder below the one that is read; also ends cycles of symbolic links.
const FOLDER_DEPTH_MAX: usize = 32;

/// Limits of a folder.
#[derive(Clone, Copy, Debug)]
pub struct FolderLimits {
    /// Bytes of one file.
    pub file_bytes: usize,
    /// Bytes of all files.
    pub bytes: usize,
    /// Number of files.
    pub files: usize,
}

impl FolderLimits {
    /// Limits of schemas that payloads are validated with.
    pub const IN_FORCE: Self = Self {
        file_bytes: limits::DOCUMENT_BYTES_MAX,
        bytes: limits::BYTES_MAX,
        files: limits::DOCUMENTS_MAX,
    };
}

/// Reads the `.json` files of a folder and of the folders below it, by their paths with `/`.
///
/// Blocks.
///
/// # Errors
/// A sentence with the path of what cannot be read.
pub fn read_folder(root: &Path, limits: FolderLimits) -> Result<BTreeMap<String, Bytes>, String> {
    let shown = |error: io::Error| format!("{}: {error}", root.display());
    let mut paths = Vec::new();
    list(root, "", FOLDER_DEPTH_MAX, limits.files, &mut paths).map_err(shown)?;
    if paths.is_empty() {
        return Err(format!("{}: the folder has no .json files", root.display()));
    }
    let mut bytes = 0;
    let mut documents = BTreeMap::new();
    for path in paths {
        let file = root.join(&path);
        let text = read_file(&file, limits.file_bytes)?;
        bytes += text.len();
        if bytes > limits.bytes {
            let max = limits.bytes >> 20;
            return Err(format!(
                "{}: more than {max} MiB of schemas",
                root.display()
            ));
        }
        documents.insert(path, text);
    }
    Ok(documents)
}

/// Reads a file with at most as many bytes. Blocks.
///
/// # Errors
/// A sentence with the path.
pub fn read_file(file: &Path, bytes_max: usize) -> Result<Bytes, String> {
    let read = || {
        let mut bytes = Vec::new();
        let max = bytes_max as u64;
        File::open(file)?.take(max + 1).read_to_end(&mut bytes)?;
        if bytes.len() > bytes_max {
            let max = bytes_max >> 20;
            return Err(io::Error::other(format!("is larger than {max} MiB")));
        }
        Ok(Bytes::from(bytes))
    };
    read().map_err(|error: io::Error| format!("{}: {error}", file.display()))
}

/// Adds the paths of all `.json` files below a folder, relative to the first one.
fn list(
    folder: &Path,
    prefix: &str,
    depth: usize,
    files_max: usize,
    files: &mut Vec<String>,
) -> io::Result<()> {
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
            list(&path, &format!("{relative}/"), depth - 1, files_max, files)?;
        } else if path.extension().is_some_and(|end| end == "json") {
            files.push(relative);
        }
        if files.len() > files_max {
            let message = format!("the folder has more than {files_max} .json files");
            return Err(io::Error::other(message));
        }
    }
    Ok(())
}
