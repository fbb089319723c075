//! One fault in a configuration, told as a compiler tells it: where, what, and what to do.

use std::cell::{Cell, RefCell};
use std::fmt;

use serde::Serialize;

use super::secrets::{Hidden, Masks};

/// A place in the text; lines and columns count from 1, in characters. Line 0: the file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// A stretch of the text: line (from 1) and column (from 0, in characters) of its first character, and of the one after
/// its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: (usize, usize),
    pub(super) until: (usize, usize),
}

impl Mark {
    /// The characters that it is about.
    pub(super) fn span(self) -> Span {
        let column = self.column.saturating_sub(1);
        Span {
            from: (self.line, column),
            until: (self.line, column + self.width),
        }
    }
}

/// How bad a fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is not used.
    Error,
    /// The file is used, but may not do what was meant.
    Warning,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Whether the file is used nevertheless.
    #[serde(skip)]
    pub severity: Severity,
    /// The file's name as it was given.
    pub file: String,
    /// Counts from 1; 0: the fault is the file's as a whole.
    pub line: usize,
    /// Counts from 1, in characters; 0: the fault is the file's as a whole.
    pub column: usize,
    /// The line as it stands in the file: never the value of an environment variable, whatever could be a secret as `*`.
    pub excerpt: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if that can be said.
    pub hint: Option<String>,
    /// Where the fault begins in the excerpt, and how many characters it has.
    #[serde(skip)]
    caret: (usize, usize),
}

impl Problem {
    /// A fault of the file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            excerpt: String::new(),
            message: message.into(),
            hint: hint.map(str::to_owned),
            caret: (0, 0),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        writeln!(f, "{severity}: {}", self.message)?;
        if self.line == 0 {
            write!(f, "  --> {}", self.file)?;
        } else {
            let margin = self.line.to_string().len();
            let (before, width) = self.caret;
            writeln!(
                f,
                "{:margin$}--> {}:{}:{}",
                "", self.file, self.line, self.column
            )?;
            writeln!(f, "{:margin$} |", "")?;
            writeln!(f, "{} | {}", self.line, self.excerpt)?;
            write!(f, "{:margin$} | {:before$}{}", "", "", "^".repeat(width))?;
        }
        if let Some(hint) = &self.hint {
            let margin = if self.line == 0 {
                1
            } else {
                self.line.to_string().len()
            };
            write!(f, "\n{:margin$} = hint: {hint}", "")?;
        }
        Ok(())
    }
}

/// Every fault of a file, in the order of its lines; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// The most that are told; a file with more is told these first.
    pub const COUNT_MAX: usize = 100;

    /// The faults.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }

    /// As JSON, for logs and the admin side.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!(self.0)
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.0 {
            writeln!(f, "{problem}\n")?;
        }
        let file = self.0.first().map_or("the file", |problem| &problem.file);
        match self.0.len() {
            1 => write!(f, "{file}: 1 problem"),
            Self::COUNT_MAX.. => write!(f, "{file}: {} problems or more", Self::COUNT_MAX),
            count => write!(f, "{file}: {count} problems"),
        }
    }
}

impl std::error::Error for Problems {}

/// Where the faults of one text are collected.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    findings: RefCell<Vec<Finding>>,
    hidden: RefCell<Vec<(Span, Hidden)>>,
    is_broken: Cell<bool>,
}

/// A fault without its excerpt: what must not be shown of its line is known only at the end.
#[derive(PartialEq, Eq)]
struct Finding {
    severity: Severity,
    at: Mark,
    message: String,
    hint: Option<String>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        let (findings, hidden) = (RefCell::default(), RefCell::default());
        Self {
            file,
            text,
            findings,
            hidden,
            is_broken: Cell::new(false),
        }
    }

    /// Adds a fault. Through an alias the same one may be found twice; it is told once.
    pub(super) fn add(&self, at: Mark, message: impl Into<String>, hint: Option<String>) {
        self.find(Severity::Error, at, message.into(), hint);
    }

    /// Adds a warning.
    pub(super) fn warn(&self, at: Mark, message: impl Into<String>, hint: &str) {
        self.find(Severity::Warning, at, message.into(), Some(hint.to_owned()));
    }

    fn find(&self, severity: Severity, at: Mark, message: String, hint: Option<String>) {
        let mut findings = self.findings.borrow_mut();
        let known = findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count();
        let finding = Finding {
            severity,
            at,
            message,
            hint,
        };
        if known < Problems::COUNT_MAX && !findings.contains(&finding) {
            findings.push(finding);
        }
    }

    /// Keeps a stretch of the text out of every excerpt.
    pub(super) fn hide(&self, span: Span, what: Hidden) {
        self.hidden.borrow_mut().push((span, what));
    }

    /// The structure of the text is not known: what may be a secret is judged by its letters.
    pub(super) fn break_off(&self) {
        self.is_broken.set(true);
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// The warnings, if the text has no fault.
    pub(super) fn finish(self) -> Result<Vec<Problem>, Problems> {
        let mut findings = self.findings.into_inner();
        findings.sort_by_key(|finding| (finding.at.line, finding.at.column));
        let lines = findings.iter().map(|finding| finding.at.line).collect();
        let masks = Masks::new(
            self.text,
            &lines,
            &self.hidden.into_inner(),
            self.is_broken.get(),
        );
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        for Finding {
            severity,
            at,
            message,
            hint,
        } in findings
        {
            let (excerpt, caret) = excerpt(masks.line(at.line), at);
            let file = self.file.to_owned();
            let problem = Problem {
                severity,
                file,
                line: at.line,
                column: at.column,
                excerpt,
                message,
                hint,
                caret,
            };
            match severity {
                Severity::Error => errors.push(problem),
                Severity::Warning => warnings.push(problem),
            }
        }
        if errors.is_empty() {
            Ok(warnings)
        } else {
            Err(Problems(errors))
        }
    }
}

/// 160 characters: two terminal lines at most.
const EXCERPT_WIDTH_MAX: usize = 160;

/// The part of a masked line around a mark that can be shown, and where the caret stands under it.
fn excerpt(line: &[char], at: Mark) -> (String, (usize, usize)) {
    let column = at.column.saturating_sub(1).min(line.len());
    let from = if line.len() <= EXCERPT_WIDTH_MAX {
        0
    } else {
        column.saturating_sub(EXCERPT_WIDTH_MAX / 2)
    };
    let until = line.len().min(from + EXCERPT_WIDTH_MAX);
    let width = at.width.clamp(1, (until - column).max(1));
    // One character for one, or the caret would stand elsewhere.
    let text: String = line[from..until]
        .iter()
        .map(|char| if char.is_control() { ' ' } else { *char })
        .collect();
    (text.trim_end().to_owned(), (column - from, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_caret_stands_under_the_fault_also_in_a_very_long_line() {
        let line = format!("{}bad", "x".repeat(1000));
        let line: Vec<char> = line.chars().collect();
        let (text, (before, width)) = excerpt(
            &line,
            Mark {
                line: 1,
                column: 1001,
                width: 3,
            },
        );
        assert_eq!(&text[before..before + width], "bad");
        assert!(text.len() <= EXCERPT_WIDTH_MAX);
    }

    #[test]
    fn a_fault_outside_its_line_is_still_told() {
        let report = Report::new("f", "a\n");
        report.add(
            Mark {
                line: 7,
                column: 90,
                width: 40,
            },
            "wrong",
            None,
        );
        let problems = report.finish().unwrap_err();
        assert_eq!(
            problems.to_string(),
            "error: wrong\n --> f:7:90\n  |\n7 | \n  | ^\n\nf: 1 problem"
        );
    }
}
