//! Plain English: words of a dialect in comments, documents, string literals and names, and how doc
//! comments begin.
//!
//! Each word has the number of uses that remain, per place. The numbers may only
//! fall: a test fails if there are more uses than allowed, or fewer, so that the number is lowered.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::links::{markdown_files, prose};
use super::tokens::{Kind, Token, of_kind, tokens};
use super::{root, rust_files, without_tests};

/// Words that do not begin a doc comment: it begins with a noun phrase or a verb.
const RIDDLES: [&str; 10] = [
    "what", "who", "whoever", "whose", "where", "how", "when", "why", "which", "whether",
];

/// Doc comments that begin with one of them.
const RIDDLES_ALLOWED: usize = 0;

/// Words to avoid.
const WORDS: [Word; 13] = [
    word(
        "who|whoever|whom",
        "name the client, operator, task or caller",
        [0, 0, 0, 0],
    ),
    word(
        "nobody|somebody|everybody",
        "name the client, operator, task or caller",
        [0, 0, 0, 0],
    ),
    word(
        "tell|tells|told|telling",
        "say which act: log, report, send, notify, return or count",
        [0, 0, 0, 0],
    ),
    word(
        "stand|stands|stood",
        "`is`, `runs`, or name the place",
        [0, 0, 0, 0],
    ),
    Word {
        except_before: &[
            "proxy", "proxies", "nginx", "haproxy", "envoy", "caddy", "traefik", "load", "ingress",
            "nat", "firewall", "tls",
        ],
        ..word(
            "behind",
            "after, older than or lagging (`behind a proxy` is right)",
            [0, 0, 0, 0],
        )
    },
    word(
        "so many|much|far|long",
        "say the number, `at most`, `until now` or `while`",
        [0, 0, 0, 0],
    ),
    word("any|no more", "`no longer`", [0, 0, 0, 0]),
    word(
        "anymore|anew|farewell",
        "`no longer`, `again`, `close`",
        [0, 0, 0, 0],
    ),
    word("as|for ever", "`as before`, `permanently`", [0, 0, 0, 0]),
    word("again and again", "`repeatedly`", [0, 0, 0, 0]),
    word("is|are none", "`there is no` or `has no`", [0, 0, 0, 0]),
    word("that is no", "`that is not a`", [0, 0, 0, 0]),
    word(
        "is|are|was|were given|spared|owed|refused|taken",
        "the active voice: gets, skips, rejects, uses",
        [0, 0, 0, 0],
    ),
];

/// Places where words are counted, in the order of [`Word::allowed`].
const PLACES: [&str; 4] = [
    "comments",
    "documents",
    "string literals of src",
    "function names",
];

/// Words to avoid: alternatives are separated by `|`, consecutive words by a space.
struct Word {
    phrase: &'static str,
    except_before: &'static [&'static str],
    instead: &'static str,
    allowed: [usize; PLACES.len()],
}

/// Use of a word: its file, line and surroundings.
struct Use {
    path: PathBuf,
    line: usize,
    text: String,
}

/// Text of one file, in pieces that are read on their own.
struct Text {
    path: PathBuf,
    pieces: Vec<Piece>,
}

/// Comment, document, literal or name, with its words: each with its line from 0, in small letters.
struct Piece {
    token: Token,
    words: Vec<(usize, String)>,
}

impl Piece {
    fn of(token: Token) -> Self {
        let words = words(&token.text);
        Self { token, words }
    }
}

const fn word(phrase: &'static str, instead: &'static str, allowed: [usize; 4]) -> Word {
    Word {
        phrase,
        except_before: &[],
        instead,
        allowed,
    }
}

#[test]
fn text_is_plain_english() {
    let places = [comments(), documents(), literals(), names()];
    let mut wrong = String::new();
    for (at, (place, texts)) in PLACES.iter().zip(&places).enumerate() {
        assert!(!texts.is_empty(), "there are {place} to look at");
        for word in &WORDS {
            let what = format!("`{}` in {place}", word.phrase);
            let uses: Vec<Use> = texts.iter().flat_map(|text| uses_in(text, word)).collect();
            let advice = format!("instead, {}", word.instead);
            wrong += &compared(&what, word.allowed[at], &uses, &advice);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

#[test]
fn doc_comments_begin_with_a_noun_phrase_or_a_verb() {
    let mut riddles = Vec::new();
    for text in comments() {
        let tokens = text.pieces.iter().map(|piece| &piece.token);
        let begins = tokens.filter(|token| is_riddle(&token.text));
        riddles.extend(begins.map(|token| place_of(&text.path, token)));
    }
    let what = "doc comments that begin with What, Who, Where, How, When, Why, Which or Whether";
    let advice = "begin with the thing or the act: `Returns ...`, `Batch of ...`";
    let wrong = compared(what, RIDDLES_ALLOWED, &riddles, advice);
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Report of a number of uses that differs from the allowed one; empty if it does not.
fn compared(what: &str, allowed: usize, uses: &[Use], advice: &str) -> String {
    let mut report = String::new();
    if uses.len() > allowed {
        writeln!(
            report,
            "{what}: {}, allowed {allowed}; {advice}:",
            uses.len()
        )
        .unwrap();
        for Use { path, line, text } in uses {
            writeln!(report, "    {}:{line}: {text}", path.display()).unwrap();
        }
    } else if uses.len() < allowed {
        let count = uses.len();
        writeln!(
            report,
            "{what}: {count}, allowed {allowed}; lower the number in tests/tidy/prose.rs to {count}"
        )
        .unwrap();
    }
    report
}

fn is_riddle(comment: &str) -> bool {
    let Some(text) = ["///", "//!"]
        .iter()
        .find_map(|prefix| comment.strip_prefix(prefix))
    else {
        return false;
    };
    let first: String = text
        .trim_start()
        .chars()
        .take_while(|char| char.is_alphabetic())
        .collect();
    first.starts_with(char::is_uppercase) && RIDDLES.contains(&first.to_lowercase().as_str())
}

fn uses_in(text: &Text, word: &Word) -> Vec<Use> {
    let mut found = Vec::new();
    for Piece { token, words } in &text.pieces {
        for line in occurrences(words, word) {
            let shown = token.text.lines().nth(line).unwrap_or_default();
            let here = Token {
                text: shown.to_owned(),
                line: token.line + line,
            };
            found.push(place_of(&text.path, &here));
        }
    }
    found
}

fn place_of(path: &Path, piece: &Token) -> Use {
    Use {
        path: path.to_owned(),
        line: piece.line,
        text: piece.text.trim().chars().take(110).collect(),
    }
}

/// Lines, from 0, on which the word begins.
fn occurrences(words: &[(usize, String)], word: &Word) -> Vec<usize> {
    let phrase: Vec<Vec<&str>> = word
        .phrase
        .split(' ')
        .map(|alternatives| alternatives.split('|').collect())
        .collect();
    let is_here = |at: usize| {
        let matches = words.len() >= at + phrase.len()
            && phrase
                .iter()
                .zip(&words[at..])
                .all(|(alternatives, (_, word))| alternatives.contains(&word.as_str()));
        matches && !is_excepted(&words[at + phrase.len()..], word.except_before)
    };
    (0..words.len())
        .filter(|at| is_here(*at))
        .map(|at| words[at].0)
        .collect()
}

fn is_excepted(after: &[(usize, String)], exceptions: &[&str]) -> bool {
    after
        .iter()
        .map(|(_, word)| word.as_str())
        .find(|word| !["a", "an", "the"].contains(word))
        .is_some_and(|word| exceptions.contains(&word))
}

/// Words of a text in small letters with their lines. Punctuation is a word of its own, so that no
/// phrase crosses it; markers of comments are not.
fn words(text: &str) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start().trim_start_matches(['/', '!', '>', '#']);
        let mut word = String::new();
        for char in line.chars().chain([' ']) {
            if char.is_alphabetic() || char == '\'' {
                word.extend(char.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                found.push((number, std::mem::take(&mut word)));
            }
            if !char.is_whitespace() {
                found.push((number, char.to_string()));
            }
        }
    }
    found
}

// === the places ===

/// Comments of all Rust files; a run of line comments is one piece.
fn comments() -> Vec<Text> {
    rust_texts(&["src", "crates", "tests", "benches"], |source| {
        let mut pieces: Vec<Token> = Vec::new();
        let mut next_line = 0;
        for comment in of_kind(source, Kind::Comment) {
            let lines = comment.text.lines().count();
            match pieces.last_mut() {
                Some(piece) if comment.line == next_line => {
                    piece.text.push('\n');
                    piece.text.push_str(&comment.text);
                }
                _ => pieces.push(comment.clone()),
            }
            next_line = comment.line + lines;
        }
        pieces
    })
}

/// Pages of the documentation and the reference configuration, a line as a piece, without code
/// blocks.
fn documents() -> Vec<Text> {
    let mut files = markdown_files(root());
    files.retain(|file| !file.ends_with("CHANGELOG.md") && !file.ends_with("GLOSSARY.md"));
    files.push(root().join("sidecar.yaml"));
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).unwrap();
            let mut lines = vec![""; text.lines().count()];
            for (number, line) in prose(&text) {
                lines[number] = line;
            }
            let text = Token {
                text: lines.join("\n"),
                line: 1,
            };
            Text {
                pieces: vec![Piece::of(text)],
                path: relative(&file),
            }
        })
        .collect()
}

/// String literals of the product outside its tests: log messages, errors, help.
fn literals() -> Vec<Text> {
    rust_texts(&["src", "crates"], |source| {
        of_kind(without_tests(source), Kind::Literal)
    })
    .into_iter()
    .filter(|text| !is_test(&text.path))
    .collect()
}

/// Names of functions, so of tests too.
fn names() -> Vec<Text> {
    rust_texts(&["src", "crates", "tests", "benches"], |source| {
        let tokens = tokens(source);
        let functions = tokens.windows(2).filter(|pair| pair[0].text == "fn");
        functions
            .map(|pair| Token {
                text: pair[1].text.replace('_', " "),
                line: pair[1].line,
            })
            .collect()
    })
}

fn is_test(path: &Path) -> bool {
    path.starts_with("crates/testkit")
        || path.ends_with("tests.rs")
        || path.iter().any(|part| part == "tests")
}

fn rust_texts(folders: &[&str], pieces: impl Fn(&str) -> Vec<Token>) -> Vec<Text> {
    let mut files = Vec::new();
    for folder in folders {
        rust_files(&root().join(folder), &mut files);
    }
    files.sort();
    files
        .into_iter()
        .map(|file| Text {
            pieces: pieces(&fs::read_to_string(&file).unwrap())
                .into_iter()
                .map(Piece::of)
                .collect(),
            path: relative(&file),
        })
        .collect()
}

fn relative(file: &Path) -> PathBuf {
    file.strip_prefix(root()).unwrap().to_owned()
}

// === the rules can fail ===

#[test]
fn a_dialect_word_is_found_in_every_form() {
    let found = |text: &str| -> BTreeMap<&str, usize> {
        WORDS
            .iter()
            .map(|word| (word.phrase, occurrences(&words(text), word).len()))
            .filter(|(_, count)| *count > 0)
            .collect()
    };
    assert_eq!(found("/// Whoever asks\n/// is told so.").len(), 2);
    assert_eq!(
        found("it is\n/// given no more").len(),
        2,
        "over a line end"
    );
    assert_eq!(
        found("a proxy stands; behind a proxy, behind the NAT").len(),
        1
    );
    assert_eq!(found("behind the last event").len(), 1);
    assert_eq!(found("so, many").len(), 0, "no phrase crosses punctuation");
    assert_eq!(found("standing tellers, whole").len(), 0);
    assert_eq!(found("Option::is_none").len(), 0, "a path");
}

#[test]
fn a_doc_comment_that_begins_with_a_question_word_is_found() {
    assert!(is_riddle("/// What came in one go."));
    assert!(is_riddle("//! Whether it is."));
    assert!(!is_riddle("// What follows is the reason."));
    assert!(!is_riddle("/// Whatever.") && !is_riddle("/// Returns what was read."));
}

#[test]
fn too_many_uses_and_too_high_allowances_are_reported() {
    let uses = |count| {
        let one = || Use {
            path: "a.rs".into(),
            line: 1,
            text: "told".to_owned(),
        };
        (0..count).map(|_| one()).collect::<Vec<_>>()
    };
    assert_eq!(compared("`x`", 1, &uses(1), ""), "");
    assert!(compared("`x`", 1, &uses(2), "use y").contains("allowed 1; use y:\n    a.rs:1: told"));
    assert!(compared("`x`", 2, &uses(1), "").contains("lower the number"));
}
