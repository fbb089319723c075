//! `sidestream inject` and `uninject`: manifests in, manifests with or without the sidecar out.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Exit;
use super::output::{complain, print};
use crate::injector::Defaults;
use crate::injector::manifest::{self, Act};

/// 64 MiB: a hundred times what `kubectl get --all-namespaces` prints in a large cluster's namespace.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    #[command(flatten)]
    defaults: DefaultArgs,
}

/// What is read.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// A file with manifests, `-` for standard input; may be given several times
    #[arg(short, long = "file", value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Tell problems only
    #[arg(short, long)]
    quiet: bool,
}

/// What applies where no annotation says otherwise.
#[derive(Debug, clap::Args)]
pub(super) struct DefaultArgs {
    /// The sidecar's image
    #[arg(long, default_value_t = Defaults::default().image)]
    image: String,
    /// The ConfigMap with the file `sidecar.yaml`
    #[arg(long, value_name = "NAME", default_value_t = Defaults::default().config_map)]
    config_map: String,
}

impl DefaultArgs {
    pub(super) fn defaults(&self) -> Defaults {
        Defaults { image: self.image.clone(), config_map: self.config_map.clone() }
    }
}

pub(super) fn inject(arguments: &Args) -> Exit {
    change(&arguments.files, Act::Inject(&arguments.defaults.defaults()))
}

pub(super) fn uninject(files: &Files) -> Exit {
    change(files, Act::Uninject)
}

/// Writes everything or nothing: half of a roll-out is worse than none.
fn change(files: &Files, act: Act<'_>) -> Exit {
    let mut out = String::new();
    let mut problems = 0;
    for file in &files.files {
        let name = if is_stdin(file) { "standard input".into() } else { file.display().to_string() };
        let text = match read(file) {
            Ok(text) => text,
            Err(error) => {
                complain(format_args!("{name}: {error}"));
                return Exit::Usage;
            }
        };
        let changed = manifest::change(&text, act);
        for line in changed.report.iter().filter(|line| line.is_problem || !files.quiet) {
            complain(format_args!("{name}:{line}"));
        }
        problems += changed.report.iter().filter(|line| line.is_problem).count();
        append(&mut out, &changed.text);
    }
    if problems > 0 {
        let noun = if problems == 1 { "problem" } else { "problems" };
        complain(format_args!("{problems} {noun}; nothing was written"));
        return Exit::Usage;
    }
    // A reader that has left is a failure here: what it has is half of a roll-out.
    match print(&out) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            complain(format_args!("sidestream: cannot write to standard output: {error}"));
            Exit::Internal
        }
    }
}

/// A file that follows another begins a document.
fn append(out: &mut String, text: &str) {
    if !out.is_empty() {
        if !out.ends_with('\n') {
            out.push('\n');
        }
        if !text.starts_with("---") {
            out.push_str("---\n");
        }
    }
    out.push_str(text);
}

fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let source: &mut dyn io::Read = if is_stdin(file) { &mut io::stdin() } else { &mut std::fs::File::open(file)? };
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("is larger than 64 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("is not UTF-8"))
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}
