//! Path of a claim in a template: `{claim.org.id}`, `{claim["https://example.com/roles"].first}`.
//!
//! A name is a word after a dot, or any text without `"` between `["` and `"]`, so that names with
//! dots can be written.

use std::fmt;

/// Names that lead to a claim, through objects: at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClaimPath(Box<[Box<str>]>);

impl ClaimPath {
    /// Parses the part of a variable after `claim`; `None` if it is not a path.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut names = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (name, after) = match rest.strip_prefix("[\"") {
                Some(quoted) => quoted.split_once("\"]")?,
                None => {
                    let word = rest.strip_prefix('.')?;
                    word.split_at(word.find(['.', '[']).unwrap_or(word.len()))
                }
            };
            let is_quoted = rest.starts_with('[');
            let is_valid = !name.contains('"') && (is_quoted || name.chars().all(is_word));
            if name.is_empty() || !is_valid {
                return None;
            }
            names.push(name.into());
            rest = after;
        }
        (!names.is_empty()).then(|| Self(names.into()))
    }

    /// Iterates over the names, from the outermost object.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|name| &**name)
    }
}

/// True for a character of a name that needs no quotation marks.
fn is_word(char: char) -> bool {
    char.is_ascii_alphanumeric() || matches!(char, '_' | '-')
}

/// As [`ClaimPath::parse`] reads it, with quotation marks only where a name needs them.
impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.names().try_for_each(|name| {
            if name.chars().all(is_word) {
                write!(f, ".{name}")
            } else {
                write!(f, "[\"{name}\"]")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(text: &str) -> Option<Vec<String>> {
        let path = ClaimPath::parse(text)?;
        assert_eq!(ClaimPath::parse(&path.to_string()), Some(path.clone()));
        Some(path.names().map(String::from).collect())
    }

    #[test]
    fn names_are_words_or_quoted_texts() {
        for (text, expected) in [
            (".sub", vec!["sub"]),
            (".a.b-c.d_1", vec!["a", "b-c", "d_1"]),
            (
                r#"["https://example.com/roles"].x"#,
                vec!["https://example.com/roles", "x"],
            ),
            (r#".a["b"]["c d}é"]"#, vec!["a", "b", "c d}é"]),
        ] {
            assert_eq!(names(text).unwrap(), expected, "{text}");
        }
        for text in [
            "",
            ".",
            "sub",
            ".a.",
            "..a",
            ".a b",
            ".é",
            "[a]",
            "[\"\"]",
            "[\"a\"",
            "[\"a\"]b",
            "[\"a\"b\"]",
            ".a[0]",
        ] {
            assert_eq!(names(text), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gets_a_result(text in "[\\[\\]\"a.}é ]{0,12}") {
            let _: Option<Vec<String>> = names(&text);
        }
    }
}
