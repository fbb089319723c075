//! Masks of lines: which characters of a line an excerpt shows.
//!
//! [`Masks`] replaces the ranges that `secrets` has hidden, and masks every line by its letters
//! too, because of its comments: text after the name of a secret, and credentials in addresses. In
//! a text that could not be parsed, lines of `nats:` and of unknown sections show only the names of
//! keys.

use std::collections::{BTreeMap, BTreeSet};

use super::location::TextRange;
use super::spelling::is_near;

/// Part of a value that is hidden.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hidden {
    /// The whole value.
    All,
    /// The text before the `@` of an address.
    UserInfo,
}

/// Keys at the top of a file.
const SECTIONS: [&str; 10] = [
    "listen",
    "admin",
    "nats",
    "authentication",
    "routes",
    "limits",
    "trusted_proxies",
    "drain",
    "presence",
    "log",
];

/// Section whose values are hidden.
pub(super) const NATS: &str = "nats";

/// Section with secrets among other values.
pub(super) const AUTHENTICATION: &str = "authentication";

/// Words that are shown in `authentication` in a text that could not be parsed.
pub(super) const AUTHENTICATION_WORDS: [&str; 22] = [
    "providers",
    "name",
    "jwt",
    "issuer",
    "audience",
    "keys",
    "discovery",
    "jwks",
    "file",
    "secret",
    "ca",
    "algorithms",
    "leeway",
    "from",
    "renew_before",
    "tickets",
    "path",
    "bucket",
    "ttl",
    "authenticate",
    "cors",
    "origins",
];

/// Section with a token among other values.
pub(super) const ADMIN: &str = "admin";

/// Keys of `admin` that may have no value.
pub(super) const ADMIN_WORDS: [&str; 9] = [
    "address",
    "hosts",
    "control",
    "token",
    "token_file",
    "tls",
    "certificate",
    "key",
    "client_ca",
];

/// Words that are shown in `nats` in a text that could not be parsed.
pub(super) const NATS_WORDS: [&str; 13] = [
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

/// Parts of words that sound like secrets, and whole words that may be misspelled.
const SECRET_PARTS: [&str; 7] = ["pass", "pwd", "secret", "token", "nkey", "seed", "apikey"];
const SECRET_WORDS: [&str; 4] = ["password", "secret", "token", "nkey"];

/// Returns whether the value of a key of this name could be a secret.
pub(super) fn is_secret_name(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    key != "key"
        && (SECRET_PARTS.iter().any(|part| key.contains(part)) || is_near(&key, &SECRET_WORDS))
}

/// Returns whether the values of this section could be secrets.
pub(super) fn is_section(key: &str) -> bool {
    key == NATS || key == AUTHENTICATION
}

/// Returns whether an unknown key of this section could be a part of a secret.
pub(super) fn has_secrets(section: &str) -> bool {
    is_section(section) || section == ADMIN
}

/// Returns whether a text is a key: PEM, the content of a `.creds` file, the seed of an nkey
/// (base32, 58 characters).
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

/// Masked lines.
pub(super) struct Masks(BTreeMap<usize, Vec<char>>);

impl Masks {
    /// Masks these lines of a text. Takes time linear in the text, independent of the number of
    /// lines.
    pub(super) fn new(
        text: &str,
        lines: &BTreeSet<usize>,
        hidden: &[(TextRange, Hidden)],
        is_broken: bool,
    ) -> Self {
        let mut ranges: BTreeMap<usize, Vec<(TextRange, Hidden)>> = BTreeMap::new();
        for (range, what) in hidden {
            for line in lines.range(range.from.0..=range.until.0.max(range.from.0)) {
                ranges.entry(*line).or_default().push((*range, *what));
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
            let end = ranges
                .get(&number)
                .into_iter()
                .flatten()
                .map(|(range, what)| mask(&mut chars, number, *range, *what));
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

    /// Returns a masked line, or an empty one if there is no such line.
    pub(super) fn line(&self, number: usize) -> &[char] {
        self.0.get(&number).map_or(&[], Vec::as_slice)
    }
}

/// Returns, for a line that may begin a section, whether the section is known and has no secrets.
/// Indented and empty lines, comments and items of lists belong to the section before them.
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
    Some(!is_section(&word) && SECTIONS.contains(&&*word))
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || matches!(char, '_' | '-')
}

/// Masks a value and returns the column of its end in this line.
fn mask(chars: &mut [char], line: usize, range: TextRange, what: Hidden) -> usize {
    let from = if range.from.0 == line {
        range.from.1.min(chars.len())
    } else {
        0
    };
    let until = if range.until.0 == line {
        range.until.1.clamp(from, chars.len())
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

/// Masks a value except for its quotes. References to the environment and `null` are not masked.
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

/// Masks the comment after a secret: it may be part of a secret that needs quotes.
fn mask_comment(chars: &mut [char], from: usize) {
    if let Some(comment) = position(chars, " #", from) {
        chars[comment + 1..].fill('*');
    }
}

/// Masks the text after the name of a secret and a colon, up to the end of its value or of the
/// line.
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

/// 32 characters: longer than the name of any secret.
const WORD_MAX: usize = 32;

/// Masks the text before the last `@` of every address.
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

/// Returns whether a word is the name of a section, or of a key in a section with secrets.
fn is_shown(word: &str) -> bool {
    [&SECTIONS[..], &NATS_WORDS, &AUTHENTICATION_WORDS]
        .iter()
        .any(|words| words.contains(&word))
}

/// Masks every word except the names of sections and of the keys of those with secrets.
fn mask_values(chars: &mut [char]) {
    let mut at = 0;
    while at < chars.len() {
        let end = (at..chars.len())
            .find(|at| !is_word(chars[*at]))
            .unwrap_or(chars.len());
        let word: String = chars[at..end.min(at + WORD_MAX)].iter().collect();
        let is_key = chars.get(end) == Some(&':')
            || chars.get(end..end + 2).is_some_and(|next| next[1] == ':');
        if end > at && !(is_key && is_shown(&word)) {
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
    fn values_of_secrets_are_masked_by_the_letters_of_their_names() {
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
    fn unparsed_text_shows_only_key_names_in_nats_and_in_unknown_sections() {
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
    fn masking_takes_linear_time() {
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
        // In quadratic time a single one takes minutes.
        assert!(begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    }
}
