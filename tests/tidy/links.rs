//! Links between Markdown pages, and runbooks of alerts: each names a file and a heading that
//! exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::root;

/// Folders that are not part of the documentation.
const SKIPPED: [&str; 6] = [
    ".git",
    ".tools",
    "fixtures",
    "node_modules",
    "target",
    "vendor",
];

/// Files with alerts; the chart's file is a copy of it.
const ALERTS: &str = "k8s/monitoring/prometheusrule.yaml";

#[test]
fn links_between_pages_name_existing_files_and_headings() {
    let mut pages = Pages::default();
    let mut broken = Vec::new();
    for page in markdown_files(root()) {
        let text = fs::read_to_string(&page).unwrap();
        for target in link_targets(&text) {
            if let Some(problem) = pages.problem(&page, &target) {
                broken.push(format!("{}: {target}: {problem}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn every_alert_has_a_runbook_that_names_an_existing_heading() {
    let text = fs::read_to_string(root().join(ALERTS)).unwrap();
    let alerts = text.matches("- alert: ").count();
    let runbooks: Vec<&str> = text
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("runbook: "))
        .collect();
    assert!(alerts > 0 && runbooks.len() == alerts, "{runbooks:?}");
    let mut pages = Pages::default();
    let readme = root().join("README.md");
    for runbook in runbooks {
        let runbook = runbook.trim_matches('"');
        assert!(runbook.contains(".md#"), "{runbook} names no heading");
        assert_eq!(pages.problem(&readme, runbook), None, "{runbook}");
    }
}

#[test]
fn headings_become_anchors_as_on_github() {
    let text = "# `max_age`, and 503?\n## Twice\n```\n# no heading\n```\n## Twice\n";
    assert_eq!(anchors(text), ["max_age-and-503", "twice", "twice-1"]);
}

/// Anchors of the pages that have been read.
#[derive(Default)]
struct Pages(BTreeMap<PathBuf, Vec<String>>);

impl Pages {
    /// Returns what is wrong with a link on this page; links to other hosts are not followed.
    fn problem(&mut self, page: &Path, target: &str) -> Option<&'static str> {
        if target.contains("://") || target.starts_with("mailto:") {
            return None;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
        let path = match file {
            "" => page.to_owned(),
            file => normalized(&page.parent().unwrap().join(file)),
        };
        if !path.exists() {
            return Some("no such file");
        }
        if anchor.is_empty() || path.extension().is_none_or(|end| end != "md") {
            return None;
        }
        let anchors = self
            .0
            .entry(path.clone())
            .or_insert_with(|| anchors(&fs::read_to_string(&path).unwrap()));
        let found = anchors.iter().any(|known| known == anchor);
        (!found).then_some("no such heading")
    }
}

/// Path without `.` and `..`.
fn normalized(path: &Path) -> PathBuf {
    let mut normalized = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = normalized.pop(),
            Component::CurDir => {}
            other => normalized.push(other),
        }
    }
    normalized
}

/// Lines outside of fenced code blocks, with their numbers from 0.
pub(crate) fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Targets of inline links, `[text](target)`.
fn link_targets(text: &str) -> Vec<String> {
    let parts = prose(text).flat_map(|(_, line)| line.split("](").skip(1));
    parts
        .filter_map(|part| part.split_once(')'))
        .map(|(target, _)| target.to_owned())
        .collect()
}

/// Anchors of the headings: lower case, without punctuation, spaces as hyphens, repeated ones
/// numbered.
fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (_, line) in prose(text).filter(|(_, line)| line.starts_with('#')) {
        let heading = line.trim_start_matches('#').trim().to_lowercase();
        let anchor: String = heading
            .chars()
            .filter(|char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_'))
            .map(|char| if char == ' ' { '-' } else { char })
            .collect();
        let times = seen.entry(anchor.clone()).or_default();
        anchors.push(match *times {
            0 => anchor,
            times => format!("{anchor}-{times}"),
        });
        *times += 1;
    }
    anchors
}

/// Markdown files below a folder.
pub(crate) fn markdown_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_symlink() || SKIPPED.contains(&name) {
            continue;
        }
        if path.is_dir() {
            found.extend(markdown_files(&path));
        } else if path.extension().is_some_and(|end| end == "md") {
            found.push(path);
        }
    }
    found.sort();
    found
}
