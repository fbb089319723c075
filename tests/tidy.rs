//! The architecture, held by a test: what each folder may use, how each file begins, what is absent.

#![allow(clippy::unwrap_used)] // here a failure is the result

#[path = "tidy/cycles.rs"]
mod cycles;
#[path = "tidy/links.rs"]
mod links;
#[path = "tidy/nesting.rs"]
mod nesting;
#[path = "tidy/prose.rs"]
mod prose;
#[path = "tidy/tokens.rs"]
mod tokens;

use std::fs;
use std::path::{Path, PathBuf};

use tokens::{Token, tokens};

/// The layers of ARCHITECTURE.md: a folder uses only folders of a lower rank, siblings never use each other.
const RANKS: [(&str, u8); 18] = [
    ("sse", 0),
    ("subject", 0),
    ("lifecycle", 0),
    ("telemetry", 0),
    ("feed", 1),
    ("presence", 1),
    ("limit", 1),
    ("net", 1),
    ("nats", 2),
    ("http", 2),
    ("admin", 2),
    ("injector", 2),
    ("config", 3),
    ("app", 4),
    ("cli", 5),
    ("main", 6),
    ("lib", 6),
    ("bin", 6),
];

/// The absences that are the architecture: in this folder, this crate is not named.
const ABSENT: [(&str, &[&str]); 3] = [
    ("feed", &["async_nats", "hyper", "rustls"]),
    ("http", &["async_nats"]),
    ("nats", &["hyper"]),
];

/// Types that would be a second word for a concept which has one (ARCHITECTURE.md, vocabulary).
const SECOND_WORDS: [&str; 4] = ["Backlog", "Hub", "Room", "Topic"];

/// Lines of a file before its tests: a longer file has more than one job.
const LINES_MAX: usize = 600;

#[test]
fn folders_use_only_folders_of_a_lower_rank() {
    assert_tidy(&["src"], layering);
}

#[test]
fn every_file_begins_with_one_sentence_that_says_its_job() {
    assert_tidy(
        &["src", "crates", "tests", "benches", "fuzz"],
        |_, source| first_line(source),
    );
}

#[test]
fn the_waist_knows_neither_nats_nor_http_and_these_do_not_know_each_other() {
    assert_tidy(&["src"], absences);
}

#[test]
fn no_file_is_longer_than_one_job() {
    assert_tidy(&["src"], |_, source| length(source));
}

#[test]
fn a_concept_has_one_word() {
    assert_tidy(&["src"], |_, source| vocabulary(source));
}

#[test]
fn ring_is_the_one_cryptography_provider() {
    assert_eq!(
        providers(&fs::read_to_string(root().join("Cargo.lock")).unwrap()),
        [""; 0]
    );
}

// === the rules: each returns what is wrong ===

fn layering(path: &Path, source: &str) -> Vec<String> {
    let Some(own) = folder(path) else {
        return vec!["is in no folder".into()];
    };
    let Some(rank) = rank(&own) else {
        return vec![format!("`{own}` has no rank in tests/tidy.rs")];
    };
    let mut wrong = Vec::new();
    for Token { text: used, line } in uses(source, depth(path)) {
        if used == own {
            continue;
        }
        match self::rank(&used) {
            None => wrong.push(format!(
                "line {line}: `{used}` has no rank in tests/tidy.rs"
            )),
            Some(other) if other >= rank => {
                wrong.push(format!(
                    "line {line}: `{own}` (rank {rank}) uses `{used}` (rank {other})"
                ));
            }
            Some(_) => {}
        }
    }
    wrong
}

fn first_line(source: &str) -> Vec<String> {
    let line = source.lines().next().unwrap_or_default();
    let Some(sentence) = line.strip_prefix("//! ") else {
        return vec!["does not begin with `//! ` and what the file is for".into()];
    };
    let mut wrong = Vec::new();
    if !sentence.ends_with('.') {
        wrong.push("the first line is not one whole sentence".into());
    }
    let another = |(at, _): (usize, &str)| sentence[at + 2..].starts_with(char::is_uppercase);
    if sentence.match_indices(". ").any(another) {
        wrong.push("the first line is more than one sentence".into());
    }
    wrong
}

fn absences(path: &Path, source: &str) -> Vec<String> {
    let own = folder(path).unwrap_or_default();
    let names: Vec<&str> = ABSENT
        .iter()
        .filter(|(folder, _)| *folder == own)
        .flat_map(|(_, names)| *names)
        .copied()
        .collect();
    let found = tokens(source)
        .into_iter()
        .filter(|token| names.contains(&token.text.as_str()));
    found
        .map(|token| format!("line {}: `{own}` names `{}`", token.line, token.text))
        .collect()
}

fn length(source: &str) -> Vec<String> {
    let lines = source
        .lines()
        .take_while(|line| line.trim() != "#[cfg(test)]")
        .count();
    (lines > LINES_MAX)
        .then(|| format!("{lines} lines before its tests, more than {LINES_MAX}"))
        .into_iter()
        .collect()
}

fn vocabulary(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let declared = tokens
        .windows(2)
        .filter(|pair| matches!(pair[0].text.as_str(), "struct" | "enum" | "trait" | "type"));
    declared
        .filter(|pair| SECOND_WORDS.contains(&pair[1].text.as_str()))
        .map(|pair| {
            format!(
                "line {}: `{}` is a second word for a concept",
                pair[1].line, pair[1].text
            )
        })
        .collect()
}

fn providers(lock: &str) -> Vec<&str> {
    lock.lines()
        .filter(|line| line.starts_with("name = \"aws-lc"))
        .collect()
}

// === what the rules look at ===

/// The folder of `src` that a file belongs to; `src/app.rs` is the folder `app`.
fn folder(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    Some(
        Path::new(inside.iter().next()?)
            .file_stem()?
            .to_str()?
            .to_owned(),
    )
}

/// How many `super::` lead from a file's module to the root: `src/http/mod.rs` and `src/app.rs` 1, `src/http/h1.rs` 2.
fn depth(path: &Path) -> usize {
    let parts: Vec<_> = path
        .with_extension("")
        .iter()
        .skip(1)
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    match parts.last().map(String::as_str) {
        Some("mod" | "main" | "lib") => parts.len() - 1,
        _ => parts.len(),
    }
}

fn rank(folder: &str) -> Option<u8> {
    RANKS
        .iter()
        .find(|(name, _)| *name == folder)
        .map(|(_, rank)| *rank)
}

/// The folders that a file at `depth` reaches: by `crate::`, by as many `super::`, in groups as well.
fn uses(source: &str, depth: usize) -> Vec<Token> {
    let tokens = tokens(source);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut braces = 0;
    let mut inline_modules = Vec::new(); // the depth of braces outside each `mod name {`
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "mod" if text(at + 2) == "{" => inline_modules.push(braces),
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                inline_modules.pop_if(|outside| *outside == braces);
            }
            // A path may begin with `self::super::`; one that goes on, as `x::super`, does not exist.
            "crate" | "super" if text(at + 1) == "::" => {
                let (mut next, mut supers) = (at + 2, usize::from(text(at) == "super"));
                while text(next) == "super" && text(next + 1) == "::" {
                    (next, supers) = (next + 2, supers + 1);
                }
                if text(at) == "crate" || supers >= depth + inline_modules.len() {
                    found.extend(heads(&tokens[next..]));
                }
                at = next;
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// The first names of the path or group of paths at the start of `tokens`.
fn heads(tokens: &[Token]) -> Vec<Token> {
    if tokens.first().is_none_or(|token| token.text != "{") {
        return tokens.first().cloned().into_iter().collect();
    }
    let mut found = Vec::new();
    let mut depth = 0;
    let mut expected = false;
    for token in tokens {
        match token.text.as_str() {
            "{" => (depth, expected) = (depth + 1, depth == 0),
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            "," => expected = depth == 1,
            "self" => expected = false,
            _ if expected => {
                found.push(token.clone());
                expected = false;
            }
            _ => {}
        }
    }
    found
}

/// Source before the tests of its file.
fn without_tests(source: &str) -> &str {
    source.split("#[cfg(test)]").next().unwrap_or_default()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn assert_tidy(folders: &[&str], mut rule: impl FnMut(&Path, &str) -> Vec<String>) {
    let mut files = Vec::new();
    folders
        .iter()
        .for_each(|folder| rust_files(&root().join(folder), &mut files));
    assert!(!files.is_empty(), "there are files to look at");
    files.sort();
    let mut wrong = Vec::new();
    for file in files {
        let path = file.strip_prefix(root()).unwrap();
        let problems = rule(path, &fs::read_to_string(&file).unwrap());
        wrong.extend(
            problems
                .iter()
                .map(|problem| format!("{}: {problem}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() && !path.ends_with("target") && !path.ends_with("node_modules") {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

// === that each rule can fail ===

#[cfg(test)]
mod the_rules {
    use super::*;

    fn used(source: &str, depth: usize) -> Vec<String> {
        uses(source, depth)
            .into_iter()
            .map(|token| token.text)
            .collect()
    }

    #[test]
    fn see_upward_and_sideways_uses_and_folders_without_a_rank() {
        let wrong = |path: &str, source: &str| layering(Path::new(path), source).len();
        assert_eq!(
            wrong(
                "src/feed/log.rs",
                "use crate::sse::Event; use crate::feed::Cursor;"
            ),
            0
        );
        assert_eq!(
            wrong("src/feed/log.rs", "use crate::limit::Bucket;"),
            1,
            "a sibling"
        );
        assert_eq!(
            wrong("src/feed/log.rs", "fn f() { crate::http::serve() }"),
            1,
            "upward"
        );
        assert_eq!(
            wrong("src/feed/log.rs", "use crate::util::x;"),
            1,
            "to the unknown"
        );
        assert_eq!(wrong("src/util/mod.rs", ""), 1, "from the unknown");
        assert_eq!(
            wrong(
                "src/app.rs",
                "use crate::{config, nats::{Tailer, self}, http};"
            ),
            0
        );
        assert_eq!(wrong("src/app.rs", "use crate::{config::Config, cli};"), 1);
    }

    #[test]
    fn see_every_way_to_write_a_path() {
        assert_eq!(
            used("use crate::{sse::{Event, id::{A, B}}, subject, self};", 2),
            ["sse", "subject"]
        );
        assert_eq!(
            used("let x: Vec<crate :: feed::Log> = vec![crate::net::y()];", 2),
            ["feed", "net"]
        );
        assert_eq!(used("use super::super::nats; use super::own;", 2), ["nats"]);
        assert_eq!(used("use super::{nats, http::x};", 1), ["nats", "http"]);
        assert_eq!(
            used(
                "mod tests { use super::config; use super::super::nats; } use super::app;",
                1
            ),
            ["nats", "app"]
        );
    }

    #[test]
    fn look_neither_into_comments_nor_into_strings() {
        let source = r##"
            // crate::a
            /* crate::b /* crate::c */ crate::d */
            let x = "crate::e \" crate::f"; let y = r#"crate::g " crate::h"#; let z = b"crate::i";
            let q = '"'; let l: &'static str = x; let e = '\''; use crate::net; // crate::j
        "##;
        assert_eq!(used(source, 2), ["net"]);
        assert_eq!(uses(source, 2)[0].line, 5);
    }

    #[test]
    fn see_a_file_without_its_sentence() {
        assert_eq!(first_line("//! Does one job.\n//!\n//! More."), [""; 0]);
        assert_eq!(
            first_line("//! The grammar (RFC 9110, section 5.6.2), e.g. tokens.\n"),
            [""; 0]
        );
        assert_eq!(first_line("use x;\n").len(), 1);
        assert_eq!(first_line("//! Does one job\n//! in two lines.").len(), 1);
        assert_eq!(first_line("//! Does one job. And another.").len(), 1);
        assert_eq!(first_line("").len(), 1);
    }

    #[test]
    fn see_a_name_that_must_be_absent() {
        let wrong = |path: &str, source: &str| absences(Path::new(path), source).len();
        assert_eq!(
            wrong("src/feed/log.rs", "use async_nats::Message; // hyper"),
            1
        );
        assert_eq!(
            wrong(
                "src/http/h1.rs",
                "use hyper::Request; let m: async_nats::Message;"
            ),
            1
        );
        assert_eq!(
            wrong(
                "src/nats/tailer.rs",
                "use async_nats::Message; use hyper::body;"
            ),
            1
        );
        assert_eq!(wrong("src/net/tls.rs", "use rustls::ServerConfig;"), 0);
    }

    #[test]
    fn see_a_file_that_is_too_long_without_its_tests() {
        assert_eq!(length(&"x\n".repeat(LINES_MAX)), [""; 0]);
        assert_eq!(length(&"x\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(
            length(&format!("x\n#[cfg(test)]\n{}", "x\n".repeat(LINES_MAX))),
            [""; 0]
        );
    }

    #[test]
    fn see_a_second_word_and_a_second_provider() {
        assert_eq!(
            vocabulary("struct Feed; let topic: Option<Topic>; // struct Topic"),
            [""; 0]
        );
        assert_eq!(vocabulary("pub struct Topic;").len(), 1);
        assert_eq!(
            providers("name = \"aws-lc-rs\"\nname = \"ring\"\nname = \"aws-lc-sys\"\n").len(),
            2
        );
    }
}
