//! Lexer for as much of Rust as the rules need: names and punctuation, comments, and string
//! literals.

/// Name, number or one character of punctuation (`::` counts as one), with its line, from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    pub(crate) text: String,
    pub(crate) line: usize,
}

/// Kind of a lexeme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Code,
    Comment,
    Literal,
}

/// Tokens of a source text without comments, literals and lifetimes.
pub(crate) fn tokens(source: &str) -> Vec<Token> {
    of_kind(source, Kind::Code)
}

/// Tokens, comments or literals of a source text. Comments and literals include their delimiters.
pub(crate) fn of_kind(source: &str, wanted: Kind) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let mut found = Vec::new();
    let (mut at, mut line) = (0, 1);
    while at < chars.len() {
        let start = at;
        let end = skip(&chars, at);
        let kind = match chars[start] {
            _ if end == at => Some(Kind::Code),
            '/' => Some(Kind::Comment),
            '\'' => None,
            _ => Some(Kind::Literal),
        };
        at = if kind == Some(Kind::Code) {
            token_end(&chars, at)
        } else {
            end
        };
        if kind == Some(wanted) && !chars[start].is_whitespace() {
            found.push(Token {
                text: chars[start..at].iter().collect(),
                line,
            });
        }
        line += newlines(&chars[start..at]);
    }
    found
}

/// End of the name, number or punctuation that begins at `at`.
fn token_end(chars: &[char], at: usize) -> usize {
    if is_word(chars[at]) {
        return at
            + chars[at..]
                .iter()
                .take_while(|char| is_word(**char))
                .count();
    }
    at + if chars[at..].starts_with(&[':', ':']) {
        2
    } else {
        1
    }
}

/// End of the comment, literal or lifetime that begins at `at`; `at` itself if none begins there.
fn skip(chars: &[char], at: usize) -> usize {
    match chars[at] {
        '/' if chars.get(at + 1) == Some(&'/') => line_end(chars, at),
        '/' if chars.get(at + 1) == Some(&'*') => block_comment(chars, at),
        '"' => quoted(chars, at, '"'),
        '\'' => quote_or_lifetime(chars, at),
        'r' | 'b' | 'c' if at == 0 || !is_word(chars[at - 1]) => prefixed_literal(chars, at),
        _ => at,
    }
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..]
        .iter()
        .position(|char| *char == '\n')
        .map_or(chars.len(), |length| at + length)
}

fn block_comment(chars: &[char], mut at: usize) -> usize {
    let mut depth = 0;
    while at < chars.len() {
        if chars[at..].starts_with(&['/', '*']) {
            depth += 1;
            at += 2;
        } else if chars[at..].starts_with(&['*', '/']) {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at
}

fn quoted(chars: &[char], at: usize, quote: char) -> usize {
    let mut at = at + 1;
    while at < chars.len() && chars[at] != quote {
        at += if chars[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(chars.len())
}

/// `'a'` and `'\n'` are characters, `'a` is a lifetime.
fn quote_or_lifetime(chars: &[char], at: usize) -> usize {
    if chars.get(at + 1) == Some(&'\\') || chars.get(at + 2) == Some(&'\'') {
        return quoted(chars, at, '\'');
    }
    at + 1
        + chars[at + 1..]
            .iter()
            .take_while(|char| is_word(**char))
            .count()
}

/// End of `b"..."`, `r#"..."#`, `br"..."`, `c"..."` or `b'x'`; `at` itself for a name that begins
/// with these letters.
fn prefixed_literal(chars: &[char], at: usize) -> usize {
    let letters = chars[at..]
        .iter()
        .take_while(|char| matches!(char, 'r' | 'b' | 'c'))
        .count();
    let raw = chars[at..at + letters].contains(&'r');
    let hashes = chars[at + letters..]
        .iter()
        .take_while(|char| **char == '#')
        .count();
    match chars.get(at + letters + hashes) {
        Some('"') if raw => {
            let close: Vec<char> = std::iter::once('"')
                .chain(std::iter::repeat_n('#', hashes))
                .collect();
            let body = at + letters + hashes + 1;
            let length = chars[body..]
                .windows(close.len())
                .position(|window| window == close);
            length.map_or(chars.len(), |length| body + length + close.len())
        }
        Some('"') if hashes == 0 => quoted(chars, at + letters, '"'),
        Some('\'') if hashes == 0 && letters == 1 && !raw => quoted(chars, at + letters, '\''),
        _ => at,
    }
}

fn is_word(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn newlines(chars: &[char]) -> usize {
    chars.iter().filter(|char| **char == '\n').count()
}
