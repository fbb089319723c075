//! `sidestream inject` and `uninject`: add the sidecar to the workloads of manifests, or remove it.
//!
//! Files are read one after the other, changed by `sidestream_inject::manifest`, and written to
//! standard output as one text of YAML documents. Reports go to standard error. If any line of a
//! report is a problem, nothing is written, because half of a rollout is worse than none. `--check`
//! writes nothing, and fails if a pod requests the sidecar and has none.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use sidestream_inject::args::DefaultArgs;
use sidestream_inject::manifest::{self, Act};
use sidestream_inject::selector::Selector;

use super::exit::Exit;
use super::output::{complain, print};

/// 64 MiB: a hundred times the output of `kubectl get` for a large namespace.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    /// Only workloads with matching pod labels, in the syntax of kubectl: `app=orders,tier!=db`,
    /// `env in (a,b),!legacy`
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = Selector::parse)]
    selector: Option<Selector>,
    /// Change nothing: report pods that request the sidecar and have none, for example in the
    /// output of `kubectl get pods -A -o json`
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    defaults: DefaultArgs,
}

/// Input files.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// File with manifests, or `-` for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// Report problems only
    #[arg(short, long)]
    quiet: bool,
}

pub(super) fn inject(arguments: &Args) -> Exit {
    let defaults = match arguments.defaults.defaults() {
        Ok(defaults) => defaults,
        Err(why) => {
            complain(why);
            return Exit::Usage;
        }
    };
    if arguments.check {
        return check(
            &arguments.files,
            arguments.selector.as_ref().unwrap_or(&Selector::injected()),
        );
    }
    change(
        &arguments.files,
        match &arguments.selector {
            None => Act::Inject(&defaults),
            Some(selector) => Act::InjectSelected(&defaults, selector),
        },
    )
}

/// Reports pods that a selector matches and that have no sidecar.
fn check(files: &Files, selector: &Selector) -> Exit {
    let (mut checked, mut problems) = (0, 0);
    for file in &files.files {
        let name = name(file);
        let Some(text) = read_or_report(&name, file) else {
            return Exit::Usage;
        };
        let report = manifest::change(&text, Act::Check(selector)).report;
        checked += report.len();
        for line in report.iter().filter(|line| line.is_problem) {
            // All items of a list have the line of the list.
            let subject = if line.subject.is_empty() {
                format!("{name}:{}", line.line)
            } else {
                line.subject.clone()
            };
            complain(format_args!("{subject}: {}", line.text));
            problems += 1;
        }
    }
    if !files.quiet || problems > 0 {
        complain(format_args!(
            "{checked} ask for the sidecar; {problems} have none"
        ));
    }
    if problems == 0 {
        Exit::Clean
    } else {
        Exit::Usage
    }
}

pub(super) fn uninject(files: &Files) -> Exit {
    change(files, Act::Uninject)
}

/// Changes the files and writes the result, unless there is a problem.
fn change(files: &Files, act: Act<'_>) -> Exit {
    let mut out = String::new();
    let (mut problems, mut left_out, mut treated) = (0, 0, 0);
    for file in &files.files {
        let name = name(file);
        let Some(text) = read_or_report(&name, file) else {
            return Exit::Usage;
        };
        let changed = manifest::change(&text, act);
        for line in changed
            .report
            .iter()
            .filter(|line| line.is_problem || !files.quiet)
        {
            complain(format_args!("{name}:{line}"));
        }
        problems += changed.report.iter().filter(|line| line.is_problem).count();
        left_out += changed
            .report
            .iter()
            .filter(|line| line.is_left_out)
            .count();
        treated += changed.report.len();
        append(&mut out, &changed.text);
    }
    if problems > 0 {
        let noun = if problems == 1 { "problem" } else { "problems" };
        complain(format_args!("{problems} {noun}; nothing was written"));
        return Exit::Usage;
    }
    // A selector with a typo must not look like success.
    if left_out > 0 && left_out == treated {
        complain("the selector matches no workload; nothing was injected");
    }
    // A closed pipe is a failure here: the reader has half of a rollout.
    match print(&out) {
        Ok(()) => Exit::Clean,
        Err(error) => {
            complain(format_args!(
                "sidestream: cannot write to standard output: {error}"
            ));
            Exit::Internal
        }
    }
}

/// Appends a text, which begins a new document.
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

/// Reads a file. An error is reported on standard error.
fn read_or_report(name: &str, file: &Path) -> Option<String> {
    read(file)
        .map_err(|error| complain(format_args!("{name}: {error}")))
        .ok()
}

fn read(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    let source: &mut dyn io::Read = if is_stdin(file) {
        &mut io::stdin()
    } else {
        &mut std::fs::File::open(file)?
    };
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other("is larger than 64 MiB"));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("is not UTF-8"))
}

fn name(file: &Path) -> String {
    if is_stdin(file) {
        "standard input".into()
    } else {
        file.display().to_string()
    }
}

fn is_stdin(file: &Path) -> bool {
    file.as_os_str() == "-"
}
