//! Reader of one map: asks for its keys by name.
//!
//! Every key that is asked for counts as known, whether the map has it or not. After the map was
//! read, [`ValueReader::map`] reports the keys that nothing has asked for.

use super::{ValueReader, pattern};
use crate::config::location::Location;
use crate::config::tree::{Entry, Value};

/// Reader of the keys of one map.
pub(in crate::config) struct MapReader<'p> {
    pub(super) value: &'p ValueReader<'p>,
    pub(super) entries: &'p [Entry],
    pub(super) asked: Vec<&'static str>,
    pub(super) not_yet: &'static [&'static str],
}

impl ValueReader<'_> {
    /// Reads a map: the keys that `read` asks for are the known ones.
    pub(in crate::config) fn map<T>(
        &self,
        read: impl FnOnce(&mut MapReader<'_>) -> Option<T>,
    ) -> Option<T> {
        let Value::Map(entries) = &self.node.value else {
            return self.wrong(
                "a map",
                Some("write its keys on the lines below it, indented, as `key: value`"),
            );
        };
        let mut keys = MapReader {
            value: self,
            entries,
            asked: Vec::new(),
            not_yet: &[],
        };
        let value = read(&mut keys);
        let MapReader { asked, not_yet, .. } = keys;
        let known = |key: &str| asked.contains(&key) || not_yet.contains(&key);
        for entry in entries.iter().filter(|entry| !known(&entry.key)) {
            self.add_unknown(entry, &asked);
        }
        value
    }
}

impl<'p> MapReader<'p> {
    fn entry(&self, key: &str) -> Option<&'p Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }

    fn find(&mut self, key: &'static str) -> Option<ValueReader<'p>> {
        let path = self.value.path_of(key);
        self.asked.push(key);
        self.value.reader.known.borrow_mut().insert(pattern(&path));
        let entry = self.entry(key)?;
        let value = ValueReader {
            reader: self.value.reader,
            node: &entry.node,
            path,
        };
        value.note();
        Some(value)
    }

    /// Returns the value of an optional key, or nothing if it is missing or invalid.
    pub(in crate::config) fn get<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&ValueReader<'p>) -> Option<T>,
    ) -> Option<T> {
        self.find(key).and_then(|value| read(&value))
    }

    /// Returns the value of a required key. A missing key is an error.
    pub(in crate::config) fn require<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&ValueReader<'p>) -> Option<T>,
    ) -> Option<T> {
        let value = self.find(key);
        if value.is_none() {
            self.value.error(
                format!("`{key}` is missing in {}", self.value.name_of_map()),
                None,
            );
        }
        value.and_then(|value| read(&value))
    }

    /// Returns the value of an optional key, or its default.
    pub(in crate::config) fn get_or<T>(
        &mut self,
        key: &'static str,
        default: T,
        read: impl FnOnce(&ValueReader<'p>) -> Option<T>,
    ) -> T {
        self.get(key, read).unwrap_or(default)
    }

    /// Returns the value of an optional key that may be null, or its default.
    pub(in crate::config) fn nullable<T>(
        &mut self,
        key: &'static str,
        default: Option<T>,
        read: impl FnOnce(&ValueReader<'p>) -> Option<T>,
    ) -> Option<T> {
        match self.find(key) {
            None => default,
            Some(value) if value.node.is_null() => None,
            Some(value) => read(&value),
        }
    }

    /// Rejects keys that are reserved for a later version, with a message of their own.
    pub(in crate::config) fn not_yet(&mut self, keys: &'static [&'static str]) {
        self.not_yet = keys;
        for key in keys {
            if let Some(entry) = self.entry(key) {
                self.value.reader.report.error(
                    entry.at,
                    format!("`{key}` is not available in this version"),
                    None,
                );
            }
        }
    }

    /// Returns the location of the key, or of the map if the key is missing.
    pub(in crate::config) fn location(&self, key: &str) -> Location {
        self.entry(key).map_or(self.value.node.at, |entry| entry.at)
    }

    /// Returns whether the map has the key with a value other than null.
    pub(in crate::config) fn has(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| !entry.node.is_null())
    }

    /// Returns whether the value of a key is an empty text from the environment, which
    /// [`Self::nullable`] reads as null.
    pub(in crate::config) fn is_filled_with_nothing(&self, key: &str) -> bool {
        self.entry(key).is_some_and(|entry| {
            matches!(&entry.node.value, Value::Scalar(scalar) if scalar.filled && scalar.text.is_empty())
        })
    }

    /// Reports an error at a key.
    pub(in crate::config) fn error(
        &self,
        key: &str,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.value.error_at(self.location(key), message, hint);
    }

    /// Reports an error of the whole map.
    pub(in crate::config) fn map_error(&self, message: impl Into<String>, hint: Option<&str>) {
        self.value.error(message, hint);
    }

    /// Reports a warning at a key, or at the map if the key is missing.
    pub(in crate::config) fn warn(&self, key: &str, message: impl Into<String>, hint: &str) {
        self.value.warn_at(self.location(key), message, hint);
    }

    /// Reports an error at another location.
    pub(in crate::config) fn error_at(
        &self,
        at: Location,
        message: impl Into<String>,
        hint: Option<&str>,
    ) {
        self.value.error_at(at, message, hint);
    }
}
