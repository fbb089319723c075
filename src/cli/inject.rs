//! `sidestream inject` and `uninject`: manifests in, manifests with or without the sidecar out.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::Exit;
use super::output::{complain, print};
use crate::injector::Defaults;
use crate::injector::manifest::{self, Act};
use crate::injector::selector::Selector;

/// 64 MiB: a hundred times what `kubectl get --all-namespaces` prints in a large cluster's
/// namespace.
const FILE_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    files: Files,
    /// Only workloads whose pods have labels that match, in kubectl's syntax:
    /// `app=orders,tier!=db,env in (a,b),!legacy`
    #[arg(short = 'l', long, value_name = "SELECTOR", value_parser = Selector::parse)]
    selector: Option<Selector>,
    /// Change nothing: report pods that ask for the sidecar and have none, as of `kubectl get pods
    /// -A -o json`
    #[arg(long)]
    check: bool,
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
    /// Value of an annotation that pods do not have, without `sidestream.dev/`; may be given
    /// several times
    #[arg(long = "default", value_name = "ANNOTATION=VALUE", value_parser = annotation)]
    annotations: Vec<(String, String)>,
}

impl DefaultArgs {
    /// The defaults, or what is wrong with them.
    pub(super) fn defaults(&self) -> Result<Defaults, String> {
        let annotations = self.annotations.iter().cloned().collect();
        let defaults = Defaults {
            image: self.image.clone(),
            config_map: self.config_map.clone(),
            annotations,
        };
        match defaults.problems().first() {
            None => Ok(defaults),
            Some(problem) => Err(format!("--default: {problem}")),
        }
    }
}

fn annotation(text: &str) -> Result<(String, String), &'static str> {
    let (name, value) = text
        .split_once('=')
        .ok_or("expected ANNOTATION=VALUE, such as cpu-limit=1")?;
    Ok((
        name.strip_prefix("sidestream.dev/")
            .unwrap_or(name)
            .to_owned(),
        value.to_owned(),
    ))
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
            // The line of a list is that of its beginning.
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

/// Writes everything or nothing: half of a roll-out is worse than none.
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
    // A selector with a typing error must not look like success.
    if left_out > 0 && left_out == treated {
        complain("the selector matches no workload; nothing was injected");
    }
    // A reader that has left is a failure here: what it has is half of a roll-out.
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

/// The text of a file, or a line on standard error that says why there is none.
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
