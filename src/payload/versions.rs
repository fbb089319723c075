//! Versions of the payloads of a route: which ones clients can ask for, and the conversions between
//! them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use json_patch::Patch;

use crate::event::Version;

/// Versions of the payloads of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Version of messages without the header, and of clients that ask for none.
    pub current: Version,
    /// Versions that clients can ask for, in ascending order. The current one is among them.
    pub supported: Vec<Version>,
    /// Supported versions that will be removed.
    pub deprecated: BTreeMap<Version, Deprecation>,
    /// Conversions between neighbours. Of each version at most one leads up and one down.
    pub conversions: Vec<Conversion>,
}

/// Announced end of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// Time from which the version is deprecated.
    pub since: SystemTime,
    /// Time from which requests for the version are rejected.
    pub sunset: Option<SystemTime>,
    /// URL of a page about the change.
    pub link: Option<Box<str>>,
}

/// Conversion of payloads of one version into another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conversion {
    /// Version of the payload before.
    pub from: Version,
    /// Version of the payload after.
    pub to: Version,
    /// Operations in order (RFC 6902).
    pub patch: Patch,
}

impl Versions {
    /// Returns the conversions that lead from one version to another, in order; empty if they are
    /// equal, `None` if there is no way.
    #[must_use]
    pub fn way(&self, from: Version, to: Version) -> Option<Vec<&Conversion>> {
        let mut way = Vec::new();
        let mut at = from;
        while at != to {
            let next = self
                .conversions
                .iter()
                .find(|step| step.from == at && step.approaches(to))?;
            way.push(next);
            at = next.to;
        }
        Some(way)
    }
}

impl Conversion {
    /// True if the conversion leads upwards.
    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.to > self.from
    }

    /// True if the conversion leads towards a version and not past it.
    fn approaches(&self, target: Version) -> bool {
        let (low, high) = if self.is_upgrade() {
            (self.from, target)
        } else {
            (target, self.from)
        };
        (low..=high).contains(&self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: u16) -> Version {
        Version::parse(&number.to_string()).unwrap()
    }

    #[test]
    fn way_is_a_chain_of_neighbours_in_one_direction() {
        let step = |from, to| Conversion {
            from: version(from),
            to: version(to),
            patch: Patch::default(),
        };
        let versions = Versions {
            current: version(5),
            supported: [1, 3, 5].map(version).to_vec(),
            deprecated: BTreeMap::new(),
            conversions: vec![step(5, 3), step(3, 1), step(1, 3), step(3, 5)],
        };
        let way = |from, to| {
            let way = versions.way(version(from), version(to))?;
            Some(
                way.iter()
                    .map(|step| step.to.to_string())
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(way(5, 5), Some(Vec::new()));
        assert_eq!(way(5, 1), Some(vec!["3".into(), "1".into()]));
        assert_eq!(way(1, 5), Some(vec!["3".into(), "5".into()]));
        assert_eq!(
            way(5, 4),
            None,
            "a conversion does not lead past its target"
        );
        assert_eq!(way(7, 5), None);
        assert_eq!(way(2, 3), None);
    }
}
