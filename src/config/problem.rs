//! Problems of a configuration, with location, excerpt and hint, as a compiler reports them.
//!
//! [`Report`] collects the findings of one text while it is parsed and read. A finding has a
//! [`Location`], a message and perhaps a hint, but no excerpt yet: which parts of a line may be
//! secret is known only when the whole text was seen ([`Report::hide`]). [`Report::finish`] sorts
//! the findings by line, masks the lines, cuts each excerpt to [`EXCERPT_WIDTH_MAX`] characters and
//! returns either the warnings or every error.
//!
//! `Display` draws a problem with `annotate-snippets`, in the form of rustc's messages:
//!
//! ```text
//! error: `lag` is at least 4
//!   --> sidecar.yaml:30:13
//!    |
//! 30 |     slow: { lag: 3 }
//!    |             ^^^
//!    |
//!    = hint: a quarter of it must be an event
//! ```

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use serde::Serialize;

use super::location::{Location, TextRange};
use super::mask::{Hidden, Masks};

/// Effect of a problem on the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The file is rejected.
    Error,
    /// The file is used, but it may not do what its author meant.
    Warning,
}

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Effect on the file.
    #[serde(skip)]
    pub severity: Severity,
    /// Name of the file, as in the command line.
    pub file: String,
    /// Line, from 1; 0 if the problem concerns the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 if the problem concerns the file as a whole.
    pub column: usize,
    /// The line of the file, or the part of a long line around the problem. Possible secrets are
    /// replaced by `*`, and variables of the environment are not filled in.
    pub excerpt: String,
    /// Description of the problem.
    pub message: String,
    /// Remedy, if one is known.
    pub hint: Option<String>,
    #[serde(skip)]
    caret: Caret,
}

/// Position of a problem in its excerpt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Caret {
    /// Bytes of the excerpt to underline.
    bytes: Range<usize>,
    /// The excerpt begins in the middle of the line, so columns in it are not columns of the file.
    is_cut: bool,
}

impl Problem {
    /// Returns an error of the file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>, hint: Option<&str>) -> Self {
        Self {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            excerpt: String::new(),
            message: message.into(),
            hint: hint.map(str::to_owned),
            caret: Caret::default(),
        }
    }

    fn group(&self) -> Group<'_> {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(self.message.as_str()));
        if self.line == 0 {
            group = group.element(Origin::path(self.file.as_str()));
        } else {
            let annotation = AnnotationKind::Primary.span(self.caret.bytes.clone());
            let mut snippet = Snippet::source(self.excerpt.as_str())
                .line_start(self.line)
                .annotation(annotation);
            if self.caret.is_cut {
                let origin = Origin::path(self.file.as_str());
                group = group.element(origin.line(self.line).char_column(self.column));
            } else {
                snippet = snippet.path(self.file.as_str());
            }
            group = group.element(snippet);
        }
        match &self.hint {
            Some(hint) => group.element(Level::HELP.with_name("hint").message(hint.as_str())),
            None => group,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Wider than every excerpt: the excerpt is cut already.
        let renderer = Renderer::plain().term_width(2 * EXCERPT_WIDTH_MAX);
        f.write_str(renderer.render(&[self.group()]).trim_end())
    }
}

/// Every error of a file, in the order of its lines; at least one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Maximum number of reported problems; of a file with more, the first are reported.
    pub const COUNT_MAX: usize = 100;

    /// Returns the problems.
    #[must_use]
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }

    /// Returns the problems as JSON, for the log and the admin port.
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

/// Collector of the problems of one text.
pub(super) struct Report<'t> {
    file: &'t str,
    text: &'t str,
    findings: RefCell<Vec<Finding>>,
    hidden: RefCell<Vec<(TextRange, Hidden)>>,
    is_broken: Cell<bool>,
}

/// Problem without its excerpt, which is masked and cut in [`Report::finish`].
#[derive(PartialEq, Eq)]
struct Finding {
    severity: Severity,
    at: Location,
    message: String,
    hint: Option<String>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self {
            file,
            text,
            findings: RefCell::default(),
            hidden: RefCell::default(),
            is_broken: Cell::new(false),
        }
    }

    /// Adds an error. The same error may be found twice through an alias; it is reported once.
    pub(super) fn error(&self, at: Location, message: impl Into<String>, hint: Option<String>) {
        self.add(Severity::Error, at, message.into(), hint);
    }

    /// Adds a warning.
    pub(super) fn warn(&self, at: Location, message: impl Into<String>, hint: &str) {
        self.add(Severity::Warning, at, message.into(), Some(hint.to_owned()));
    }

    fn add(&self, severity: Severity, at: Location, message: String, hint: Option<String>) {
        let mut findings = self.findings.borrow_mut();
        let count = findings
            .iter()
            .filter(|finding| finding.severity == severity)
            .count();
        let finding = Finding {
            severity,
            at,
            message,
            hint,
        };
        if count < Problems::COUNT_MAX && !findings.contains(&finding) {
            findings.push(finding);
        }
    }

    /// Masks a range of the text in every excerpt.
    pub(super) fn hide(&self, range: TextRange, what: Hidden) {
        self.hidden.borrow_mut().push((range, what));
    }

    /// Marks the text as broken: its structure is unknown, so possible secrets are found by the
    /// letters of its lines.
    pub(super) fn mark_broken(&self) {
        self.is_broken.set(true);
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// Returns the warnings, or every error if there is one.
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
            let problem = Problem {
                severity,
                file: self.file.to_owned(),
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

/// 160 characters: at most two lines of a terminal.
const EXCERPT_WIDTH_MAX: usize = 160;

/// Returns the part of a masked line around a location, and the position of the location in it.
fn excerpt(line: &[char], at: Location) -> (String, Caret) {
    let column = at.column.saturating_sub(1).min(line.len());
    let from = if line.len() <= EXCERPT_WIDTH_MAX {
        0
    } else {
        column.saturating_sub(EXCERPT_WIDTH_MAX / 2)
    };
    let until = line.len().min(from + EXCERPT_WIDTH_MAX);
    let width = at.width.clamp(1, (until - column).max(1));
    // Control characters are replaced by one space each, so the columns stay right.
    let text: String = line[from..until]
        .iter()
        .map(|char| if char.is_control() { ' ' } else { *char })
        .collect();
    let excerpt = text.trim_end();
    let byte_of = |column: usize| {
        let mut bytes = excerpt.char_indices().map(|(byte, _)| byte);
        bytes.nth(column).unwrap_or(excerpt.len())
    };
    let caret = Caret {
        bytes: byte_of(column - from)..byte_of(column - from + width),
        is_cut: from > 0,
    };
    (excerpt.to_owned(), caret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caret_marks_the_problem_in_a_very_long_line() {
        let text = format!("{}bad", "x".repeat(1000));
        let report = Report::new("f", &text);
        let at = Location {
            line: 1,
            column: 1001,
            width: 3,
        };
        report.error(at, "wrong", None);
        let problems = report.finish().unwrap_err();
        let [problem] = problems.as_slice() else {
            panic!("one problem: {problems}");
        };
        assert_eq!(&problem.excerpt[problem.caret.bytes.clone()], "bad");
        assert!(problem.excerpt.len() <= EXCERPT_WIDTH_MAX);
        let shown = problem.to_string();
        assert!(
            shown.contains("--> f:1:1001") && shown.contains("bad\n") && shown.contains("^^^"),
            "{shown}"
        );
    }

    #[test]
    fn caret_counts_characters_and_not_bytes() {
        let report = Report::new("f", "é: bad\n");
        let at = Location {
            line: 1,
            column: 4,
            width: 3,
        };
        report.error(at, "wrong", None);
        assert_eq!(
            report.finish().unwrap_err().to_string(),
            "error: wrong\n --> f:1:4\n  |\n1 | é: bad\n  |    ^^^\n\nf: 1 problem"
        );
    }

    #[test]
    fn problem_outside_of_its_line_is_reported() {
        let report = Report::new("f", "a\n");
        let at = Location {
            line: 7,
            column: 90,
            width: 40,
        };
        report.error(at, "wrong", None);
        let problems = report.finish().unwrap_err().to_string();
        assert!(
            problems.starts_with("error: wrong\n --> f:7:"),
            "{problems}"
        );
    }
}
