//! The keys of one map, each asked for by its name.

use super::{Mark, Place, pattern};
use crate::config::tree::Entry;

/// The keys of one map.
pub(in crate::config) struct Keys<'p> {
    pub(super) place: &'p Place<'p>,
    pub(super) entries: &'p [Entry],
    pub(super) asked: Vec<&'static str>,
    pub(super) later: &'static [&'static str],
}

impl<'p> Keys<'p> {
    fn entry(&self, key: &str) -> Option<&'p Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn find(&mut self, key: &'static str) -> Option<Place<'p>> {
        let path = self.place.path_of(key);
        self.asked.push(key);
        self.place.walk.known.borrow_mut().insert(pattern(&path));
        let entry = self.entry(key)?;
        let place = Place {
            walk: self.place.walk,
            node: &entry.node,
            path,
        };
        place.note();
        Some(place)
    }

    /// The key's value, if it stands there and can be read.
    pub(in crate::config) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Place<'p>) -> Option<T>,
    ) -> Option<T> {
        self.find(key).and_then(|place| read(&place))
    }

    /// The key's value; a key that is missing is a problem.
    pub(in crate::config) fn require<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&Place<'p>) -> Option<T>,
    ) -> Option<T> {
        let place = self.find(key);
        if place.is_none() {
            self.place.problem(
                format!("`{key}` is missing in {}", self.place.name_of_map()),
                None,
            );
        }
        place.and_then(|place| read(&place))
    }

    /// The key's value, or its default.
    pub(in crate::config) fn or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&Place<'p>) -> Option<T>,
    ) -> T {
        self.get(key, read).unwrap_or(default)
    }

    /// The key's value, which may be null, or its default.
    pub(in crate::config) fn nullable<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        read: impl FnOnce(&Place<'p>) -> Option<T>,
    ) -> Option<T> {
        match self.find(key) {
            None => default,
            Some(place) if place.node.is_null() => None,
            Some(place) => read(&place),
        }
    }

    /// Keys that a later version takes: refused, but not as unknown.
    pub(in crate::config) fn later(&mut self, keys: &'static [&'static str]) {
        self.later = keys;
        for key in keys {
            if let Some(entry) = self.entry(key) {
                self.place.walk.report.add(
                    entry.at,
                    format!("`{key}` is not available in this version"),
                    None,
                );
            }
        }
    }

    /// Where the key stands, or the map if it does not.
    pub(in crate::config) fn at(&self, key: &str) -> Mark {
        self.entry(key).map_or(self.place.node.at, |entry| entry.at)
    }

    /// Whether the key stands there with a value.
    pub(in crate::config) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| !entry.node.is_null())
    }

    /// Tells a problem of a key.
    pub(in crate::config) fn problem(
        &self,
        key: &str,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.problem_at(self.at(key), message, hint);
    }

    /// Tells a problem at a place that was kept.
    pub(in crate::config) fn problem_at(
        &self,
        at: Mark,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.place
            .walk
            .report
            .add(at, message, hint.map(str::to_owned));
    }
}
