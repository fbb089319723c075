//! The rules of ARCHITECTURE.md and CONTRIBUTING.md that a test can check.
//!
//! Layers, absent crates, first sentences, lengths and names are checked here; links, plain
//! English, import cycles and nesting in the modules. A rule is a function from a file to a list of
//! problems. Each rule has a test that it can fail.

#![allow(clippy::unwrap_used)] // a failure is the result

#[path = "tidy/architecture.rs"]
mod architecture;
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

/// Layers of ARCHITECTURE.md: a folder uses only folders of a lower rank.
const RANKS: [(&str, u8); 20] = [
    ("event", 0),
    ("subject", 0),
    ("lifecycle", 0),
    ("telemetry", 0),
    ("auth", 1),
    ("encoding", 1),
    ("payload", 1),
    ("feed", 2),
    ("presence", 2),
    ("limit", 2),
    ("net", 2),
    ("nats", 3),
    ("http", 3),
    ("admin", 3),
    ("config", 4),
    ("app", 5),
    ("cli", 6),
    ("main", 7),
    ("lib", 7),
    ("bin", 7),
];

/// Crates that a folder does not name.
const ABSENT: [(&str, &[&str]); 3] = [
    ("feed", &["async_nats", "hyper", "rustls"]),
    ("http", &["async_nats"]),
    ("nats", &["hyper"]),
];

/// Coined names of types, with the words that engineers search for (GLOSSARY.md).
const COINED: [(&str, &str); 41] = [
    ("Bell", "ShardNotifier"),
    ("Chain", "SequenceTracker"),
    ("Charge", "Reservation"),
    ("Component", "Position"),
    ("Courier", "Dispatcher"),
    ("Demand", "SubscribeRequest"),
    ("Door", "ConnectionLimiter"),
    ("Ears", "ShutdownControl"),
    ("Exchange", "H2Request"),
    ("Family", "StreamGroup"),
    ("Follower", "RepublishTailer"),
    ("Gate", "DirectPath"),
    ("Hello", "Preface"),
    ("Intake", "EventDecoder"),
    ("Interest", "SubjectTrie"),
    ("Known", "MatchCache"),
    ("Lease", "FeedHandle"),
    ("Link", "NatsConnection"),
    ("Log", "StreamBuffer"),
    ("Logged", "EncodedEvent"),
    ("Monitor", "Supervisor"),
    ("News", "WakeList"),
    ("OnDemand", "CoreSource"),
    ("Outlet", "DirectSink"),
    ("Pace", "Throttle"),
    ("Passage", "PoisonBypass"),
    ("Patience", "StallTimer"),
    ("Pressure", "LoadLevel"),
    ("Profile", "FeedOptions"),
    ("Pulse", "LoopLagProbe or Keepalive"),
    ("Refusal", "Rejection"),
    ("Registry", "StreamTable"),
    ("Relief", "Shedder"),
    ("Repeats", "Dedup"),
    ("Standing", "CursorProbe"),
    ("Supply", "FdHeadroom"),
    ("TakeBack", "SocketReclaim"),
    ("Tally", "WriteStats"),
    ("Ticks", "CompactInstant"),
    ("Trouble", "Error"),
    ("Visit", "ClientPermit"),
];

/// Lines of a file before its tests; a longer file has more than one job.
const LINES_MAX: usize = 600;

#[test]
fn folders_use_only_folders_of_a_lower_rank() {
    assert_tidy(&["src"], layering);
}

#[test]
fn every_file_begins_with_one_sentence_about_its_job() {
    assert_tidy(
        &["src", "crates", "tests", "benches", "fuzz"],
        |_, source| first_sentence(source),
    );
}

#[test]
fn the_feed_names_neither_nats_nor_http_and_these_do_not_name_each_other() {
    assert_tidy(&["src"], absences);
}

#[test]
fn no_file_is_longer_than_600_lines() {
    assert_tidy(&["src"], |_, source| length(source));
}

#[test]
fn types_have_the_words_of_the_field() {
    assert_tidy(&["src"], |_, source| coined_names(source));
}

#[test]
fn only_the_injector_depends_on_the_kubernetes_client() {
    let manifests = [
        "Cargo.toml",
        "crates/common/Cargo.toml",
        "crates/inject/Cargo.toml",
    ];
    for manifest in manifests {
        let text = fs::read_to_string(root().join(manifest)).unwrap();
        let found = kubernetes_clients(&text);
        assert_eq!(found, [""; 0], "{manifest}: it would be in the sidecar");
    }
    let injector = fs::read_to_string(root().join("crates/injector/Cargo.toml")).unwrap();
    assert_eq!(kubernetes_clients(&injector).len(), 2);
}

#[test]
fn ring_is_the_one_cryptography_provider() {
    assert_eq!(
        providers(&fs::read_to_string(root().join("Cargo.lock")).unwrap()),
        [""; 0]
    );
}

// === the rules: each returns the problems of a file ===

fn layering(path: &Path, source: &str) -> Vec<String> {
    let Some(own) = folder(path) else {
        return vec!["is not in a folder".into()];
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

fn first_sentence(source: &str) -> Vec<String> {
    let paragraph: Vec<&str> = source
        .lines()
        .map_while(|line| line.strip_prefix("//! "))
        .collect();
    let sentence = paragraph.join(" ");
    if sentence.is_empty() {
        return vec!["does not begin with `//! ` and its job".into()];
    }
    let mut wrong = Vec::new();
    if !sentence.ends_with('.') {
        wrong.push("the first paragraph is not one whole sentence".into());
    }
    let another = |(at, _): (usize, &str)| sentence[at + 2..].starts_with(char::is_uppercase);
    if sentence.match_indices(". ").any(another) {
        wrong.push("the first paragraph has more than one sentence".into());
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

fn coined_names(source: &str) -> Vec<String> {
    let tokens = tokens(source);
    let declared = tokens
        .windows(2)
        .filter(|pair| matches!(pair[0].text.as_str(), "struct" | "enum" | "trait" | "type"));
    let mut wrong = Vec::new();
    for pair in declared {
        let Token { text, line } = &pair[1];
        if let Some((_, word)) = COINED.iter().find(|(coined, _)| coined == text) {
            wrong.push(format!(
                "line {line}: `{text}` is a coined word, use {word}"
            ));
        }
    }
    wrong
}

fn kubernetes_clients(manifest: &str) -> Vec<&str> {
    manifest
        .lines()
        .filter(|line| line.starts_with("kube") || line.starts_with("k8s-openapi"))
        .collect()
}

fn providers(lock: &str) -> Vec<&str> {
    lock.lines()
        .filter(|line| line.starts_with("name = \"aws-lc"))
        .collect()
}

// === parts of paths and sources ===

/// Folder of `src` that contains a file; `src/app.rs` is in the folder `app`.
fn folder(path: &Path) -> Option<String> {
    let inside = path.strip_prefix("src").ok()?;
    Some(
        Path::new(inside.iter().next()?)
            .file_stem()?
            .to_str()?
            .to_owned(),
    )
}

/// Number of `super::` from the module of a file to the root: 1 for `src/http/mod.rs` and
/// `src/app.rs`, 2 for `src/http/h1.rs`.
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

/// Folders that a file at `depth` uses: by `crate::`, by `super::`, and in groups.
fn uses(source: &str, depth: usize) -> Vec<Token> {
    let tokens = tokens(source);
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    let mut found = Vec::new();
    let mut braces = 0;
    let mut inline_modules = Vec::new(); // braces outside each `mod name {`
    let mut at = 0;
    while at < tokens.len() {
        match text(at) {
            "mod" if text(at + 2) == "{" => inline_modules.push(braces),
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                inline_modules.pop_if(|outside| *outside == braces);
            }
            // A path may begin with `self::super::`; a path such as `x::super` does not exist.
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

/// First names of the path or group of paths at the start of `tokens`.
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
    assert!(!files.is_empty(), "there are files to check");
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

// === each rule can fail ===

#[cfg(test)]
mod rules_can_fail {
    use super::*;

    fn used(source: &str, depth: usize) -> Vec<String> {
        uses(source, depth)
            .into_iter()
            .map(|token| token.text)
            .collect()
    }

    #[test]
    fn upward_and_sideways_uses_and_folders_without_a_rank_are_found() {
        let wrong = |path: &str, source: &str| layering(Path::new(path), source).len();
        assert_eq!(
            wrong(
                "src/feed/log.rs",
                "use crate::event::Event; use crate::feed::Cursor;"
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
    fn every_form_of_a_path_is_read() {
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
    fn comments_and_strings_are_not_read() {
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
    fn a_file_without_its_sentence_is_found() {
        let wrong = |source: &str| first_sentence(source).len();
        assert_eq!(wrong("//! Does one job.\n//!\n//! More. And more."), 0);
        assert_eq!(wrong("//! Does one job\n//! on two lines.\nuse x;"), 0);
        assert_eq!(
            wrong("//! Grammar (RFC 9110, section 5.6.2), e.g. tokens.\n"),
            0
        );
        assert_eq!(wrong("use x;\n"), 1);
        assert_eq!(wrong("//! Does one job\n//!\n//! on two lines."), 1);
        assert_eq!(wrong("//! Does one job. And another."), 1);
        assert_eq!(wrong(""), 1);
    }

    #[test]
    fn a_crate_that_must_be_absent_is_found() {
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
    fn a_file_that_is_too_long_without_its_tests_is_found() {
        assert_eq!(length(&"x\n".repeat(LINES_MAX)), [""; 0]);
        assert_eq!(length(&"x\n".repeat(LINES_MAX + 1)).len(), 1);
        assert_eq!(
            length(&format!("x\n#[cfg(test)]\n{}", "x\n".repeat(LINES_MAX))),
            [""; 0]
        );
    }

    #[test]
    fn a_coined_word_and_a_second_provider_are_found() {
        assert_eq!(
            coined_names("struct Feed; let door: Option<Door>; // struct Door"),
            [""; 0]
        );
        assert_eq!(coined_names("pub struct Door;").len(), 1);
        assert_eq!(
            providers("name = \"aws-lc-rs\"\nname = \"ring\"\nname = \"aws-lc-sys\"\n").len(),
            2
        );
    }
}
