//! What was probably meant by a word that is not known.

use std::collections::BTreeSet;

/// A known key of this name somewhere else; its map.
pub(super) fn elsewhere<'k>(key: &str, known: &'k BTreeSet<String>) -> Option<&'k str> {
    known
        .iter()
        .find_map(|path| path.strip_suffix(key)?.strip_suffix('.'))
}

/// The word that was probably meant: at most a third of its letters differ.
pub(super) fn nearest<'k>(word: &str, words: &[&'k str]) -> Option<&'k str> {
    let word = word.to_ascii_lowercase();
    let near = words
        .iter()
        .map(|other| (distance(&word, other), *other))
        .min()?;
    (near.0 <= near.1.len().max(word.len()).div_ceil(3)).then_some(near.1)
}

/// Whether one of these words was probably meant: at most a quarter of its letters differ, and at least one may.
pub(super) fn is_near(word: &str, words: &[&str]) -> bool {
    let word = word.to_ascii_lowercase();
    words.iter().any(|other| {
        let most = (other.len() / 4).max(1);
        word.len().abs_diff(other.len()) <= most && distance(&word, other) <= most
    })
}

/// Letters to insert, remove, replace or swap (optimal string alignment). Words too long to be a key are far from all.
fn distance(one: &str, two: &str) -> usize {
    let (one, two): (Vec<char>, Vec<char>) = (one.chars().collect(), two.chars().collect());
    if one.len() > 64 {
        return usize::MAX;
    }
    let mut rows = vec![vec![0; two.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=two.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let same = one[i - 1] == two[j - 1];
                let step = (rows[i - 1][j] + 1)
                    .min(rows[i][j - 1] + 1)
                    .min(rows[i - 1][j - 1] + usize::from(!same));
                let swapped =
                    i > 1 && j > 1 && one[i - 1] == two[j - 2] && one[i - 2] == two[j - 1];
                if swapped {
                    step.min(rows[i - 2][j - 2] + 1)
                } else {
                    step
                }
            };
        }
    }
    rows[one.len()][two.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_key_is_the_one_that_was_meant() {
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
