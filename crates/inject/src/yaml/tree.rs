//! One YAML document as a tree that keeps the spelling of its values.
//!
//! [`read`] builds a [`Node`] from parser events. Anchors, aliases and merge keys (`<<`) are
//! expanded as go-yaml 2 does, within [`DEPTH_MAX`], [`BYTES_MAX`] and [`ANCHORED_BYTES_MAX`],
//! because anchors of anchors multiply a small text.
//!
//! [`Node::to_json`] is the value that kubectl sends. [`Node::become_json`] turns the tree into one
//! with a wanted value, and keeps the nodes whose value is unchanged. A document with a tag or a
//! duplicate key that has no clear meaning can be copied but not changed ([`Document::fixed`]).

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use saphyr_parser::{Event, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

use super::deepen::deepened;
use super::scalar;

/// 64 levels: three times the depth of a workload. Bounds every recursion over the tree.
const DEPTH_MAX: usize = 64;

/// 8 MiB of values that aliases repeat; the other values are bounded by the size of the file.
const BYTES_MAX: usize = 8 << 20;

/// 32 MiB of values with an anchor, each of which is stored once more for its aliases.
const ANCHORED_BYTES_MAX: usize = 32 << 20;

/// One YAML value.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// Plain scalar; [`scalar::resolve`] is its value.
    Plain(String),
    /// String: a scalar with quotes, or with the tag `!!str`.
    Text(String),
    List(Vec<Self>),
    /// In the order of the file.
    Map(Vec<(Self, Self)>),
}

/// Parsed document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) root: Node,
    /// Reason for which the document can be copied but not changed.
    pub(crate) fixed: Option<Broken>,
}

/// Problem of a text.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    /// Line of the text, from 1.
    pub(crate) line: usize,
    pub(crate) message: String,
}

/// Parses the text of one document; `None` for an empty one.
///
/// # Errors
/// If the text is not YAML, nested too deeply, or too large because of its aliases.
pub(crate) fn read(text: &str) -> Result<Option<Document>, Broken> {
    parse(text).or_else(|broken| match deepened(text) {
        // It has the same lines, so its problem is a problem of the original.
        Some(deeper) => parse(&deeper),
        None => Err(broken),
    })
}

fn parse(text: &str) -> Result<Option<Document>, Broken> {
    let mut builder = Builder {
        open: Vec::new(),
        anchors: HashMap::new(),
        bytes: 0,
        anchored_bytes: 0,
        root: None,
        fixed: None,
    };
    // Event by event and not `Parser::load`, whose recursion is unbounded.
    let mut parser = Parser::new_from_str(text);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|error| Broken {
            line: error.marker().line(),
            message: format!("this is no YAML: {}", error.info()),
        })?;
        builder.take(event, span)?;
    }
    let fixed = builder.fixed;
    Ok(builder.root.map(|root| Document { root, fixed }))
}

impl Node {
    /// Value as kubectl sends it.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::Plain(text) => scalar::resolve(text),
            Self::Text(text) => Value::String(text.clone()),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => Value::Object(
                entries
                    .iter()
                    .map(|(key, node)| (key.name(), node.to_json()))
                    .collect(),
            ),
        }
    }

    /// Node for a value that was not in the input.
    fn of_json(value: &Value) -> Self {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => Self::Plain(value.to_string()),
            Value::String(text) => Self::Text(text.clone()),
            Value::Array(items) => Self::List(items.iter().map(Self::of_json).collect()),
            Value::Object(map) => Self::Map(in_order(map, |_| true)),
        }
    }

    /// Node with the wanted value, in which equal parts keep their spelling.
    pub(crate) fn become_json(self, wanted: &Value) -> Self {
        if self.to_json() == *wanted {
            return self;
        }
        match (self, wanted) {
            (Self::Map(entries), Value::Object(map)) => {
                let names: BTreeSet<String> = entries.iter().map(|(key, _)| key.name()).collect();
                let kept = entries.into_iter().filter_map(|(key, node)| {
                    let node = node.become_json(map.get(&key.name())?);
                    Some((key, node))
                });
                let mut entries: Vec<_> = kept.collect();
                entries.extend(in_order(map, |name| !names.contains(name)));
                Self::Map(entries)
            }
            (Self::List(items), Value::Array(values)) if items.len() == values.len() => Self::List(
                items
                    .into_iter()
                    .zip(values)
                    .map(|(node, value)| node.become_json(value))
                    .collect(),
            ),
            (Self::List(items), Value::Array(values)) => {
                // Equal items keep their order; the items between them were removed.
                let mut rest = items.as_slice();
                let mut kept = Vec::with_capacity(values.len());
                for value in values {
                    match rest.iter().position(|node| node.to_json() == *value) {
                        Some(at) => {
                            kept.push(rest[at].clone());
                            rest = &rest[at + 1..];
                        }
                        None => kept.push(Self::of_json(value)),
                    }
                }
                Self::List(kept)
            }
            (_, wanted) => Self::of_json(wanted),
        }
    }

    /// Name of this key in JSON.
    fn name(&self) -> String {
        match self.to_json() {
            Value::String(text) => text,
            other => other.to_string(),
        }
    }

    /// Bytes of a copy.
    fn size(&self) -> usize {
        size_of::<(Self, Self)>()
            + match self {
                Self::Plain(text) | Self::Text(text) => text.len(),
                Self::List(items) => items.iter().map(Self::size).sum(),
                Self::Map(entries) => entries
                    .iter()
                    .map(|(key, node)| key.size() + node.size())
                    .sum(),
            }
    }
}

/// Entries of a new map, `name` first.
fn in_order(map: &Map<String, Value>, wanted: impl Fn(&str) -> bool) -> Vec<(Node, Node)> {
    let entries = map.iter().filter(|(name, _)| wanted(name));
    let mut entries: Vec<_> = entries
        .map(|(name, value)| (name, Node::of_json(value)))
        .collect();
    entries.sort_by_key(|(name, _)| *name != "name");
    entries
        .into_iter()
        .map(|(name, node)| (Node::Text(name.clone()), node))
        .collect()
}

/// Collection whose end is not read yet.
struct Open {
    anchor: usize,
    node: Node,
    /// In a map, the key of the next value, and its line.
    key: Option<(Node, usize)>,
    /// Entries of a map by name; a search for each key would take quadratic time.
    entries: EntriesByName,
}

type EntriesByName = HashMap<String, MapEntry>;

/// One entry of a map.
struct MapEntry {
    index: usize,
    /// True if the map itself has the entry, and not only a map that is merged into it.
    is_own: bool,
}

struct Builder {
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    bytes: usize,
    anchored_bytes: usize,
    root: Option<Node>,
    fixed: Option<Broken>,
}

impl Builder {
    fn take(&mut self, event: Event<'_>, span: Span) -> Result<(), Broken> {
        let line = span.start.line();
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => Ok(()),
            Event::DocumentStart(_) if self.root.is_some() => {
                broken(line, "a second document begins without a line `---`")
            }
            Event::DocumentStart(_) => Ok(()),
            Event::SequenceStart(anchor, tag) => {
                self.check_tag(line, tag.as_deref(), "seq");
                self.begin(line, anchor, Node::List(Vec::new()))
            }
            Event::MappingStart(anchor, tag) => {
                self.check_tag(line, tag.as_deref(), "map");
                self.begin(line, anchor, Node::Map(Vec::new()))
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open { anchor, node, .. }) => self.insert(line, node, anchor),
                None => Ok(()),
            },
            Event::Scalar(text, style, anchor, tag) => {
                let node = self.scalar(line, text.into_owned(), style, tag.as_deref());
                self.insert(line, node, anchor)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor) else {
                    return broken(line, "an alias refers to a value that contains it");
                };
                // Checked before the copy.
                if self.bytes + size > BYTES_MAX {
                    return broken(line, "the aliases make the document too large");
                }
                self.bytes += size;
                let node = node.clone();
                self.insert(line, node, 0)
            }
        }
    }

    /// Marks the document as one that cannot be changed; the first reason counts.
    fn fix(&mut self, line: usize, message: String) {
        self.fixed.get_or_insert(Broken { line, message });
    }

    fn check_tag(&mut self, line: usize, tag: Option<&Tag>, own: &str) {
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == own)
        {
            self.fix(
                line,
                format!("the tag `{tag}` has no meaning in a manifest"),
            );
        }
    }

    fn scalar(&mut self, line: usize, text: String, style: ScalarStyle, tag: Option<&Tag>) -> Node {
        let Some(tag) = tag else {
            return if style == ScalarStyle::Plain && !text.contains('\n') {
                Node::Plain(text)
            } else {
                Node::Text(text)
            };
        };
        if !tag.is_yaml_core_schema() {
            self.fix(
                line,
                format!("the tag `{tag}` has no meaning in a manifest"),
            );
            return Node::Text(text);
        }
        let value = scalar::resolve(&text);
        match (&*tag.suffix, &value) {
            ("str", _) => Node::Text(text),
            ("binary", _) => {
                let packed: String = text.split_whitespace().collect();
                match STANDARD.decode(packed).map(String::from_utf8) {
                    Ok(Ok(decoded)) => Node::Text(decoded),
                    _ => {
                        self.fix(
                            line,
                            "a value with the tag `!!binary` is no text in base64".into(),
                        );
                        Node::Text(text)
                    }
                }
            }
            ("int" | "float", Value::Number(_))
            | ("bool", Value::Bool(_))
            | ("null", Value::Null) => Node::Plain(text),
            _ => {
                self.fix(line, format!("a value does not fit its tag `{tag}`"));
                Node::Text(text)
            }
        }
    }

    fn begin(&mut self, line: usize, anchor: usize, node: Node) -> Result<(), Broken> {
        if self.open.len() == DEPTH_MAX {
            return broken(line, "the values are nested too deeply");
        }
        self.open.push(Open {
            anchor,
            node,
            key: None,
            entries: EntriesByName::new(),
        });
        Ok(())
    }

    fn insert(&mut self, line: usize, node: Node, anchor: usize) -> Result<(), Broken> {
        if anchor > 0 {
            let size = node.size();
            self.anchored_bytes += size;
            if self.anchored_bytes > ANCHORED_BYTES_MAX {
                return broken(line, "the values with anchors make the document too large");
            }
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match (&mut parent.node, parent.key.take()) {
            (Node::List(items), _) => items.push(node),
            (Node::Map(_), None) => {
                if matches!(node, Node::List(_) | Node::Map(_)) {
                    return broken(line, "a key is a word, not a list or a map");
                }
                parent.key = Some((node, line));
            }
            (Node::Map(entries), Some((Node::Plain(key), line))) if key == "<<" => {
                if !merge(entries, &mut parent.entries, node) {
                    return broken(line, "`<<` takes a map, or a list of maps");
                }
            }
            (Node::Map(entries), Some((key, line))) => {
                if let Some(MapEntry { is_own: true, .. }) = parent.entries.get(&key.name()) {
                    self.fix(line, format!("one map has the key `{}` twice", key.name()));
                } else {
                    set(entries, &mut parent.entries, key, node, true);
                }
            }
            (Node::Plain(_) | Node::Text(_), _) => {}
        }
        Ok(())
    }
}

fn broken(line: usize, message: &str) -> Result<(), Broken> {
    Err(Broken {
        line,
        message: message.into(),
    })
}

/// Merges a map as go-yaml 2 does: at its position, over the entries before it; of several maps the
/// first wins.
fn merge(entries: &mut Vec<(Node, Node)>, by_name: &mut EntriesByName, node: Node) -> bool {
    match node {
        Node::Map(merged) => {
            merged
                .into_iter()
                .for_each(|(key, node)| set(entries, by_name, key, node, false));
            true
        }
        Node::List(maps) => maps
            .into_iter()
            .rev()
            .all(|map| matches!(map, Node::Map(_)) && merge(entries, by_name, map)),
        Node::Plain(_) | Node::Text(_) => false,
    }
}

fn set(
    entries: &mut Vec<(Node, Node)>,
    by_name: &mut EntriesByName,
    key: Node,
    node: Node,
    is_own: bool,
) {
    match by_name.entry(key.name()) {
        Entry::Occupied(mut entry) => {
            let entry = entry.get_mut();
            entry.is_own |= is_own;
            entries[entry.index] = (key, node);
        }
        Entry::Vacant(entry) => {
            entry.insert(MapEntry {
                index: entries.len(),
                is_own,
            });
            entries.push((key, node));
        }
    }
}
