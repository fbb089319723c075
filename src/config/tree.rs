//! YAML as a tree that keeps its positions; every fault of the form is reported, nothing is interpreted yet.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::problem::{Mark, Report, Span as Stretch};
use super::secrets::{self, Hidden};

/// One value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
    /// All of it: a text may have several lines.
    pub(super) span: Stretch,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A text as it was written. What it means (a number, nothing, a duration) is said by the key that it stands at:
/// a password of `0123` or `true` stays what it is.
#[derive(Clone, Debug)]
pub(super) struct Scalar {
    pub(super) text: String,
    /// Without quotes.
    pub(super) plain: bool,
    /// Something in it came from the environment, and must not be shown.
    pub(super) filled: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) at: Mark,
    pub(super) node: Node,
}

impl Scalar {
    /// Whether it stands for "nothing": without quotes only, but for a variable of the environment that is empty.
    pub(super) fn is_null(&self) -> bool {
        let null = matches!(self.text.as_str(), "" | "~" | "null" | "Null" | "NULL");
        null && (self.plain || (self.filled && self.text.is_empty()))
    }
}

/// 32: four times what the deepest key needs. Bounds every recursion over the tree.
const DEPTH_MAX: usize = 32;
/// 256 keys: ten times what the largest map takes. Keys that stand twice are looked for among so many.
const KEYS_MAX: usize = 256;
/// 8 MiB of values that aliases repeat, and as many that have an anchor and are kept for them; the file's own are bounded
/// by the file.
const BYTES_MAX: usize = 8 << 20;
/// 100,000 values: 1000 routes with every key they can have take a half. Each takes 400 bytes while it is read.
const VALUES_MAX: usize = 100_000;

const TOO_DEEP: &str = "the values are nested too deeply";
const TOO_DEEP_HINT: &str = "no key of the configuration needs a tenth of this";

/// The tree of a text, or nothing when it has none that can be read; the report says why.
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
    // Event by event and not `Parser::load`, whose recursion is bounded by nothing.
    let mut parser = Parser::new_from_str(report.text());
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => {
                if builder.take(event, span).is_err() {
                    report.break_off();
                    return None;
                }
            }
            Err(error) => {
                builder.broken(&error);
                report.break_off();
                return None;
            }
        }
    }
    let root = builder.root.filter(|root| !root.is_null());
    if root.is_none() {
        let hint =
            "`routes` is needed at least; begin with a copy of the reference file, sidecar.yaml";
        report.add(Mark::default(), "the file is empty", Some(hint.into()));
    }
    root
}

impl Node {
    /// Whether it stands for "nothing".
    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(scalar) if scalar.is_null())
    }
}

/// Stop reading: what follows would make no sense.
struct Stop;

/// A collection that is not closed yet.
struct Open {
    at: Mark,
    from: Marker,
    anchor: usize,
    value: Value,
    /// In a map, the key whose value comes next. `None` in it: a key that is no text, its value is dropped.
    key: Option<(Option<String>, Mark)>,
}

/// A value that aliases may repeat.
struct Anchored {
    node: Node,
    size: Size,
}

/// What a copy of a value costs.
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
        let at = mark(span.start, span.end);
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
                self.refuse_tag(at, tag.is_some());
                self.begin(at, span.start, anchor, Value::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(at, tag.is_some());
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
                        span: stretch(from, span.end),
                        value,
                    },
                    anchor,
                ),
                None => Ok(()),
            },
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(at, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                // The end of the whole file is not a place to point at.
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
                        span: stretch(span.start, span.end),
                        value,
                    },
                    anchor,
                )
            }
            Event::Alias(anchor) => {
                let Some(size) = self.anchors.get(&anchor).map(|anchored| anchored.size) else {
                    return self.stop(
                        at,
                        "an alias stands inside of what it repeats",
                        "write the values out",
                    );
                };
                // Before the copy is made.
                self.bytes += size.bytes;
                if self.bytes > BYTES_MAX {
                    return self.stop(
                        at,
                        "the aliases make the file too large",
                        "write the values out",
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

    /// Counts values before they are kept.
    fn count(&mut self, at: Mark, values: usize) -> Result<(), Stop> {
        self.values += values;
        if self.values > VALUES_MAX {
            return self.stop(
                at,
                &format!("the file has more than {VALUES_MAX} values"),
                "serve fewer routes from one pod",
            );
        }
        Ok(())
    }

    fn key_mark(&self) -> Option<Mark> {
        self.open
            .last()
            .and_then(|open| open.key.as_ref())
            .map(|(_, at)| *at)
    }

    fn refuse_tag(&self, at: Mark, tagged: bool) {
        if tagged {
            self.report.add(
                at,
                "a YAML tag has no meaning here",
                Some("remove the `!...`".into()),
            );
        }
    }

    fn stop(&self, at: Mark, message: &str, hint: &str) -> Result<(), Stop> {
        self.report.add(at, message, Some(hint.into()));
        Err(Stop)
    }

    /// Says why a text is no YAML.
    fn broken(&self, error: &ScanError) {
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
            let at = Mark {
                line: index + 1,
                column: before + 1,
                width: 1,
            };
            let message = match char {
                '\t' => "a tab stands in the indentation".to_owned(),
                char => format!(
                    "a character that looks like a space stands in the indentation: U+{:04X}",
                    char as u32
                ),
            };
            self.report.add(
                at,
                message,
                Some("YAML is indented with spaces only".into()),
            );
        }
        // It makes the parser complain about what comes after it: that is no fault of its own.
        if !odd_indentation {
            let at = mark(*error.marker(), *error.marker());
            if error.info().contains("recursion limit") {
                return self.report.add(at, TOO_DEEP, Some(TOO_DEEP_HINT.into()));
            }
            let hint = self.unclosed().unwrap_or_else(|| {
                "a text that begins with a sign, or holds `: ` or ` #`, needs quotes".into()
            });
            self.report
                .add(at, format!("this is no YAML: {}", error.info()), Some(hint));
        }
    }

    /// The bracket that is still open: the fault is often there, and seen only lines later.
    fn unclosed(&self) -> Option<String> {
        let Open { at, .. } = self.open.last()?;
        let line = self.report.text().lines().nth(at.line.checked_sub(1)?)?;
        let bracket = line
            .chars()
            .nth(at.column - 1)
            .filter(|char| matches!(char, '{' | '['))?;
        Some(format!(
            "`{bracket}` in line {}, column {} is still open; inside of it a text with braces or commas needs quotes",
            at.line, at.column
        ))
    }

    fn begin(&mut self, at: Mark, from: Marker, anchor: usize, value: Value) -> Result<(), Stop> {
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
                    "write the values out",
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
            section.is_some_and(|(key, _)| key.as_deref().is_some_and(secrets::is_section));
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
                            "it stands in line {} already; remove one of them",
                            first.at.line
                        );
                        // In braces, the rest of a secret with a comma is a key without a value.
                        let is_hidden = in_secrets && node.is_null();
                        if is_hidden {
                            self.report.hide(at.span(), Hidden::All);
                        }
                        let key = if is_hidden {
                            "a key".to_owned()
                        } else {
                            format!("`{key}`")
                        };
                        self.report
                            .add(at, format!("{key} stands here twice"), Some(hint));
                    }
                    None if entries.len() == KEYS_MAX => {
                        return self.stop(
                            at,
                            "a map has too many keys",
                            "no map of the configuration has a tenth of them",
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

fn key(report: &Report<'_>, node: Node) -> (Option<String>, Mark) {
    match node.value {
        Value::Scalar(scalar) => (Some(scalar.text), node.at),
        Value::List(_) | Value::Map(_) => {
            let hint = "a text that begins with `{` or `[` needs quotes".to_owned();
            report.add(node.at, "a key is a word, not a list or a map", Some(hint));
            (None, node.at)
        }
    }
}

/// What a copy of the value costs.
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

/// White space of any kind, and what has no width.
fn is_blank(char: char) -> bool {
    char.is_whitespace() || matches!(char, '\u{200b}' | '\u{feff}')
}

fn stretch(start: Marker, end: Marker) -> Stretch {
    Stretch {
        from: (start.line(), start.col()),
        until: (end.line(), end.col()),
    }
}

fn mark(start: Marker, end: Marker) -> Mark {
    let width = if end.line() == start.line() {
        end.col().saturating_sub(start.col())
    } else {
        1
    };
    Mark {
        line: start.line(),
        column: start.col() + 1,
        width: width.max(1),
    }
}
