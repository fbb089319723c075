//! Typed reading of the tree: every key is asked for by name and type, and the others are unknown.
//!
//! [`Reader`] belongs to one file. [`ValueReader`] reads one value of it, for example as a duration
//! or a list, and [`MapReader`](map::MapReader) one map, key by key. A value that is missing or
//! invalid is reported and read as nothing; the caller continues, so all problems of a file are
//! found at once. The functions in `config::read` say which keys there are.
//!
//! Unknown keys are collected while maps are read and reported at the end by [`Reader::finish`],
//! because the hint may name a key of another map. Their values are hidden in excerpts: a
//! misspelled key may have a secret.

pub(super) mod map;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::location::Location;
use super::mask::{self, is_secret_name};
use super::problem::{Problems, Report};
use super::renamed;
use super::secrets;
use super::spelling::{elsewhere, nearest};
use super::tree::{Entry, Node, Scalar, Value};
use super::units;

/// 16 KiB: the longest token of a NATS account has a quarter of it. Reading a template or a path
/// takes more than linear time.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// 1000 items in a list without a bound of its own: many times more than one pod can use. Some
/// lists are compared with each other, and some are searched for each request or event.
const ITEMS_MAX: usize = 1000;

/// State that all values of one file share.
pub(super) struct Reader<'r> {
    pub(super) report: &'r Report<'r>,
    /// Every key that was asked for, such as `routes[].heartbeat`.
    known: RefCell<BTreeSet<String>>,
    /// Every leaf value of the file, such as `routes[0].heartbeat`, and its line.
    named: RefCell<Vec<(String, usize)>>,
    /// Keys that were not asked for; reported at the end, when every known key can be a hint.
    unknown_keys: RefCell<Vec<UnknownKey>>,
}

/// Key that was not asked for.
struct UnknownKey {
    key: String,
    at: Location,
    siblings: Vec<&'static str>,
    /// Its new name, if it was renamed.
    renamed: Option<&'static str>,
    /// The key of this map that was probably meant.
    near: Option<&'static str>,
    /// It may be part of a secret and is not quoted.
    is_hidden: bool,
}

/// Keys of a file, and keys that it could have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Every known key of the maps in the file, such as `routes[].heartbeat`, sorted.
    pub known: Vec<String>,
    /// Every leaf value of the file, such as `routes[0].heartbeat`, and its line.
    pub named: Vec<(String, usize)>,
}

impl<'r> Reader<'r> {
    pub(super) fn new(report: &'r Report<'r>) -> Self {
        Self {
            report,
            known: RefCell::default(),
            named: RefCell::default(),
            unknown_keys: RefCell::default(),
        }
    }

    pub(super) fn root<'w>(&'w self, node: &'w Node) -> ValueReader<'w> {
        ValueReader {
            reader: self,
            node,
            path: String::new(),
        }
    }

    /// Reports the unknown keys and returns the outline.
    pub(super) fn finish(self) -> Outline {
        let known = self.known.into_inner();
        for UnknownKey {
            key,
            at,
            siblings,
            renamed,
            near,
            is_hidden,
        } in self.unknown_keys.into_inner()
        {
            let hint = match (renamed, near, elsewhere(&key, &known)) {
                (Some(new), ..) => renamed::hint(&key, new),
                _ if is_hidden => "inside of `{...}` a text with a comma needs quotes".to_owned(),
                (_, Some(near), _) => format!("did you mean `{near}`?"),
                (_, None, Some(path)) => {
                    format!("`{key}` belongs to `{path}`: check the indentation")
                }
                (_, None, None) if siblings.is_empty() => "there are no keys here".to_owned(),
                (_, None, None) => format!("known here: {}", siblings.join(", ")),
            };
            let key = if is_hidden {
                "key without a value".to_owned()
            } else {
                format!("key `{key}`")
            };
            self.report.error(at, format!("unknown {key}"), Some(hint));
        }
        Outline {
            known: known.into_iter().collect(),
            named: self.named.into_inner(),
        }
    }
}

/// Reader of one value of the file.
pub(super) struct ValueReader<'w> {
    reader: &'w Reader<'w>,
    node: &'w Node,
    path: String,
}

impl<'w> ValueReader<'w> {
    pub(super) fn location(&self) -> Location {
        self.node.at
    }

    /// Reports an error at another location.
    pub(super) fn error_at(&self, at: Location, message: impl Into<String>, hint: Option<&str>) {
        self.reader
            .report
            .error(at, message, hint.map(str::to_owned));
    }

    /// Reports a warning at this value.
    pub(super) fn warn(&self, message: impl Into<String>, hint: &str) {
        self.reader.report.warn(self.node.at, message, hint);
    }

    /// Reports a warning at another location.
    pub(super) fn warn_at(&self, at: Location, message: impl Into<String>, hint: &str) {
        self.reader.report.warn(at, message, hint);
    }

    /// Reports an error at this value.
    pub(super) fn error(&self, message: impl Into<String>, hint: Option<&str>) {
        self.reader
            .report
            .error(self.node.at, message, hint.map(str::to_owned));
    }

    /// Returns the path of a key in this map, such as `routes[0].path`.
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// Returns the last part of its path for messages.
    pub(super) fn name(&self) -> String {
        let key = self.path.rsplit('.').next().unwrap_or_default();
        match key.split_once('[') {
            _ if key.is_empty() => "the file".into(),
            Some((list, _)) => format!("an item of `{list}`"),
            None => format!("`{key}`"),
        }
    }

    fn wrong<T>(&self, expected: &str, hint: Option<&str>) -> Option<T> {
        let found = match &self.node.value {
            Value::Scalar(scalar) if scalar.is_null() => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        };
        self.error(
            format!("{} must be {expected}, not {found}", self.name()),
            hint,
        );
        None
    }

    fn scalar(&self, expected: &str) -> Option<&'w Scalar> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.is_null() => {
                self.wrong(expected, Some("remove the key to use its default"))
            }
            Value::Scalar(scalar) if scalar.text.len() > TEXT_BYTES_MAX => {
                self.error(
                    format!("{} is longer than {TEXT_BYTES_MAX} bytes", self.name()),
                    None,
                );
                None
            }
            Value::Scalar(scalar) => Some(scalar),
            // `{query.client}` without quotes is a map in YAML.
            Value::Map(entries) if entries.iter().all(|entry| entry.node.is_null()) => {
                self.wrong(expected, Some("a text that begins with `{` needs quotes"))
            }
            Value::Map(_) | Value::List(_) => self.wrong(expected, None),
        }
    }

    /// Reads a map whose keys are not known: each with its value.
    pub(super) fn entries(&self) -> Option<Vec<(&'w str, Self)>> {
        let Value::Map(entries) = &self.node.value else {
            return self.wrong(
                "a map",
                Some("write its keys on the lines below it, indented, as `key: value`"),
            );
        };
        let entries = entries.iter().map(|entry| {
            let value = Self {
                reader: self.reader,
                node: &entry.node,
                path: self.path_of(&entry.key),
            };
            value.note();
            (&*entry.key, value)
        });
        Some(entries.collect())
    }

    /// Returns it as JSON: unquoted `true`, `false`, `null` and numbers are no texts.
    pub(super) fn json(&self) -> serde_json::Value {
        self.node.to_json()
    }

    /// Returns whether it is a list.
    pub(super) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    /// Returns whether it is null.
    pub(super) fn is_null(&self) -> bool {
        self.node.is_null()
    }

    /// Returns its text, if it is a single value. Reports nothing.
    pub(super) fn single(&self) -> Option<&str> {
        match &self.node.value {
            Value::Scalar(scalar) => Some(&scalar.text),
            Value::List(_) | Value::Map(_) => None,
        }
    }

    /// Reads a text of at least one character.
    pub(super) fn text(&self) -> Option<String> {
        self.parsed("a text", |text| {
            if text.is_empty() {
                Err("the text is empty")
            } else {
                Ok(text.to_owned())
            }
        })
    }

    /// Reads a text with `read`, and reports its error. Errors are fixed sentences, so they show
    /// nothing that came from the environment.
    pub(super) fn parsed<T>(
        &self,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        self.parsed_or(expected, read, |fault| fault.to_owned())
    }

    /// Reads a text as [`Self::parsed`] does, with errors that may quote the text.
    pub(super) fn parsed_or<T, E>(
        &self,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, E>,
        explain: impl FnOnce(E) -> String,
    ) -> Option<T> {
        let scalar = self.scalar(expected)?;
        match read(&scalar.text) {
            Ok(value) => Some(value),
            Err(fault) => {
                let hint = scalar
                    .filled
                    .then_some("the value came from the environment and is not shown");
                self.error(explain(fault), hint);
                None
            }
        }
    }

    /// Returns whether its text came from the environment; no message may quote it then.
    pub(super) fn is_filled(&self) -> bool {
        matches!(&self.node.value, Value::Scalar(scalar) if scalar.filled)
    }

    /// Reads a duration with its unit, or 0.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.with_unit(
            "a duration",
            units::parse_duration,
            "s",
            "write it as `250ms`, `15s`, `2m` or `1h`",
        )
    }

    /// Reads a duration above 0.
    pub(super) fn positive_duration(&self) -> Option<Duration> {
        self.positive(self.duration()?, Duration::ZERO)
    }

    /// Reads a size with its unit, or 0, in bytes.
    pub(super) fn size(&self) -> Option<usize> {
        self.with_unit(
            "a size",
            units::parse_size,
            "MiB",
            "write it as `64KiB` or `16MiB`",
        )
    }

    /// Reads a size above 0.
    pub(super) fn positive_size(&self) -> Option<usize> {
        self.positive(self.size()?, 0)
    }

    fn positive<T: PartialEq + Copy>(&self, value: T, zero: T) -> Option<T> {
        if value == zero {
            self.error(format!("{} must be more than 0", self.name()), None);
            return None;
        }
        Some(value)
    }

    fn with_unit<T>(
        &self,
        expected: &str,
        parse: impl FnOnce(&str) -> Result<T, &'static str>,
        unit: &str,
        hint: &str,
    ) -> Option<T> {
        let scalar = self.scalar(expected)?;
        parse(&scalar.text)
            .map_err(|fault| self.error(fault, Some(&unit_hint(scalar, unit, hint))))
            .ok()
    }

    /// Reads a whole number above 0.
    pub(super) fn count(&self) -> Option<usize> {
        self.number("expected a whole number without a unit, at most 1000000000")
    }

    /// Reads `auto` as nothing, or a whole number above 0.
    pub(super) fn auto_or_count(&self) -> Option<Option<usize>> {
        self.auto_or(|value| {
            value.number("expected `auto` or a whole number without a unit, at most 1000000000")
        })
    }

    fn number(&self, fault: &'static str) -> Option<usize> {
        let number = self.parsed("a whole number", |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            // 1,000,000,000: no count of this program reaches it, and sums cannot overflow.
            text.parse()
                .ok()
                .filter(|number| digits && *number <= 1_000_000_000)
                .ok_or(fault)
        })?;
        self.positive(number, 0)
    }

    /// Reads `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        self.one_of(&[("true", true), ("false", false)])
    }

    /// Reads one of the given words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&'static str, T)]) -> Option<T> {
        let all = words
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(" or ");
        let scalar = self.scalar(&all)?;
        let found = words.iter().find(|(word, _)| *word == scalar.text);
        if found.is_none() {
            let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = match renamed::value(&pattern(&self.path), &scalar.text) {
                Some(new) => Some(renamed::hint(&scalar.text, new)),
                None => nearest(&scalar.text, &names).map(|near| format!("did you mean `{near}`?")),
            };
            let hint = hint.filter(|_| !scalar.filled);
            self.error(format!("{} must be {all}", self.name()), hint.as_deref());
        }
        found.map(|(_, value)| *value)
    }

    /// Reads `auto` as nothing, and anything else with `read`.
    pub(super) fn auto_or<T>(&self, read: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.text == "auto" => Some(None),
            _ => read(self).map(Some),
        }
    }

    /// Reads the name of a file.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.parsed("the name of a file", |text| {
            if text.is_empty() {
                return Err("the text is empty");
            }
            if mask::is_key(text) || text.contains(['\n', '\0']) {
                return Err("expected the name of a file, not its content");
            }
            Ok(PathBuf::from(text))
        })
    }

    /// Returns whether the value is a list without items.
    pub(super) fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }

    /// Reads a list of at least one item.
    pub(super) fn some<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        self.some_of(ITEMS_MAX, read)
    }

    /// Reads a list of at least one item and at most `most`.
    pub(super) fn some_of<T>(
        &self,
        most: usize,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        if self.is_empty_list() {
            self.error(
                format!("{} is empty", self.name()),
                Some("at least one is needed"),
            );
            return None;
        }
        self.list_of(most, read)
    }

    /// Reads a list: every valid item, or nothing if the value is not a list or has too many items.
    pub(super) fn list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        self.list_of(ITEMS_MAX, read)
    }

    /// Reads a list of at most `most` items.
    pub(super) fn list_of<T>(
        &self,
        most: usize,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        let Value::List(items) = &self.node.value else {
            return self.wrong(
                "a list",
                Some("write `[...]`, or one item per line after `- `"),
            );
        };
        if items.len() > most {
            self.error(
                format!(
                    "{} has {} items, the maximum is {most}",
                    self.name(),
                    items.len()
                ),
                None,
            );
            return None;
        }
        let mut read_items = Vec::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let value = Self {
                reader: self.reader,
                node,
                path: format!("{}[{index}]", self.path),
            };
            value.note();
            read_items.extend(read(&value));
        }
        Some(read_items)
    }

    /// Records an unknown key and hides its value, which may be a secret at a misspelled key.
    fn add_unknown(&self, entry: &Entry, siblings: &[&'static str]) {
        let mut unknown_keys = self.reader.unknown_keys.borrow_mut();
        let is_reported = unknown_keys.len() < Problems::COUNT_MAX;
        let renamed = renamed::key(&pattern(&self.path_of(&entry.key)));
        let near = is_reported.then(|| nearest(&entry.key, siblings)).flatten();
        let near = renamed.or(near);
        let in_secrets = self
            .path
            .split(['.', '['])
            .next()
            .is_some_and(mask::has_secrets);
        let is_harmless = matches!(entry.node.value, Value::Scalar(_))
            && near.is_some_and(|near| !is_secret_name(near) && !is_secret_name(&entry.key));
        if in_secrets || !is_harmless {
            secrets::hide_value(&entry.node, self.reader.report);
        }
        if is_reported {
            let is_hidden = in_secrets && entry.node.is_null() && near.is_none();
            unknown_keys.push(UnknownKey {
                key: entry.key.clone(),
                at: entry.at,
                siblings: siblings.to_vec(),
                renamed,
                near,
                is_hidden,
            });
        }
    }

    fn note(&self) {
        let leaf = match &self.node.value {
            Value::Scalar(_) => true,
            Value::List(items) => items.is_empty(),
            Value::Map(entries) => entries.is_empty(),
        };
        if leaf {
            self.reader
                .named
                .borrow_mut()
                .push((self.path.clone(), self.node.at.line));
        }
    }
}

fn unit_hint(scalar: &Scalar, unit: &str, hint: &str) -> String {
    let number = !scalar.text.is_empty() && scalar.text.bytes().all(|byte| byte.is_ascii_digit());
    if number && !scalar.filled {
        format!("a number needs a unit: `{}{unit}`?", scalar.text)
    } else {
        hint.to_owned()
    }
}

impl ValueReader<'_> {
    fn name_of_map(&self) -> String {
        if self.path.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{}`", self.path)
        }
    }
}

/// Returns a path without list indices: `routes[3].path` as `routes[].path`.
fn pattern(path: &str) -> String {
    path.chars().filter(|char| !char.is_ascii_digit()).collect()
}
