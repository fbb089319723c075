//! Writes a tree as YAML in block style, as kubectl does.
//!
//! Plain scalars of the input are copied. Other strings have no quotes only if every YAML reads
//! them as strings (`scalar::is_plainly_a_text`). Strings of several lines become literal blocks
//! where that is lossless, else double quoted. `manifest` parses every result again and compares.

use std::fmt::Write as _;

use super::scalar::is_plainly_a_text;
use super::tree::Node;

/// Text of the document, without `---`.
pub(crate) fn emit(root: &Node) -> String {
    let mut out = String::new();
    match root {
        Node::Map(entries) if !entries.is_empty() => map(entries, 0, &mut out),
        Node::List(items) if !items.is_empty() => list(items, 0, &mut out),
        other => inline(other, 0, &mut out),
    }
    out
}

/// Writes the entries of a map; the output ends at the position of the first key.
fn map(entries: &[(Node, Node)], indent: usize, out: &mut String) {
    for (index, (key, node)) in entries.iter().enumerate() {
        pad(index, indent, out);
        match key {
            // A line that begins with `---` would end the document for kubectl.
            Node::Plain(text) if !text.is_empty() && !text.starts_with("---") => out.push_str(text),
            Node::Plain(text) | Node::Text(text) if is_plainly_a_text(text) => out.push_str(text),
            Node::Plain(text) | Node::Text(text) => quoted(text, out),
            Node::List(_) | Node::Map(_) => {}
        }
        out.push(':');
        match node {
            Node::Map(entries) if !entries.is_empty() => {
                out.push('\n');
                pad(1, indent + 2, out);
                map(entries, indent + 2, out);
            }
            // As kubectl: the dashes are in the column of the key.
            Node::List(items) if !items.is_empty() => {
                out.push('\n');
                pad(1, indent, out);
                list(items, indent, out);
            }
            other => {
                out.push(' ');
                inline(other, indent, out);
            }
        }
    }
}

/// Writes the items of a list; the output ends at the position of the first dash.
fn list(items: &[Node], indent: usize, out: &mut String) {
    for (index, item) in items.iter().enumerate() {
        pad(index, indent, out);
        out.push_str("- ");
        match item {
            Node::Map(entries) if !entries.is_empty() => map(entries, indent + 2, out),
            Node::List(items) if !items.is_empty() => list(items, indent + 2, out),
            other => inline(other, indent, out),
        }
    }
}

/// Indents every line but the first, whose indentation is written already.
fn pad(index: usize, indent: usize, out: &mut String) {
    if index > 0 {
        out.extend(std::iter::repeat_n(' ', indent));
    }
}

/// Writes the rest of the line of a key or a dash.
fn inline(node: &Node, indent: usize, out: &mut String) {
    match node {
        Node::Plain(text) if text.is_empty() => out.push_str("null"),
        Node::Plain(text) => out.push_str(text),
        Node::Text(text) if is_plainly_a_text(text) => out.push_str(text),
        Node::Text(text) if can_be_literal(text) => return literal(text, indent, out),
        Node::Text(text) => quoted(text, out),
        Node::List(_) => out.push_str("[]"),
        Node::Map(_) => out.push_str("{}"),
    }
    out.push('\n');
}

/// Returns whether a literal block represents a text exactly.
fn can_be_literal(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\t', '\n'])
        && text.chars().all(|char| char == '\n' || is_printable(char))
        && !text.contains("\n\t")
        && text.trim_end_matches('\n').len() < text.len().max(1)
        && !text.trim_end_matches('\n').is_empty()
}

fn literal(text: &str, indent: usize, out: &mut String) {
    let body = text.trim_end_matches('\n');
    out.push_str(if text.len() - body.len() == 1 {
        "|\n"
    } else {
        "|+\n"
    });
    for line in text[..text.len() - 1].split('\n') {
        if !line.is_empty() {
            pad(1, indent + 2, out);
            out.push_str(line);
        }
        out.push('\n');
    }
}

/// Writes a text in double quotes and escapes characters that are not printable (YAML 1.1, sections
/// 4.1.1 and 4.1.4).
fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for char in text.chars() {
        // Writing to a string cannot fail.
        let _written = match char {
            '"' => write!(out, "\\\""),
            '\\' => write!(out, "\\\\"),
            '\n' => write!(out, "\\n"),
            '\t' => write!(out, "\\t"),
            '\r' => write!(out, "\\r"),
            char if is_printable(char) => write!(out, "{char}"),
            char if (char as u32) < 0x100 => write!(out, "\\x{:02x}", char as u32),
            char if (char as u32) < 0x1_0000 => write!(out, "\\u{:04x}", char as u32),
            char => write!(out, "\\U{:08x}", char as u32),
        };
    }
    out.push('"');
}

fn is_printable(char: char) -> bool {
    // U+0085, U+2028 and U+2029 end a line in YAML 1.1; U+FEFF may be read as a byte order mark.
    matches!(char, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
}
