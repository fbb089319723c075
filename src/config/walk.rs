//! The walk over the tree: every key is asked for once, by name and type; what was not asked for is unknown.

mod keys;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Mark, Problems, Report};
use super::renamed;
use super::secrets::{self, is_secret_name};
use super::spelling::{elsewhere, nearest};
use super::tree::{Entry, Node, Scalar, Value};
use super::units;
pub(super) use keys::Keys;

/// 16 KiB: the longest token of a NATS account has a quarter of it. Templates and paths are read in time that grows faster
/// than their length.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// 1000 items in a list that has no bound of its own: many times what one pod can use of anything. Lists are compared with
/// each other, and looked through for each request or event.
const ITEMS_MAX: usize = 1000;

/// What is shared by all places of one file.
pub(super) struct Walk<'r> {
    pub(super) report: &'r Report<'r>,
    /// Every key that was asked for, such as `routes[].heartbeat`.
    known: RefCell<BTreeSet<String>>,
    /// Every value without parts that the file names, such as `routes[0].heartbeat`, and its line.
    named: RefCell<Vec<(String, usize)>>,
    /// Keys that nobody asked for: told at the end, when all known ones can be hints.
    strays: RefCell<Vec<Stray>>,
}

struct Stray {
    key: String,
    at: Mark,
    siblings: Vec<&'static str>,
    /// The sibling that has replaced it.
    renamed: Option<&'static str>,
    /// The sibling that was probably meant.
    near: Option<&'static str>,
    /// It may be a part of a secret, and is not quoted.
    is_hidden: bool,
}

/// The names that a file uses, and all there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// Every key there is in the maps that the file has, such as `routes[].heartbeat`, sorted.
    pub known: Vec<String>,
    /// Every value without parts that the file names, such as `routes[0].heartbeat`, and its line.
    pub named: Vec<(String, usize)>,
}

impl<'r> Walk<'r> {
    pub(super) fn new(report: &'r Report<'r>) -> Self {
        Self {
            report,
            known: RefCell::default(),
            named: RefCell::default(),
            strays: RefCell::default(),
        }
    }

    pub(super) fn root<'w>(&'w self, node: &'w Node) -> Place<'w> {
        Place {
            walk: self,
            node,
            path: String::new(),
        }
    }

    /// Tells the unknown keys.
    pub(super) fn finish(self) -> Outline {
        let known = self.known.into_inner();
        for Stray {
            key,
            at,
            siblings,
            renamed,
            near,
            is_hidden,
        } in self.strays.into_inner()
        {
            let hint = match (renamed, near, elsewhere(&key, &known)) {
                (Some(new), ..) => renamed::hint(&key, new),
                _ if is_hidden => "a text with a comma needs quotes inside of `{...}`".to_owned(),
                (_, Some(near), _) => format!("did you mean `{near}`?"),
                (_, None, Some(path)) => {
                    format!("`{key}` belongs to `{path}`: check the indentation")
                }
                (_, None, None) => format!("known here: {}", siblings.join(", ")),
            };
            let key = if is_hidden {
                "key without a value".to_owned()
            } else {
                format!("key `{key}`")
            };
            self.report.add(at, format!("unknown {key}"), Some(hint));
        }
        Outline {
            known: known.into_iter().collect(),
            named: self.named.into_inner(),
        }
    }
}

/// One value of the file, its name, and where problems with it are told.
pub(super) struct Place<'w> {
    walk: &'w Walk<'w>,
    node: &'w Node,
    path: String,
}

impl<'w> Place<'w> {
    pub(super) fn at(&self) -> Mark {
        self.node.at
    }

    /// Tells a problem at a place that was kept.
    pub(super) fn problem_at(&self, at: Mark, message: impl Into<String>, hint: Option<&str>) {
        self.walk.report.add(at, message, hint.map(str::to_owned));
    }

    /// Warns of this value.
    pub(super) fn warn(&self, message: impl Into<String>, hint: &str) {
        self.walk.report.warn(self.node.at, message, hint);
    }

    /// Warns at a place that was kept.
    pub(super) fn warn_at(&self, at: Mark, message: impl Into<String>, hint: &str) {
        self.walk.report.warn(at, message, hint);
    }

    /// Tells a problem of this value.
    pub(super) fn problem(&self, message: impl Into<String>, hint: Option<&str>) {
        self.walk
            .report
            .add(self.node.at, message, hint.map(str::to_owned));
    }

    /// The path of a key in this map, such as `routes[0].path`.
    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The last part of its name, as a message has it.
    fn name(&self) -> String {
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
        self.problem(format!("{} is {expected}, not {found}", self.name()), hint);
        None
    }

    fn scalar(&self, expected: &str) -> Option<&'w Scalar> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.is_null() => {
                self.wrong(expected, Some("leave the key out to take its default"))
            }
            Value::Scalar(scalar) if scalar.text.len() > TEXT_BYTES_MAX => {
                self.problem(
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

    /// A text of at least one character.
    pub(super) fn text(&self) -> Option<String> {
        self.parsed("a text", |text| {
            if text.is_empty() {
                Err("a text that is empty says nothing")
            } else {
                Ok(text.to_owned())
            }
        })
    }

    /// A text that `read` understands; else its error is the problem. What came from the environment is not shown:
    /// only errors that are fixed sentences are.
    pub(super) fn parsed<T>(
        &self,
        expected: &str,
        read: impl FnOnce(&str) -> Result<T, &'static str>,
    ) -> Option<T> {
        self.parsed_or(expected, read, |fault| fault.to_owned())
    }

    /// As [`Self::parsed`], with errors that may quote the text.
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
                    .then_some("its value came from the environment and is not shown");
                self.problem(explain(fault), hint);
                None
            }
        }
    }

    /// Whether its text came from the environment: then no message may quote it.
    pub(super) fn is_filled(&self) -> bool {
        matches!(&self.node.value, Value::Scalar(scalar) if scalar.filled)
    }

    /// A duration with its unit, or 0.
    pub(super) fn duration(&self) -> Option<Duration> {
        self.with_unit(
            "a duration",
            units::parse_duration,
            "s",
            "write it as `250ms`, `15s`, `2m` or `1h`",
        )
    }

    /// A duration above 0.
    pub(super) fn positive_duration(&self) -> Option<Duration> {
        self.positive(self.duration()?, Duration::ZERO)
    }

    /// A size with its unit above 0, in bytes.
    pub(super) fn positive_size(&self) -> Option<usize> {
        let bytes = self.with_unit(
            "a size",
            units::parse_size,
            "MiB",
            "write it as `64KiB` or `16MiB`",
        )?;
        self.positive(bytes, 0)
    }

    fn positive<T: PartialEq + Copy>(&self, value: T, zero: T) -> Option<T> {
        if value == zero {
            self.problem(format!("{} is more than 0", self.name()), None);
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
            .map_err(|fault| self.problem(fault, Some(&unit_hint(scalar, unit, hint))))
            .ok()
    }

    /// A whole number above 0.
    pub(super) fn count(&self) -> Option<usize> {
        self.number("this is a whole number, at most 1000000000, without a unit")
    }

    /// `auto` as nothing, or a whole number above 0.
    pub(super) fn auto_or_count(&self) -> Option<Option<usize>> {
        self.auto_or(|place| {
            place.number("this is `auto`, or a whole number, at most 1000000000, without a unit")
        })
    }

    fn number(&self, fault: &'static str) -> Option<usize> {
        let number = self.parsed("a whole number", |text| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            // 1 000 000 000: no count of this program reaches it, and sums of such cannot overflow.
            text.parse()
                .ok()
                .filter(|number| digits && *number <= 1_000_000_000)
                .ok_or(fault)
        })?;
        self.positive(number, 0)
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self) -> Option<bool> {
        self.one_of(&[("true", true), ("false", false)])
    }

    /// One of some words.
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
            self.problem(format!("{} is {all}", self.name()), hint.as_deref());
        }
        found.map(|(_, value)| *value)
    }

    /// `auto` as nothing, or what `read` makes of it.
    pub(super) fn auto_or<T>(&self, read: impl FnOnce(&Self) -> Option<T>) -> Option<Option<T>> {
        match &self.node.value {
            Value::Scalar(scalar) if scalar.text == "auto" => Some(None),
            _ => read(self).map(Some),
        }
    }

    /// The name of a file.
    pub(super) fn file(&self) -> Option<PathBuf> {
        self.parsed("the name of a file", |text| {
            if text.is_empty() {
                return Err("a text that is empty says nothing");
            }
            if secrets::is_key(text) || text.contains(['\n', '\0']) {
                return Err("this is the content of a file; the name of one is needed");
            }
            Ok(PathBuf::from(text))
        })
    }

    /// As [`Self::list`], of at least one item.
    pub(super) fn some<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        self.some_of(ITEMS_MAX, read)
    }

    /// As [`Self::list`], of at least one item and at most so many.
    pub(super) fn some_of<T>(
        &self,
        most: usize,
        read: impl Fn(&Self) -> Option<T>,
    ) -> Option<Vec<T>> {
        if matches!(&self.node.value, Value::List(items) if items.is_empty()) {
            self.problem(
                format!("{} is empty", self.name()),
                Some("at least one is needed"),
            );
            return None;
        }
        self.list_of(most, read)
    }

    /// Every item that can be read; nothing when it is no list, or one with too many items.
    pub(super) fn list<T>(&self, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        self.list_of(ITEMS_MAX, read)
    }

    fn list_of<T>(&self, most: usize, read: impl Fn(&Self) -> Option<T>) -> Option<Vec<T>> {
        let Value::List(items) = &self.node.value else {
            return self.wrong(
                "a list",
                Some("write `[...]`, or one item a line after `- `"),
            );
        };
        if items.len() > most {
            self.problem(
                format!(
                    "{} has {} items, at most {most} are read",
                    self.name(),
                    items.len()
                ),
                None,
            );
            return None;
        }
        let mut read_items = Vec::with_capacity(items.len());
        for (index, node) in items.iter().enumerate() {
            let place = Self {
                walk: self.walk,
                node,
                path: format!("{}[{index}]", self.path),
            };
            place.note();
            read_items.extend(read(&place));
        }
        Some(read_items)
    }

    /// What `read` makes of the map's keys; the keys that it asks for are the known ones.
    pub(super) fn map<T>(&self, read: impl FnOnce(&mut Keys<'_>) -> Option<T>) -> Option<T> {
        let Value::Map(entries) = &self.node.value else {
            return self.wrong(
                "a map",
                Some("write its keys below it, indented, as `key: value`"),
            );
        };
        let mut keys = Keys {
            place: self,
            entries,
            asked: Vec::new(),
            later: &[],
        };
        let value = read(&mut keys);
        let Keys { asked, later, .. } = keys;
        let known = |key: &str| asked.contains(&key) || later.contains(&key);
        for entry in entries.iter().filter(|entry| !known(&entry.key)) {
            self.stray(entry, &asked);
        }
        value
    }

    /// Keeps an unknown key, and hides its value: it could be a secret at a key with a typing error.
    fn stray(&self, entry: &Entry, siblings: &[&'static str]) {
        let mut strays = self.walk.strays.borrow_mut();
        let is_told = strays.len() < Problems::COUNT_MAX;
        let renamed = renamed::key(&pattern(&self.path_of(&entry.key)));
        let near = is_told.then(|| nearest(&entry.key, siblings)).flatten();
        let near = renamed.or(near);
        let in_secrets = self
            .path
            .split(['.', '['])
            .next()
            .is_some_and(secrets::is_section);
        let is_harmless = matches!(entry.node.value, Value::Scalar(_))
            && near.is_some_and(|near| !is_secret_name(near) && !is_secret_name(&entry.key));
        if in_secrets || !is_harmless {
            secrets::hide_value(&entry.node, self.walk.report);
        }
        if is_told {
            let is_hidden = in_secrets && entry.node.is_null() && near.is_none();
            strays.push(Stray {
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
            self.walk
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

impl Place<'_> {
    fn name_of_map(&self) -> String {
        if self.path.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{}`", self.path)
        }
    }
}

/// `routes[3].path` as `routes[].path`.
fn pattern(path: &str) -> String {
    path.chars().filter(|char| !char.is_ascii_digit()).collect()
}
