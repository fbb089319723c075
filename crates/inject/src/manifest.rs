//! Changes the workloads of a manifest, which is a text of YAML documents.
//!
//! The text is split at `---` as kubectl splits it. A document without a workload is copied byte
//! for byte. One that changes is parsed, changed as JSON, and written back with the values that are
//! unchanged in their original spelling (`yaml`): a plain `on` or `0644` stays as it is. Comments
//! are lost, except those before the first line, and anchors and merge keys are expanded. The
//! result is parsed once more and compared, because it goes to a cluster.
//!
//! `sidestream inject` and `uninject` call [`change`] for each file, and write the result only if
//! no [`Line`] is a problem.

use std::borrow::Cow;
use std::fmt;

use super::Notice;
use super::pod::Done;
use super::workload::{self, Treated};
use super::yaml::{self, Broken};

pub use super::workload::Act;

/// Changed text, with a report.
#[derive(Debug)]
pub struct Changed {
    /// All documents of the text.
    pub text: String,
    /// At least one line for each workload.
    pub report: Vec<Line>,
}

/// Line of the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Line of the text, from 1.
    pub line: usize,
    /// Workload, such as `Deployment/orders`; empty for the text itself.
    pub subject: String,
    /// Sentence without a period.
    pub text: String,
    /// True if the result is not the requested one.
    pub is_problem: bool,
    /// True if the selector does not match the workload.
    pub is_left_out: bool,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.line)?;
        if !self.subject.is_empty() {
            write!(f, "{}: ", self.subject)?;
        }
        f.write_str(&self.text)
    }
}

/// Applies the action to every workload of a text.
#[must_use]
pub fn change(text: &str, act: Act<'_>) -> Changed {
    let mut changed = Changed {
        text: String::with_capacity(text.len()),
        report: Vec::new(),
    };
    let mut line = 1;
    for document in documents(text) {
        match treat(document, act) {
            Ok((text, treated)) => {
                changed.text.push_str(&text);
                for treated in treated {
                    changed.report.extend(report(line, treated));
                }
            }
            Err(Broken {
                line: inside,
                message,
            }) => {
                let line = line + inside.saturating_sub(1);
                changed.report.push(Line {
                    line,
                    subject: String::new(),
                    text: message,
                    is_problem: true,
                    is_left_out: false,
                });
            }
        }
        line += document.matches('\n').count();
    }
    changed
}

fn treat(document: &str, act: Act<'_>) -> Result<(String, Vec<Treated>), Broken> {
    let unchanged = |treated| Ok((document.to_owned(), treated));
    let marked = document;
    let document = &*without_marks(marked);
    let has_values = document
        .lines()
        .any(|line| !is_comment(line) && !line.starts_with(['%', '-']));
    // A document of one line `--- {...}`, or of directives, is not a problem if it is no YAML.
    let read = match yaml::read(document) {
        Ok(Some(read)) => read,
        Ok(None) => return unchanged(Vec::new()),
        Err(broken) if has_values || document.starts_with('-') => return Err(broken),
        Err(_) => return unchanged(Vec::new()),
    };
    let before = read.root.to_json();
    let mut after = before.clone();
    let treated = workload::treat(&mut after, act);
    if after == before {
        return unchanged(treated);
    }
    if let Some(fixed) = read.fixed {
        return Err(fixed);
    }
    let mut text = head(marked).to_owned();
    text.push_str(&yaml::emit(&read.root.become_json(&after)));
    // Parsed again: the result goes to a cluster.
    match yaml::read(&without_marks(&text)) {
        Ok(Some(written)) if written.root.to_json() == after => Ok((text, treated)),
        _ => Err(Broken {
            line: 1,
            message: "this document cannot be written so that it means the same".into(),
        }),
    }
}

/// Documents of a text, split at lines that begin with `---`, as kubectl does.
fn documents(text: &str) -> Vec<&str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut begin, mut at) = (0, 0);
    for line in text.split_inclusive('\n') {
        if is_separator(line.trim_start_matches(MARK)) && at > 0 {
            documents.push(&text[begin..at]);
            begin = at;
        }
        at += line.len();
    }
    documents.push(&text[begin..]);
    documents
}

/// Byte order mark.
const MARK: char = '\u{feff}';

/// Document without byte order marks. Concatenated files have theirs at the beginning, or after the
/// line `---`.
fn without_marks(document: &str) -> Cow<'_, str> {
    let document = document.trim_start_matches(MARK);
    match document.split_once('\n') {
        Some((first, rest)) if rest.starts_with(MARK) && is_separator(first) => {
            Cow::Owned(format!("{first}\n{}", rest.trim_start_matches(MARK)))
        }
        _ => Cow::Borrowed(document),
    }
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---")
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Line `---`, comments and byte order marks at the beginning of a document.
fn head(document: &str) -> &str {
    let mut end = 0;
    for line in document.split_inclusive('\n') {
        let separator = end == 0 && line.trim_start_matches(MARK).trim_end() == "---";
        if !separator && !is_comment(line) {
            break;
        }
        end += line.len();
    }
    let marks = document[end..].len() - document[end..].trim_start_matches(MARK).len();
    match &document[..end + marks] {
        // The rest of that line is part of the value.
        "" if document.starts_with("---") => "---\n",
        head => head,
    }
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.trim_end().is_empty() || line.starts_with('#')
}

fn report(line: usize, treated: Treated) -> Vec<Line> {
    let Treated {
        name,
        done,
        notices,
    } = treated;
    let is_left_out = done == Done::Left(workload::NOT_SELECTED);
    let line_of = |text: String, is_problem| Line {
        line,
        subject: name.clone(),
        text,
        is_problem,
        is_left_out,
    };
    let mut lines: Vec<_> = notices
        .iter()
        .map(|notice: &Notice| line_of(notice.to_string(), notice.is_problem()))
        .collect();
    match done {
        Done::Injected => lines.push(line_of("injected".into(), false)),
        Done::Removed => lines.push(line_of("removed".into(), false)),
        Done::Nothing => lines.push(line_of("nothing of ours was there".into(), false)),
        Done::Present => lines.push(line_of("has the sidecar".into(), false)),
        Done::Missing => lines.push(line_of("asks for the sidecar and has none".into(), true)),
        // The problem is already reported.
        Done::Left(_) if lines.iter().any(|line| line.is_problem) => {}
        Done::Left(why) => lines.push(line_of(format!("left as it is: {why}"), false)),
    }
    lines
}

#[cfg(test)]
mod tests;
