//! YAML as a tree that keeps its positions; every fault of the form is reported, nothing is interpreted yet.

use std::collections::HashMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Span};

use super::problem::{Mark, Report};

/// One value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) at: Mark,
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
/// 8 MiB of values that aliases repeat; the file's own are bounded by the file.
const BYTES_MAX: usize = 8 << 20;

/// The tree of a text, or nothing when it has none that can be read; the report says why.
pub(super) fn read(report: &Report<'_>) -> Option<Node> {
    let mut builder = Builder { report, open: Vec::new(), anchors: HashMap::new(), bytes: 0, root: None };
    // Event by event and not `Parser::load`, whose recursion is bounded by nothing.
    let mut parser = Parser::new_from_str(report.text());
    while let Some(event) = parser.next_event() {
        match event {
            Ok((event, span)) => builder.take(event, span).ok()?,
            Err(error) => {
                builder.broken(&error);
                return None;
            }
        }
    }
    let root = builder.root.filter(|root| !root.is_null());
    if root.is_none() {
        let hint = "`routes` is needed at least; begin with a copy of the reference file, sidecar.yaml";
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
    anchor: usize,
    value: Value,
    /// In a map, the key whose value comes next. `None` in it: a key that is no text, its value is dropped.
    key: Option<(Option<String>, Mark)>,
}

struct Builder<'r, 't> {
    report: &'r Report<'t>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    bytes: usize,
    root: Option<Node>,
}

impl Builder<'_, '_> {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Stop> {
        let at = mark(span.start, span.end);
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                self.stop(at, "the file has a second document", "a configuration is one document: remove the `---`")
            }
            Event::DocumentStart(_) => Ok(()),
            Event::SequenceStart(anchor, tag) => {
                self.refuse_tag(at, tag.is_some());
                self.begin(at, anchor, Value::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_tag(at, tag.is_some());
                self.begin(at, anchor, Value::Map(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { at, anchor, value, .. }) => self.insert(Node { at, value }, anchor),
                None => Ok(()),
            },
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(at, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                // The end of the whole file is not a place to point at.
                let empty = plain && text.is_empty();
                let at = if empty { self.key_mark().unwrap_or(at) } else { at };
                self.insert(
                    Node { at, value: Value::Scalar(Scalar { text: text.into_owned(), plain, filled: false }) },
                    anchor,
                )
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some((node, size)) => {
                    // Before the copy is made.
                    if self.bytes + size > BYTES_MAX {
                        return self.stop(at, "the aliases make the file too large", "write the values out");
                    }
                    self.bytes += size;
                    let node = node.clone();
                    self.insert(node, 0)
                }
                None => self.stop(at, "an alias stands inside of what it repeats", "write the values out"),
            },
        }
    }

    fn key_mark(&self) -> Option<Mark> {
        self.open.last().and_then(|open| open.key.as_ref()).map(|(_, at)| *at)
    }

    fn refuse_tag(&self, at: Mark, tagged: bool) {
        if tagged {
            self.report.add(at, "a YAML tag has no meaning here", Some("remove the `!...`".into()));
        }
    }

    fn stop(&self, at: Mark, message: &str, hint: &str) -> Result<(), Stop> {
        self.report.add(at, message, Some(hint.into()));
        Err(Stop)
    }

    /// Says why a text is no YAML.
    fn broken(&self, error: &ScanError) {
        let mut tabs = false;
        for (index, line) in self.report.text().lines().enumerate() {
            let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
            if let (Some(column), true) = (line[..indent].find('\t'), indent < line.len()) {
                tabs = true;
                let at = Mark { line: index + 1, column: column + 1, width: 1 };
                self.report.add(
                    at,
                    "a tab stands in the indentation",
                    Some("YAML is indented with spaces only".into()),
                );
            }
        }
        // A tab makes the parser complain about what comes after it: that is no fault of its own.
        if !tabs {
            let at = mark(*error.marker(), *error.marker());
            let hint = self
                .unclosed()
                .unwrap_or_else(|| "a text that begins with a sign, or holds `: ` or ` #`, needs quotes".into());
            self.report.add(at, format!("this is no YAML: {}", error.info()), Some(hint));
        }
    }

    /// The bracket that is still open: the fault is often there, and seen only lines later.
    fn unclosed(&self) -> Option<String> {
        let Open { at, .. } = self.open.last()?;
        let line = self.report.text().lines().nth(at.line.checked_sub(1)?)?;
        let bracket = line.chars().nth(at.column - 1).filter(|char| matches!(char, '{' | '['))?;
        Some(format!(
            "`{bracket}` in line {}, column {} is still open; inside of it a text with braces or commas needs quotes",
            at.line, at.column
        ))
    }

    fn begin(&mut self, at: Mark, anchor: usize, value: Value) -> Result<(), Stop> {
        if self.open.len() == DEPTH_MAX {
            return self.stop(
                at,
                "the values are nested too deeply",
                "no key of the configuration needs a tenth of this",
            );
        }
        self.open.push(Open { at, anchor, value, key: None });
        Ok(())
    }

    fn insert(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        if anchor > 0 {
            self.anchors.insert(anchor, (node.clone(), size(&node)));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.value, parent.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(_), None) => parent.key = Some(key(self.report, node)),
            (Value::Map(entries), Some((Some(key), at))) => match entries.iter().find(|entry| entry.key == key) {
                Some(first) => {
                    let hint = format!("it stands in line {} already; remove one of them", first.at.line);
                    self.report.add(at, format!("`{key}` stands here twice"), Some(hint));
                }
                None if entries.len() == KEYS_MAX => {
                    return self.stop(at, "a map has too many keys", "no map of the configuration has a tenth of them");
                }
                None => entries.push(Entry { key, at, node }),
            },
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

/// What a copy of the value costs in bytes.
fn size(node: &Node) -> usize {
    size_of::<Entry>()
        + match &node.value {
            Value::Scalar(scalar) => scalar.text.len(),
            Value::List(items) => items.iter().map(size).sum(),
            Value::Map(entries) => entries.iter().map(|entry| entry.key.len() + size(&entry.node)).sum(),
        }
}

fn mark(start: Marker, end: Marker) -> Mark {
    let width = if end.line() == start.line() { end.col().saturating_sub(start.col()) } else { 1 };
    Mark { line: start.line(), column: start.col() + 1, width: width.max(1) }
}
