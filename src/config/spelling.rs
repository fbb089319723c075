//! Suggestions for unknown words: the known word that was probably meant.
//!
//! Distances are those of optimal string alignment: inserted, removed, replaced and swapped letters
//! count one each.

use std::collections::BTreeSet;

use strsim::osa_distance;

/// 64 bytes: longer words are not a typing error of a key, and the distance takes time with the
/// product of the lengths.
const WORD_BYTES_MAX: usize = 64;

/// Returns the path of the map that has a key of this name, if another map has one.
pub(super) fn elsewhere<'k>(key: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    known
        .iter()
        .find_map(|path| path.strip_suffix(key)?.strip_suffix('.'))
}

/// Returns the word that was probably meant: at most a third of its letters differ.
pub(super) fn nearest<'k>(word: &str, words: &[&'k str]) -> Option<&'k str> {
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let word = word.to_ascii_lowercase();
    let (distance, near) = words
        .iter()
        .map(|other| (osa_distance(&word, other), *other))
        .min()?;
    (distance <= near.len().max(word.len()).div_ceil(3)).then_some(near)
}

/// Returns whether one of these words was probably meant: at most a quarter of its letters differ,
/// and one always may.
pub(super) fn is_near(word: &str, words: &[&str]) -> bool {
    let word = word.to_ascii_lowercase();
    words.iter().any(|other| {
        let most = (other.len() / 4).max(1);
        word.len().abs_diff(other.len()) <= most && osa_distance(&word, other) <= most
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_get_the_intended_key() {
        let keys = [
            "path",
            "sources",
            "client",
            "event",
            "heartbeat",
            "retry",
            "max_age",
        ];
        assert_eq!(nearest("hartbeat", &keys), Some("heartbeat"));
        assert_eq!(nearest("heartbaet", &keys), Some("heartbeat"));
        assert_eq!(nearest("maxAge", &keys), Some("max_age"));
        assert_eq!(nearest("source", &keys), Some("sources"));
        assert_eq!(nearest("compression", &keys), None);
        assert_eq!(nearest(&"x".repeat(1000), &keys), None);
    }
}
