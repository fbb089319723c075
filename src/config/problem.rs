//! One fault in a configuration, told as a compiler tells it: where, what, and what to do.

use std::cell::RefCell;
use std::fmt;

use serde::Serialize;

/// A place in the text; lines and columns count from 1, in characters. Line 0: the file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark {
    pub(super) line: usize,
    pub(super) column: usize,
    pub(super) width: usize,
}

/// One fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The file's name as it was given.
    pub file: String,
    /// Counts from 1; 0: the fault is the file's as a whole.
    pub line: usize,
    /// Counts from 1, in characters; 0: the fault is the file's as a whole.
    pub column: usize,
    /// The line as it stands in the file: never the value of an environment variable, secrets as `*`.
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
        writeln!(f, "error: {}", self.message)?;
        if self.line == 0 {
            write!(f, "  --> {}", self.file)?;
        } else {
            let margin = self.line.to_string().len();
            let (before, width) = self.caret;
            writeln!(f, "{:margin$}--> {}:{}:{}", "", self.file, self.line, self.column)?;
            writeln!(f, "{:margin$} |", "")?;
            writeln!(f, "{} | {}", self.line, self.excerpt)?;
            write!(f, "{:margin$} | {:before$}{}", "", "", "^".repeat(width))?;
        }
        if let Some(hint) = &self.hint {
            let margin = if self.line == 0 { 1 } else { self.line.to_string().len() };
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
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Report<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, problems: RefCell::default() }
    }

    /// Adds a fault. Through an alias the same one may be found twice; it is told once.
    pub(super) fn add(&self, at: Mark, message: impl Into<String>, hint: Option<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() == Problems::COUNT_MAX {
            return;
        }
        let line = at.line.checked_sub(1).and_then(|before| self.text.lines().nth(before)).unwrap_or_default();
        let (excerpt, caret) = excerpt(line, at);
        let (file, message) = (self.file.to_owned(), message.into());
        let problem = Problem { file, line: at.line, column: at.column, excerpt, message, hint, caret };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }

    pub(super) fn text(&self) -> &'t str {
        self.text
    }

    /// The faults; none is `Ok`.
    pub(super) fn finish(self) -> Result<(), Problems> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        if problems.is_empty() { Ok(()) } else { Err(Problems(problems)) }
    }
}

/// 160 characters: two terminal lines at most.
const EXCERPT_WIDTH_MAX: usize = 160;

/// The part of a line around a mark that can be shown, and where the caret stands under it.
fn excerpt(line: &str, at: Mark) -> (String, (usize, usize)) {
    // One character for one, or the caret would stand elsewhere.
    let shown: Vec<char> = masked(line).into_iter().map(|char| if char.is_control() { ' ' } else { char }).collect();
    let column = at.column.saturating_sub(1).min(shown.len());
    let from = if shown.len() <= EXCERPT_WIDTH_MAX { 0 } else { column.saturating_sub(EXCERPT_WIDTH_MAX / 2) };
    let until = shown.len().min(from + EXCERPT_WIDTH_MAX);
    let width = at.width.clamp(1, (until - column).max(1));
    let text: String = shown[from..until].iter().collect();
    (text.trim_end().to_owned(), (column - from, width))
}

/// The line with what follows a secret's key, or stands before an `@` in an address, as `*`: also where the text is
/// no YAML, so by its letters and not by its structure.
fn masked(line: &str) -> Vec<char> {
    let mut chars: Vec<char> = line.chars().collect();
    let lower: Vec<char> = chars.iter().map(char::to_ascii_lowercase).collect();
    for key in ["password", "token", "nkey"] {
        let key: Vec<char> = key.chars().collect();
        for start in 0..lower.len().saturating_sub(key.len()) {
            if lower[start..].starts_with(&key) {
                mask_value(&mut chars, start + key.len());
            }
        }
    }
    let mut from = 0;
    while let Some(scheme) = position(&lower, "://", from) {
        from = scheme + 3;
        let end =
            (from..lower.len()).find(|at| matches!(lower[*at], ' ' | '"' | '\'' | ',' | ']')).unwrap_or(lower.len());
        if let Some(until) = (from..end).rev().find(|at| lower[*at] == '@') {
            chars[from..until].fill('*');
        }
    }
    chars
}

fn position(chars: &[char], word: &str, from: usize) -> Option<usize> {
    let word: Vec<char> = word.chars().collect();
    (from..chars.len()).find(|at| chars[*at..].starts_with(&word))
}

/// Masks the value of a key that ends at `end`; nothing where no colon follows, and not a reference to the environment.
fn mask_value(chars: &mut [char], end: usize) {
    let blank = |chars: &[char], at: usize| chars.get(at).is_some_and(|char| matches!(char, ' ' | '\t' | '"' | '\''));
    let mut at = end;
    while blank(chars, at) {
        at += 1;
    }
    if chars.get(at) != Some(&':') {
        return;
    }
    at += 1;
    while blank(chars, at) {
        at += 1;
    }
    let quote = chars.get(at.wrapping_sub(1)).copied().filter(|char| matches!(char, '"' | '\''));
    let flow = chars[..end].contains(&'{');
    let ends = |at: &usize| match (quote, chars[*at]) {
        (Some(quote), char) => char == quote,
        (None, ',' | '}') => flow,
        (None, char) => char == '#' && chars[at - 1] == ' ',
    };
    let until = (at..chars.len()).find(ends).unwrap_or(chars.len());
    let value: String = chars[at..until].iter().collect();
    let reference = value.starts_with("${") && !value.contains(":-");
    if !reference && value.trim() != "null" {
        chars[at..until].fill('*');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(line: &str) -> String {
        masked(line).into_iter().collect()
    }

    #[test]
    fn secrets_in_an_excerpt_are_masked() {
        assert_eq!(shown("  password: hunter2  # why"), "  password: *********# why");
        assert_eq!(shown("  password: a, b: c"), "  password: *******");
        assert_eq!(
            shown("nats: { user: me, password: \"a, b\", token: x }"),
            "nats: { user: me, password: \"****\", token: **}"
        );
        assert_eq!(shown("  nkey: ${NKEY}"), "  nkey: ${NKEY}");
        assert_eq!(shown("  nkey: ${NKEY:-SU}"), "  nkey: ***********");
        assert_eq!(shown("  token: null # none"), "  token: null # none");
        assert_eq!(shown("  # the token is"), "  # the token is");
        assert_eq!(
            shown("servers: [\"nats://me:pw@host:4222\", nats://b]"),
            "servers: [\"nats://*****@host:4222\", nats://b]"
        );
    }

    #[test]
    fn the_caret_stands_under_the_fault_also_in_a_very_long_line() {
        let line = format!("{}bad", "x".repeat(1000));
        let (text, (before, width)) = excerpt(&line, Mark { line: 1, column: 1001, width: 3 });
        assert_eq!(&text[before..before + width], "bad");
        assert!(text.len() <= EXCERPT_WIDTH_MAX);
    }

    #[test]
    fn a_fault_outside_its_line_is_still_told() {
        let report = Report::new("f", "a\n");
        report.add(Mark { line: 7, column: 90, width: 40 }, "wrong", None);
        let problems = report.finish().unwrap_err();
        assert_eq!(problems.to_string(), "error: wrong\n --> f:7:90\n  |\n7 | \n  | ^\n\nf: 1 problem");
    }
}
