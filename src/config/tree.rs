//! YAML as a tree of nodes that keep their locations.
//!
//! Values stay texts: the key decides later whether `0123` is a number or a password. Errors of the
//! form are reported: duplicate keys, tags, a second document, tabs in the indentation. The events
//! of `saphyr-parser` are read one by one, because its own tree builder has no bound on depth.
//! Depth, keys of a map, number of values and the bytes that aliases repeat are bounded, so an
//! alias bomb is an error and not a memory problem.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::location::{Location, TextRange};
use super::mask::{self, Hidden};
use super::problem::Report;

/// One value with its location.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Location,
    /// Range of the whole value, which may have several lines.
    pub(super) range: TextRange,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// Text as it was written. Its key decides what it means (a number, null, a duration): a password
/// `0123` or `true` stays as it is.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Without quotes.
    pub(super) plain: bool,
    /// Part of it came from the environment and must not be shown.
    pub(super) filled: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Location,
    pub(super) node: Node,
}

impl Scalar {
    /// Returns whether it is null: unquoted, or filled from a variable that is empty.
    pub(super) fn is_null(&self) -> bool {
        let null = matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL");
        null && (self.plain || (self.filled && self.text.is_empty()))
    }
}

impl Node {
    /// Returns the value as JSON. An unquoted scalar that is JSON is that value, as in YAML 1.2.
    pub(super) fn to_json(&self) -> serde_json::Value {
        match &self.value {
            Value::Scalar(scalar) if scalar.is_null() => serde_json::Value::Null,
            Value::Scalar(scalar) => {
                let plain = scalar
                    .plain
                    .then(|| serde_json::from_str(&scalar.text).ok());
                plain
                    .flatten()
                    .unwrap_or_else(|| scalar.text.clone().into())
            }
            Value::List(items) => items.iter().map(Self::to_json).collect(),
            Value::Map(entries) => {
                let entries = entries.iter();
                let entries = entries.map(|entry| (entry.key.clone(), entry.node.to_json()));
                serde_json::Value::Object(entries.collect())
            }
        }
    }

    /// Removes all keys of a map but these.
    pub(super) fn retain(&mut self, keys: &[&str]) {
        if let Value::Map(entries) = &mut self.value {
            entries.retain(|entry| keys.contains(&&*entry.key));
        }
    }

    /// Returns the value of a key of a map.
    pub(super) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Value::Map(entries) = &mut self.value else {
            return None;
        };
        let entry = entries.iter_mut().find(|entry| entry.key == key)?;
        Some(&mut entry.node)
    }
}

/// 32: four times the depth of the deepest key. Bounds every recursion over the tree.
const DEPTH_MAX: usize = 32;
/// 256 keys: ten times the largest map. The search for duplicate keys is linear.
const KEYS_MAX: usize = 256;
/// 8 MiB of values that aliases repeat, and 8 MiB of values with an anchor. Other values are
/// bounded by the size of the file.
const BYTES_MAX: usize = 8 << 20;
/// 100,000 values: twice as many as 1000 routes with every key have. Each takes 400 bytes while the
/// file is read.
const VALUES_MAX: usize = 100_000;

const TOO_DEEP: &str = "the values are nested too deeply";
const TOO_DEEP_HINT: &str = "no key of the configuration is nested as deeply";

/// Returns the tree of a text, or nothing if the text is empty or cannot be parsed; the report has
/// the reason.
pub(super) fn read(report: &Report<'_>) -> Option<Node> {
    let (open, anchors) = (Vec::new(), HashMap::new());
    let mut builder = Builder {
        report,
        open,
        anchors,
        bytes: 0,
        anchored_bytes: 0,
        values: 0,
        root: None,
    };
    // Not `Parser::load`: its recursion has no bound.
    let mut parser = Parser::new_from_str(report.text());
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => {
                if builder.take(event, span).is_err() {
                    report.mark_broken();
                    return None;
                }
            }
            Err(error) => {
                builder.report_syntax_error(&error);
                report.mark_broken();
                return None;
            }
        }
    }
    let root = builder.root.filter(|root| !root.is_null());
    if root.is_none() {
        let hint = "`routes` is required; start with a copy of the reference file, sidecar.yaml";
        report.error(Location::default(), "the file is empty", Some(hint.into()));
    }
    root
}

impl Node {
    /// Returns whether it is null.
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }
}

/// Signal to stop reading: later errors would be consequences of the first.
struct Stop;

/// List or map that is not closed yet.
struct Open {
    at: Location,
    from: Marker,
    anchor: usize,
    value: Value,
    /// In a map, the key whose value comes next. The key is `None` if it is not a text; its value
    /// is dropped.
    key: Option<(Option<String>, Location)>,
}

/// Value that aliases may repeat.
struct Anchored {
    node: Node,
    size: Size,
}

/// Cost of a copy of a value.
#[derive(Clone, Copy, Default)]
struct Size {
    bytes: usize,
    values: usize,
}

struct Builder<'r, 't> {
    report: &'r Report<'t>,
    open: Vec<Open>,
    anchors: HashMap<usize, Anchored>,
    bytes: usize,
    anchored_bytes: usize,
    values: usize,
    root: Option<Node>,
}

impl Builder<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        let at = location(span.start, span.end);
        if matches!(
            event,
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..)
        ) {
            self.count(at, 1)?;
        }
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => self.stop(
                at,
                "the file has a second document",
                "a configuration is one document: remove the `---`",
            ),
            Event::DocumentStart(_) => Ok(()),
            Event::SequenceStart(anchor, tag) => {
                self.reject_tag(at, tag.is_some());
                self.begin(at, span.start, anchor, Value::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.reject_tag(at, tag.is_some());
                self.begin(at, span.start, anchor, Value::Map(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open {
                    at,
                    from,
                    anchor,
                    value,
                    ..
                }) => self.insert(
                    Node {
                        at,
                        range: text_range(from, span.end),
                        value,
                    },
                    anchor,
                ),
                None => Ok(()),
            },
            Event::Scalar(text, style, anchor, tag) => {
                self.reject_tag(at, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                // The location of an empty value may be the end of the file: use the location of
                // its key.
                let empty = plain && text.is_empty();
                let at = if empty {
                    self.key_mark().unwrap_or(at)
                } else {
                    at
                };
                let value = Value::Scalar(Scalar {
                    text: text.into_owned(),
                    plain,
                    filled: false,
                });
                self.insert(
                    Node {
                        at,
                        range: text_range(span.start, span.end),
                        value,
                    },
                    anchor,
                )
            }
            Event::Alias(anchor) => {
                let Some(size) = self.anchors.get(&anchor).map(|anchored| anchored.size) else {
                    return self.stop(
                        at,
                        "an alias is inside of the value that it repeats",
                        "write the values without aliases",
                    );
                };
                // Counted before the copy is made.
                self.bytes += size.bytes;
                if self.bytes > BYTES_MAX {
                    return self.stop(
                        at,
                        "the aliases make the file too large",
                        "write the values without aliases",
                    );
                }
                self.count(at, size.values)?;
                let node = self
                    .anchors
                    .get(&anchor)
                    .map(|anchored| anchored.node.clone());
                node.map_or(Ok(()), |node| self.insert(node, 0))
            }
        }
    }

    /// Counts values, and stops at the bound.
    fn count(&mut self, at: Location, values: usize) -> Result<(), Stop> {
        self.values += values;
        if self.values > VALUES_MAX {
            return self.stop(
                at,
                &format!("the file has more than {VALUES_MAX} values"),
                "configure fewer routes per pod",
            );
        }
        Ok(())
    }

    fn key_mark(&self) -> Option<Location> {
        self.open
            .last()
            .and_then(|open| open.key.as_ref())
            .map(|(_, at)| *at)
    }

    fn reject_tag(&self, at: Location, tagged: bool) {
        if tagged {
            self.report.error(
                at,
                "YAML tags are not supported",
                Some("remove the `!...`".into()),
            );
        }
    }

    fn stop(&self, at: Location, message: &str, hint: &str) -> Result<(), Stop> {
        self.report.error(at, message, Some(hint.into()));
        Err(Stop)
    }

    /// Reports a syntax error of YAML.
    fn report_syntax_error(&self, error: &ScanError) {
        let mut odd_indentation = false;
        for (index, line) in self.report.text().lines().enumerate() {
            let indent = line.len() - line.trim_start_matches(is_blank).len();
            let before = line[..indent]
                .chars()
                .take_while(|char| *char == ' ')
                .count();
            let Some(char) = line[before..indent]
                .chars()
                .next()
                .filter(|_| indent < line.len())
            else {
                continue;
            };
            odd_indentation = true;
            let at = Location {
                line: index + 1,
                column: before + 1,
                width: 1,
            };
            let message = match char {
                '\t' => "tab in the indentation".to_owned(),
                char => format!(
                    "character that looks like a space in the indentation: U+{:04X}",
                    char as u32
                ),
            };
            self.report
                .error(at, message, Some("indent with spaces only".into()));
        }
        // Odd indentation makes the parser fail later: its error would be a consequence.
        if !odd_indentation {
            let at = location(*error.marker(), *error.marker());
            if error.info().contains("recursion limit") {
                return self.report.error(at, TOO_DEEP, Some(TOO_DEEP_HINT.into()));
            }
            let hint = self.unclosed().unwrap_or_else(|| {
                "a text that begins with a special character, or has `: ` or ` #`, needs quotes"
                    .into()
            });
            self.report
                .error(at, format!("invalid YAML: {}", error.info()), Some(hint));
        }
    }

    /// Returns a hint at the bracket that is still open: the parser often reports a missing one
    /// lines later.
    fn unclosed(&self) -> Option<String> {
        let Open { at, .. } = self.open.last()?;
        let line = self.report.text().lines().nth(at.line.checked_sub(1)?)?;
        let bracket = line
            .chars()
            .nth(at.column - 1)
            .filter(|char| matches!(char, '{' | '['))?;
        Some(format!(
            "`{bracket}` in line {}, column {} is not closed; inside of it a text with braces or commas needs quotes",
            at.line, at.column
        ))
    }

    fn begin(
        &mut self,
        at: Location,
        from: Marker,
        anchor: usize,
        value: Value,
    ) -> Result<(), Stop> {
        if self.open.len() == DEPTH_MAX {
            return self.stop(at, TOO_DEEP, TOO_DEEP_HINT);
        }
        self.open.push(Open {
            at,
            from,
            anchor,
            value,
            key: None,
        });
        Ok(())
    }

    fn insert(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        if anchor > 0 {
            let size = size(&node);
            self.anchored_bytes += size.bytes;
            if self.anchored_bytes > BYTES_MAX {
                return self.stop(
                    node.at,
                    "the values with anchors make the file too large",
                    "write the values without aliases",
                );
            }
            self.anchors.insert(
                anchor,
                Anchored {
                    node: node.clone(),
                    size,
                },
            );
        }
        let section = self
            .open
            .first()
            .filter(|_| self.open.len() > 1)
            .and_then(|root| root.key.as_ref());
        let in_secrets =
            section.is_some_and(|(key, _)| key.as_deref().is_some_and(mask::is_section));
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.value, parent.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(_), None) => parent.key = Some(key(self.report, node)),
            (Value::Map(entries), Some((Some(key), at))) => {
                match entries.iter().find(|entry| entry.key == key) {
                    Some(first) => {
                        let hint = format!(
                            "it is already in line {}; remove one of them",
                            first.at.line
                        );
                        // In braces, the part of a secret after a comma is a key without a value.
                        let is_hidden = in_secrets && node.is_null();
                        if is_hidden {
                            self.report.hide(at.range(), Hidden::All);
                        }
                        let key = if is_hidden {
                            "key".to_owned()
                        } else {
                            format!("key `{key}`")
                        };
                        self.report
                            .error(at, format!("duplicate {key}"), Some(hint));
                    }
                    None if entries.len() == KEYS_MAX => {
                        return self.stop(
                            at,
                            "a map has too many keys",
                            "no map of the configuration has more than a tenth of them",
                        );
                    }
                    None => entries.push(Entry { key, at, node }),
                }
            }
            (Value::Map(_), Some((None, _))) | (Value::Scalar(_), _) => {}
        }
        Ok(())
    }
}

fn key(report: &Report<'_>, node: Node) -> (Option<String>, Location) {
    match node.value {
        Value::Scalar(scalar) => (Some(scalar.text), node.at),
        Value::List(_) | Value::Map(_) => {
            let hint = "a text that begins with `{` or `[` needs quotes".to_owned();
            report.error(
                node.at,
                "a key must be a word, not a list or a map",
                Some(hint),
            );
            (None, node.at)
        }
    }
}

/// Returns the cost of a copy of the value.
fn size(node: &Node) -> Size {
    let mut size = Size {
        bytes: size_of::<Entry>(),
        values: 1,
    };
    let mut add = |name: &str, part: &Node| {
        let part = self::size(part);
        size.bytes += name.len() + part.bytes;
        size.values += part.values;
    };
    match &node.value {
        Value::Scalar(scalar) => size.bytes += scalar.text.len(),
        Value::List(items) => items.iter().for_each(|item| add("", item)),
        Value::Map(entries) => entries
            .iter()
            .for_each(|entry| add(&entry.key, &entry.node)),
    }
    size
}

/// Returns whether a character is white space or has no width.
fn is_blank(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{200b}' | '\u{feff}')
}

fn text_range(start: Marker, end: Marker) -> TextRange {
    TextRange {
        from: (start.line(), start.col()),
        until: (end.line(), end.col()),
    }
}

fn location(start: Marker, end: Marker) -> Location {
    let width = if end.line() == start.line() {
        end.col().saturating_sub(start.col())
    } else {
        1
    };
    Location {
        line: start.line(),
        column: start.col() + 1,
        width: width.max(1),
    }
}
