//! Masks what could be a secret in the lines that problems show.
//!
//! A text that was read is masked by its structure: all of `nats:` but addresses and file names, the values of unknown
//! keys and of keys that sound like secrets, credentials in addresses, keys in PEM. Anchors need no rule of their own: the
//! value of an alias has the place of its anchor. A text that could not be read is masked by its letters: below `nats:`,
//! and wherever the section is not known, only the names of keys are shown. Every line is masked by its letters as well,
//! for its comments.

use std::collections::{BTreeMap, BTreeSet};

use super::problem::{Report, Span};
use super::spelling::is_near;
use super::tree::{Node, Scalar, Value};

/// How much of a value is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// All of it.
    All,
    /// What is before the `@` of an address.
    UserInfo,
}

/// The keys at the top of a file.
const SECTIONS: [&str; 9] = [
    "listen",
    "admin",
    "nats",
    "routes",
    "limits",
    "trusted_proxies",
    "drain",
    "presence",
    "log",
];

/// The section whose values are hidden.
const NATS: &str = "nats";

/// The keys below `nats` whose values are addresses or names of files.
const SHOWN: [&str; 2] = ["servers", "tls"];

/// The words that are shown below `nats` in a text that could not be read.
const NATS_WORDS: [&str; 13] = [
    "nats",
    "servers",
    "credentials",
    "user",
    "password",
    "token",
    "nkey",
    "tls",
    "required",
    "handshake_first",
    "ca",
    "certificate",
    "key",
];

/// Parts of words that sound like secrets, and whole words that a typing error may be near to.
const SECRET_PARTS: [&str; 7] = ["pass", "pwd", "secret", "token", "nkey", "seed", "apikey"];
const SECRET_WORDS: [&str; 4] = ["password", "secret", "token", "nkey"];

/// Whether the value of a key of this name could be a secret.
pub(super) fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key != "key"
        && (SECRET_PARTS.iter().any(|part| key.contains(part)) || is_near(&key, &SECRET_WORDS))
}

/// Whether the values of this section could be secrets.
pub(super) fn is_section(key: &str) -> bool {
    key == NATS
}

/// What the parents of a value say about it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// Nothing.
    Open,
    /// It is a list of addresses.
    Addresses,
    /// It is, or could be, a secret.
    Secret,
}

/// Hides what could be a secret in a text that was read.
pub(super) fn hide(root: &Node, report: &Report<'_>) {
    let Value::Map(entries) = &root.value else {
        return hide_in(root, Inside::Secret, report);
    };
    for entry in entries {
        if entry.key != NATS && !is_near(&entry.key, &[NATS]) {
            hide_in(&entry.node, inside(&entry.key, Inside::Open), report);
            continue;
        }
        let Value::Map(entries) = &entry.node.value else {
            hide_in(&entry.node, Inside::Secret, report);
            continue;
        };
        for entry in entries {
            let inside = match &*entry.key {
                "servers" => Inside::Addresses,
                key if SHOWN.contains(&key) => Inside::Open,
                _ => Inside::Secret,
            };
            // In braces, what follows a comma of a value without quotes is a key of its own.
            if entry.node.is_null() && !NATS_WORDS.contains(&&*entry.key) {
                report.hide(entry.at.span(), Hidden::All);
            }
            hide_in(&entry.node, inside, report);
        }
    }
}

/// Hides all of a value.
pub(super) fn hide_value(node: &Node, report: &Report<'_>) {
    hide_in(node, Inside::Secret, report);
}

fn inside(key: &str, parent: Inside) -> Inside {
    if is_secret_name(key) {
        Inside::Secret
    } else {
        parent
    }
}

fn hide_in(node: &Node, place: Inside, report: &Report<'_>) {
    match &node.value {
        Value::Scalar(scalar) => {
            if let Some(what) = hidden(scalar, place) {
                report.hide(node.span, what);
            }
        }
        Value::List(items) => items.iter().for_each(|item| hide_in(item, place, report)),
        Value::Map(entries) => {
            for entry in entries {
                let place = if place == Inside::Addresses {
                    Inside::Secret
                } else {
                    inside(&entry.key, place)
                };
                if place == Inside::Secret && entry.node.is_null() {
                    report.hide(entry.at.span(), Hidden::All);
                }
                hide_in(&entry.node, place, report);
            }
        }
    }
}

/// How much of a value is hidden, if anything.
fn hidden(scalar: &Scalar, place: Inside) -> Option<Hidden> {
    let text = &scalar.text;
    match place {
        Inside::Secret => Some(Hidden::All),
        _ if is_key(text) => Some(Hidden::All),
        Inside::Addresses if text.contains('@') => Some(Hidden::UserInfo),
        _ if text.contains("://") && text.contains('@') => Some(Hidden::UserInfo),
        _ => None,
    }
}

/// Whether a text is a key itself: PEM, the content of a `.creds` file, the seed of an nkey (base32, 58 characters).
pub(super) fn is_key(text: &str) -> bool {
    let seed = |word: &str| {
        word.len() == 58
            && word.starts_with('S')
            && word
                .bytes()
                .all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
    };
    text.contains("-----BEGIN")
        || text
            .split(|char: char| !char.is_ascii_alphanumeric())
            .any(seed)
}

/// The lines that are shown, masked.
pub(super) struct Masks(BTreeMap<usize, Vec<char>>);

impl Masks {
    /// Masks these lines of a text, in time that grows with the text and not with the number of lines.
    pub(super) fn new(
        text: &str,
        lines: &BTreeSet<usize>,
        hidden: &[(Span, Hidden)],
        is_broken: bool,
    ) -> Self {
        let mut spans: BTreeMap<usize, Vec<(Span, Hidden)>> = BTreeMap::new();
        for (span, what) in hidden {
            for line in lines.range(span.from.0..=span.until.0.max(span.from.0)) {
                spans.entry(*line).or_default().push((*span, *what));
            }
        }
        let mut masked = BTreeMap::new();
        let mut is_known = false;
        for (index, line) in text.lines().enumerate() {
            is_known = section(line).unwrap_or(is_known);
            let number = index + 1;
            if !lines.contains(&number) {
                continue;
            }
            let mut chars: Vec<char> = line.chars().collect();
            let end = spans
                .get(&number)
                .into_iter()
                .flatten()
                .map(|(span, what)| mask(&mut chars, number, *span, *what));
            if let Some(end) = end.max() {
                mask_comment(&mut chars, end);
            }
            mask_named(&mut chars);
            mask_addresses(&mut chars);
            if is_broken && !is_known {
                mask_values(&mut chars);
            }
            masked.insert(number, chars);
        }
        Self(masked)
    }

    /// A line; empty where there is none.
    pub(super) fn line(&self, number: usize) -> &[char] {
        self.0.get(&number).map_or(&[], Vec::as_slice)
    }
}

/// For a line that begins a section, or may: whether it is known as one without secrets. Lines that are indented,
/// empty or comments belong to the section before them; so do items of lists, which may stand under their key.
fn section(line: &str) -> Option<bool> {
    let line = line.trim_start_matches('\u{feff}');
    if line.starts_with([' ', '\t', '#', '-']) || line.trim().is_empty() {
        return None;
    }
    let word: String = line
        .trim_start_matches(['"', '\''])
        .chars()
        .take_while(|char| is_word(*char))
        .collect();
    Some(word != NATS && SECTIONS.contains(&&*word))
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, '_' | '-')
}

/// Masks a value; returns where it ends in this line.
fn mask(chars: &mut [char], line: usize, span: Span, what: Hidden) -> usize {
    let from = if span.from.0 == line {
        span.from.1.min(chars.len())
    } else {
        0
    };
    let until = if span.until.0 == line {
        span.until.1.clamp(from, chars.len())
    } else {
        chars.len()
    };
    let value = &mut chars[from..until];
    match what {
        Hidden::All => mask_value(value),
        Hidden::UserInfo => {
            let from = position(value, "://", 0).map_or(0, |scheme| scheme + 3);
            if let Some(at) = value
                .iter()
                .rposition(|char| *char == '@')
                .filter(|at| *at >= from)
            {
                value[from..at].fill('*');
            }
        }
    }
    until
}

/// Masks a value but for its quotes. A reference to the environment, and `null`, are no secrets.
fn mask_value(value: &mut [char]) {
    let value = match value {
        ['"', inner @ .., '"'] | ['\'', inner @ .., '\''] => inner,
        other => other,
    };
    let text: String = value.iter().collect();
    let name = text
        .trim()
        .strip_prefix("${")
        .and_then(|inner| inner.strip_suffix('}'));
    let is_reference = name.is_some_and(|name| {
        name.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    });
    if !is_reference && text.trim() != "null" {
        value.fill('*');
    }
}

/// Masks the comment after a secret: it may be the rest of one that needs quotes.
fn mask_comment(chars: &mut [char], from: usize) {
    if let Some(comment) = position(chars, " #", from) {
        chars[comment + 1..].fill('*');
    }
}

/// Masks what follows the name of a secret and a colon, to the end of its value or of the line.
fn mask_named(chars: &mut [char]) {
    let flow = chars
        .iter()
        .position(|char| *char == '{')
        .unwrap_or(chars.len());
    let blank = |char: char| matches!(char, ' ' | '\t' | '"' | '\'');
    let mut at = 0;
    while at < chars.len() {
        let end = (at..chars.len())
            .find(|at| !is_word(chars[*at]))
            .unwrap_or(chars.len());
        let word = at..end;
        at = end.max(at + 1);
        if word.is_empty() || word.len() > WORD_MAX {
            continue;
        }
        let colon = (end..chars.len())
            .find(|at| !blank(chars[*at]))
            .filter(|at| chars[*at] == ':');
        let Some(colon) =
            colon.filter(|_| is_secret_name(&chars[word.clone()].iter().collect::<String>()))
        else {
            continue;
        };
        let from = (colon + 1..chars.len())
            .find(|at| !blank(chars[*at]))
            .unwrap_or(chars.len());
        let quote = chars
            .get(from.wrapping_sub(1))
            .copied()
            .filter(|char| matches!(char, '"' | '\''));
        let in_flow = flow < word.start;
        let ends = |at: &usize| match (quote, chars[*at]) {
            (Some(quote), char) => char == quote,
            (None, ',' | '}') => in_flow,
            (None, _) => false,
        };
        let until = (from..chars.len()).find(ends).unwrap_or(chars.len());
        mask_value(&mut chars[from..until]);
        at = until.max(at);
    }
}

/// 32 characters: more than the name of any secret.
const WORD_MAX: usize = 32;

/// Masks what is before the last `@` of every address.
fn mask_addresses(chars: &mut [char]) {
    let ends = |char: &char| matches!(char, ' ' | '"' | '\'' | ',' | ']');
    for word in chars.split_mut(ends) {
        let Some(scheme) = position(word, "://", 0) else {
            continue;
        };
        if let Some(at) = word
            .iter()
            .rposition(|char| *char == '@')
            .filter(|at| *at > scheme)
        {
            word[scheme + 3..at].fill('*');
        }
    }
}

/// Masks every word but the names of keys of `nats`.
fn mask_values(chars: &mut [char]) {
    let mut at = 0;
    while at < chars.len() {
        let end = (at..chars.len())
            .find(|at| !is_word(chars[*at]))
            .unwrap_or(chars.len());
        let word: String = chars[at..end.min(at + WORD_MAX)].iter().collect();
        let is_key = chars.get(end) == Some(&':')
            || chars.get(end..end + 2).is_some_and(|next| next[1] == ':');
        if end > at && !(is_key && (NATS_WORDS.contains(&&*word) || SECTIONS.contains(&&*word))) {
            chars[at..end].fill('*');
        }
        if let Some(char) = chars
            .get_mut(end)
            .filter(|char| !" \t{}[],:\"'#*".contains(**char))
        {
            *char = '*';
        }
        at = end + 1;
    }
}

fn position(chars: &[char], word: &str, from: usize) -> Option<usize> {
    let word: Vec<char> = word.chars().collect();
    chars
        .get(from..)?
        .windows(word.len())
        .position(|window| window == word)
        .map(|at| from + at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_letters(line: &str) -> String {
        let mut chars: Vec<char> = line.chars().collect();
        mask_named(&mut chars);
        mask_addresses(&mut chars);
        chars.into_iter().collect()
    }

    fn broken(text: &str, line: usize) -> String {
        Masks::new(text, &BTreeSet::from([line]), &[], true)
            .line(line)
            .iter()
            .collect()
    }

    #[test]
    fn the_values_of_secrets_are_masked_by_the_letters_of_their_names() {
        assert_eq!(
            by_letters("  password: hunter2  # why"),
            "  password: **************"
        );
        assert_eq!(by_letters("  password: a, b: c"), "  password: *******");
        assert_eq!(
            by_letters("nats: { user: me, password: \"a, b\", token: x }"),
            "nats: { user: me, password: \"****\", token: **}"
        );
        assert_eq!(by_letters("  nkey: ${NKEY}"), "  nkey: ${NKEY}");
        assert_eq!(by_letters("  nkey: ${NKEY:-SU}"), "  nkey: ***********");
        assert_eq!(by_letters("  token: null"), "  token: null");
        assert_eq!(by_letters("  # the token is"), "  # the token is");
        for name in [
            "pasword",
            "Passwort",
            "PASSWORD",
            "pass",
            "tokn",
            "nkey2",
            "api_secret",
            "natsToken",
        ] {
            assert_eq!(
                by_letters(&format!("  # {name}: x")),
                format!("  # {name}: *")
            );
        }
        for name in [
            "key",
            "path",
            "client",
            "listen",
            "retry",
            "stall_timeout",
            "connections",
        ] {
            assert_eq!(by_letters(&format!("  {name}: x")), format!("  {name}: x"));
        }
        assert_eq!(
            by_letters("servers: [\"nats://me:pw@host:4222\", nats://b]"),
            "servers: [\"nats://*****@host:4222\", nats://b]"
        );
        assert_eq!(by_letters("a://b@c d@e f://g"), "a://*@c d@e f://g");
    }

    #[test]
    fn a_text_that_could_not_be_read_shows_names_only_below_nats_and_where_it_is_not_known() {
        let text = "routes:\n  - path: /a\nnats:\n  user: \"me\n  hunter2 x: y\nhunter2 x\n{\"token\": z}\nlog: info\n";
        assert_eq!(broken(text, 2), "  - path: /a");
        assert_eq!(broken(text, 4), "  user: \"**");
        assert_eq!(broken(text, 5), "  ******* *: *");
        assert_eq!(broken(text, 6), "******* *");
        assert_eq!(broken(text, 7), "{\"token\": *}");
        assert_eq!(broken(text, 8), "log: info");
        assert_eq!(broken("nats:\n\tpassword: a$b", 2), "\tpassword: ***");
    }

    #[test]
    fn masking_takes_time_that_grows_with_the_length_of_a_line() {
        let begun = std::time::Instant::now();
        for word in [
            "://",
            "password: ",
            "a: ",
            "{token: ",
            "pass ",
            "@",
            "a://b@c ",
            "'token' : '",
        ] {
            by_letters(&word.repeat((1 << 20) / word.len()));
            broken(&word.repeat((1 << 20) / word.len()), 1);
        }
        // By squares a single one takes minutes.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
