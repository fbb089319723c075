//! Manifests as people keep them: texts of many documents, of which only workloads change.

use std::borrow::Cow;
use std::fmt;

use super::Notice;
use super::pod::Done;
use super::workload::{self, Treated};
use super::yaml::{self, Broken};

pub use super::workload::Act;

/// What became of a text.
#[derive(Debug)]
pub struct Changed {
    /// All its documents; those without a workload byte for byte, comments included.
    pub text: String,
    /// One line about each workload.
    pub report: Vec<Line>,
}

/// Something to be told about a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// The line it is about, from 1.
    pub line: usize,
    /// The workload, such as `Deployment/orders`; empty for the text itself.
    pub subject: String,
    /// The sentence.
    pub text: String,
    /// Whether the result is not what was asked for.
    pub is_problem: bool,
    /// Whether a selector leaves the workload out.
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

/// Treats every workload of a text.
///
/// What is not added is as it was for kubectl: a plain `on` or `0644` is written as it was read. In a document that
/// changes, comments are lost but those before its first line; anchors and merges are written out.
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
                    changed.report.extend(tell(line, treated));
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
    // A document of one line `--- {...}`, or of directives: what stands on such lines is looked at only if it is YAML.
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
    // What goes to a cluster is looked at once more, with the eyes of a reader.
    match yaml::read(&without_marks(&text)) {
        Ok(Some(written)) if written.root.to_json() == after => Ok((text, treated)),
        _ => Err(Broken {
            line: 1,
            message: "this document cannot be written so that it means the same".into(),
        }),
    }
}

/// The documents of a text, split where kubectl splits: at lines that begin with `---`.
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

/// A byte order mark.
const MARK: char = '\u{feff}';

/// A document without byte order marks: files that were joined have theirs at its beginning, or after its line `---`.
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

/// The line `---` and the comments that a document begins with, and its byte order marks.
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
        // The dashes are gone with what followed them on their line.
        "" if document.starts_with("---") => "---\n",
        head => head,
    }
}

fn is_comment(line: &str) -> bool {
    let line = line.trim_start();
    line.trim_end().is_empty() || line.starts_with('#')
}

fn tell(line: usize, treated: Treated) -> Vec<Line> {
    let Treated {
        name,
        done,
        notices,
    } = treated;
    let is_left_out = done == Done::Left(workload::NOT_SELECTED);
    let tell = |text: String, is_problem| Line {
        line,
        subject: name.clone(),
        text,
        is_problem,
        is_left_out,
    };
    let mut lines: Vec<_> = notices
        .iter()
        .map(|notice: &Notice| tell(notice.to_string(), notice.is_problem()))
        .collect();
    match done {
        Done::Injected => lines.push(tell("injected".into(), false)),
        Done::Removed => lines.push(tell("removed".into(), false)),
        Done::Nothing => lines.push(tell("nothing of ours was there".into(), false)),
        Done::Present => lines.push(tell("has the sidecar".into(), false)),
        Done::Missing => lines.push(tell("asks for the sidecar and has none".into(), true)),
        // The problem says it.
        Done::Left(_) if lines.iter().any(|line| line.is_problem) => {}
        Done::Left(why) => lines.push(tell(format!("left as it is: {why}"), false)),
    }
    lines
}

#[cfg(test)]
mod tests;
