//! Table of revoked values with a maximum number of entries.
//!
//! An entry has the digest of a kind and a value, not the value: 16 bytes of SHA-256. Two values
//! have the same digest with a probability of 2^-128, also if one of them was chosen for it, so a
//! client is never rejected for the value of another one. A B-tree has no spare half as a hash
//! table has: one million entries take about 40 MB (`a_million_entries_fit_into_the_documented_memory`).

use std::collections::BTreeMap;
use std::ops::Bound;

use ring::digest::{SHA256, digest};

use super::entry::{Kind, Times};

/// Digest of a kind and a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Digest([u8; 16]);

impl Digest {
    pub(super) fn of(kind: Kind, value: &str) -> Self {
        let mut text = Vec::with_capacity(value.len() + 8);
        // Kinds have no dot: no two pairs make the same text.
        text.extend_from_slice(kind.as_str().as_bytes());
        text.push(b'.');
        text.extend_from_slice(value.as_bytes());
        let digest = digest(&SHA256, &text);
        let mut short = [0; 16];
        short.copy_from_slice(&digest.as_ref()[..16]);
        Self(short)
    }
}

/// Revoked values.
#[derive(Debug)]
pub(super) struct Table {
    entries: BTreeMap<Digest, Times>,
    max: usize,
    /// Last entry that [`Self::sweep`] has seen.
    swept: Option<Digest>,
}

impl Table {
    pub(super) fn new(max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            max,
            swept: None,
        }
    }

    /// Adds or replaces an entry. Returns false if the table is full.
    pub(super) fn insert(&mut self, digest: Digest, times: Times) -> bool {
        if self.entries.len() >= self.max && !self.entries.contains_key(&digest) {
            return false;
        }
        self.entries.insert(digest, times);
        true
    }

    pub(super) fn remove(&mut self, digest: &Digest) {
        self.entries.remove(digest);
    }

    /// Returns an entry that has not expired.
    pub(super) fn get(&self, digest: &Digest, now: u32) -> Option<Times> {
        self.entries
            .get(digest)
            .copied()
            .filter(|times| times.until > now)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Looks at the next `count` entries and removes those that have expired.
    pub(super) fn sweep(&mut self, now: u32, count: usize) {
        let after = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
        let seen = self.entries.range((after, Bound::Unbounded)).take(count);
        let (mut last, mut expired) = (None, Vec::new());
        for (digest, times) in seen {
            last = Some(*digest);
            if times.until <= now {
                expired.push(*digest);
            }
        }
        for digest in expired {
            self.entries.remove(&digest);
        }
        // `None`: the next call begins again.
        self.swept = last;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn digest_of(number: u32) -> Digest {
        Digest::of(Kind::Jti, &number.to_string())
    }

    const TIMES: Times = Times { at: 1, until: 100 };

    #[test]
    fn entries_expire_and_are_removed_in_passes() {
        let mut table = Table::new(1000);
        for number in 0..100 {
            let until = if number < 40 { 50 } else { 100 };
            assert!(table.insert(digest_of(number), Times { at: 1, until }));
        }
        assert_eq!(table.get(&digest_of(1), 49).map(|times| times.at), Some(1));
        assert_eq!(table.get(&digest_of(1), 50), None);
        for _ in 0..10 {
            table.sweep(50, 10);
        }
        assert_eq!(table.len(), 60);
        // A pass begins again after the last entry.
        table.sweep(100, 10);
        table.sweep(100, 1000);
        table.sweep(100, 1000);
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn kinds_of_one_value_differ() {
        let digests = Kind::ALL.map(|kind| Digest::of(kind, "a"));
        for (index, digest) in digests.iter().enumerate() {
            assert!(!digests[..index].contains(digest));
        }
    }

    #[test]
    fn full_table_accepts_known_values_only() {
        let mut table = Table::new(2);
        assert!(table.insert(digest_of(1), TIMES));
        assert!(table.insert(digest_of(2), TIMES));
        assert!(!table.insert(digest_of(3), TIMES));
        let later = Times { at: 1, until: 200 };
        assert!(table.insert(digest_of(2), later));
        assert_eq!(table.get(&digest_of(2), 150), Some(later));
        table.remove(&digest_of(1));
        assert!(table.insert(digest_of(3), TIMES));
    }

    /// Resident memory of the process in bytes.
    fn resident() -> usize {
        let statm = fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    }

    #[test]
    #[ignore = "measures the memory of the whole process: run it alone"]
    fn a_million_entries_fit_into_the_documented_memory() {
        let before = resident();
        let mut table = Table::new(1 << 20);
        for number in 0..1_000_000 {
            assert!(table.insert(digest_of(number), TIMES));
        }
        let bytes = resident() - before;
        println!("{bytes} bytes for {} entries", table.len());
        assert!(bytes < 48_000_000, "{bytes}");
    }
}
