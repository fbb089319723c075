//! Mark of an open event stream by its credentials, and the search for those that must end.
//!
//! A [`Mark`] has 40 bytes: hashes with a key of this process instead of texts. A collision of two
//! hashes of 64 bits ends an event stream whose client returns and loses nothing, because requests
//! are checked against the digests of the table.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::entry::{Kind, Times};

/// Credentials of one event stream, as far as a revocation can match them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark {
    /// Hashes of `jti`, `sid`, `sub` and `client`, in the order of [`Kind::ALL`]; 0: it has none.
    pub(super) hashes: [u64; 4],
    /// Time of issue in seconds since 1970; 0: it is not known.
    pub(super) issued: u32,
}

/// Values whose event streams end.
#[derive(Debug, Default)]
pub struct Ended {
    revoked: HashMap<u64, Revoked>,
    kicked: HashSet<u64>,
}

#[derive(Debug)]
struct Revoked {
    kind: Kind,
    at: u32,
}

/// Returns the hash of a value, which is never 0.
pub(super) fn hash(key: &RandomState, kind: Kind, value: &str) -> u64 {
    // A kick is about the client of that name.
    let kind = if kind == Kind::Kick {
        Kind::Client
    } else {
        kind
    };
    key.hash_one((kind, value)).max(1)
}

impl Ended {
    pub(super) fn add(&mut self, kind: Kind, hash: u64, times: Times) {
        if kind == Kind::Kick {
            self.kicked.insert(hash);
        } else {
            self.revoked.insert(hash, Revoked { kind, at: times.at });
        }
    }

    /// Removes a value whose entry was deleted.
    pub(super) fn forget(&mut self, kind: Kind, hash: u64) {
        if kind != Kind::Kick {
            self.revoked.remove(&hash);
        }
    }

    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.revoked.len() + self.kicked.len()
    }

    /// Returns whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the kind of the value that ends an event stream; `None` if it goes on.
    #[must_use]
    pub fn find(&self, mark: &Mark) -> Option<Kind> {
        let mut hashes = mark.hashes.iter().filter(|hash| **hash != 0);
        let revoked = hashes.find_map(|hash| {
            let Revoked { kind, at } = self.revoked.get(hash)?;
            is_revoked(*kind, *at, mark.issued).then_some(*kind)
        });
        let [_, _, _, client] = mark.hashes;
        revoked.or_else(|| {
            let is_kicked = client != 0 && self.kicked.contains(&client);
            is_kicked.then_some(Kind::Kick)
        })
    }
}

/// Returns whether a revocation concerns credentials of this time of issue; 0: it is not known.
pub(super) fn is_revoked(kind: Kind, at: u32, issued: u32) -> bool {
    !kind.depends_on_issue_time() || issued <= at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_takes_forty_bytes() {
        assert_eq!(size_of::<Mark>(), 40);
    }
}
