//! Indents continuation lines of quoted scalars and flow collections for which kubectl needs less
//! indentation.
//!
//! go-yaml, like libyaml, ignores the indentation of these lines. The YAML specification and our
//! parser require more than the column of the key. Leading white space of these lines has no
//! meaning, so more of it changes no value. `tree::read` uses this only for a document that cannot
//! be parsed as it is, so a mistake here breaks no document that is valid.

/// 256 columns: four for each level of the deepest document.
const COLUMNS_MAX: usize = 256;

/// Returns the text with indented continuation lines, or `None` if none of them needs it.
pub(super) fn deepened(text: &str) -> Option<String> {
    let mut lines = Lines {
        inside: Inside::Block,
        plain: None,
    };
    let mut out = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let missing = lines.missing(line);
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(line);
        lines.scan(line);
    }
    (out.len() > text.len()).then_some(out)
}

/// Context at the beginning of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inside {
    /// No scalar or collection of an earlier line.
    Block,
    /// Quoted scalar in a flow collection of this depth.
    Quoted {
        quote: char,
        flow: usize,
        column: usize,
    },
    /// Flow collection of this depth.
    Flow { depth: usize, column: usize },
    /// Block scalar: every line that is indented deeper than its parent.
    Literal { parent: isize },
}

struct Lines {
    inside: Inside,
    /// Indentation of the parent if the last line ended in a plain scalar, which a deeper line
    /// continues.
    plain: Option<isize>,
}

/// Position of the scan in a line.
struct Cursor<'t> {
    chars: std::iter::Peekable<std::str::CharIndices<'t>>,
    /// True if a value may begin here.
    fresh: bool,
    /// True after a quoted scalar or a flow collection: it is complete, and a colon after it needs
    /// no space within a flow collection.
    closed: bool,
    /// True after white space and at the beginning of the line.
    blank: bool,
    /// Column of the last key or dash, or -1: a value on this line must be deeper.
    parent: isize,
    /// Column of the last word.
    word: isize,
}

impl Lines {
    /// Number of columns by which a line must be indented.
    fn missing(&self, line: &str) -> usize {
        let column = match self.inside {
            Inside::Quoted { column, .. } | Inside::Flow { column, .. } => column,
            Inside::Block | Inside::Literal { .. } => return 0,
        };
        let indent = indent(line);
        if is_blank(line) {
            0
        } else {
            column.min(COLUMNS_MAX).saturating_sub(indent)
        }
    }

    /// Scans one line, and keeps the context of the next one.
    fn scan(&mut self, line: &str) {
        let depth = isize::try_from(indent(line)).unwrap_or(isize::MAX);
        match self.inside {
            Inside::Literal { parent } if is_blank(line) || depth > parent => return,
            Inside::Literal { .. } => self.inside = Inside::Block,
            Inside::Block if is_blank(line) || self.plain.is_some_and(|parent| depth > parent) => {
                return;
            }
            _ => {}
        }
        // A directive, or the first line of the document, whose dashes are not a list.
        let skipped = match self.inside {
            Inside::Block if line.starts_with('%') => return,
            Inside::Block if line.starts_with("---") => 3,
            _ => 0,
        };
        self.plain = None;
        let mut cursor = Cursor {
            chars: line.char_indices().peekable(),
            fresh: true,
            closed: false,
            blank: true,
            parent: -1,
            word: 0,
        };
        cursor.chars.by_ref().take(skipped).for_each(drop);
        while let Some((at, char)) = cursor.chars.next() {
            if char == '#' && cursor.blank && !matches!(self.inside, Inside::Quoted { .. }) {
                break;
            }
            let column = isize::try_from(at).unwrap_or(isize::MAX);
            self.inside = match self.inside {
                Inside::Quoted {
                    quote,
                    flow,
                    column,
                } => cursor.in_quotes(char, quote, flow, column),
                Inside::Flow { depth, column } => cursor.in_flow(char, depth, column),
                _ => cursor.in_block(char, column),
            };
            cursor.blank = char.is_whitespace();
            if matches!(self.inside, Inside::Literal { .. }) {
                return;
            }
        }
        if self.inside == Inside::Block && !cursor.fresh && !cursor.closed {
            self.plain = Some(cursor.parent);
        }
    }
}

impl Cursor<'_> {
    fn in_quotes(&mut self, char: char, quote: char, flow: usize, column: usize) -> Inside {
        let stay = Inside::Quoted {
            quote,
            flow,
            column,
        };
        match char {
            '\\' if quote == '"' => drop(self.chars.next()),
            '\'' if quote == '\'' && self.chars.next_if(|(_, next)| *next == '\'').is_some() => {}
            _ if char == quote => {
                (self.fresh, self.closed) = (false, true);
                return if flow > 0 {
                    Inside::Flow {
                        depth: flow,
                        column,
                    }
                } else {
                    Inside::Block
                };
            }
            _ => {}
        }
        stay
    }

    fn in_flow(&mut self, char: char, depth: usize, column: usize) -> Inside {
        let was_closed = std::mem::replace(&mut self.closed, false);
        match char {
            '[' | '{' => {
                self.fresh = true;
                return Inside::Flow {
                    depth: depth + 1,
                    column,
                };
            }
            ']' | '}' => {
                (self.fresh, self.closed) = (false, true);
                return if depth > 1 {
                    Inside::Flow {
                        depth: depth - 1,
                        column,
                    }
                } else {
                    Inside::Block
                };
            }
            ',' => self.fresh = true,
            ':' if was_closed || self.ends_word() => self.fresh = true,
            '"' | '\'' if self.fresh => {
                return Inside::Quoted {
                    quote: char,
                    flow: depth,
                    column,
                };
            }
            '&' | '!' if self.fresh => self.skip_word(),
            char if char.is_whitespace() => self.closed = was_closed,
            _ => self.fresh = false,
        }
        Inside::Flow { depth, column }
    }

    fn in_block(&mut self, char: char, column: isize) -> Inside {
        // Deeper than its key or dash.
        let needed = usize::try_from(self.parent + 1).unwrap_or(0);
        match char {
            '-' | '?' if self.fresh && self.ends_word() => self.parent = column,
            ':' if self.ends_word() => (self.fresh, self.parent) = (true, self.word),
            char if char.is_whitespace() => {}
            '&' | '!' if self.fresh => {
                self.word = column;
                self.skip_word();
            }
            '"' | '\'' if self.fresh => {
                self.word = column;
                return Inside::Quoted {
                    quote: char,
                    flow: 0,
                    column: needed,
                };
            }
            '[' | '{' if self.fresh => {
                self.word = column;
                return Inside::Flow {
                    depth: 1,
                    column: needed,
                };
            }
            '|' | '>' if self.fresh => {
                return Inside::Literal {
                    parent: self.parent,
                };
            }
            _ => {
                if self.fresh {
                    self.word = column;
                }
                (self.fresh, self.closed) = (false, false);
            }
        }
        Inside::Block
    }

    /// Returns whether white space or the end of the line follows.
    fn ends_word(&mut self) -> bool {
        self.chars
            .peek()
            .is_none_or(|(_, next)| next.is_whitespace())
    }

    /// Skips an anchor or a tag.
    fn skip_word(&mut self) {
        while self
            .chars
            .next_if(|(_, next)| !next.is_whitespace() && !matches!(next, ',' | ']' | '}'))
            .is_some()
        {}
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_blank(line: &str) -> bool {
    line.trim().is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuation_lines_get_the_indentation_that_the_parser_requires() {
        let same = |text: &str| assert_eq!(deepened(text), None, "{text}");
        let becomes = |text: &str, wanted: &str| {
            assert_eq!(deepened(text).as_deref(), Some(wanted), "{text}")
        };
        becomes("  x: '[\n  ]'\n", "  x: '[\n   ]'\n");
        becomes(
            "  x: \"a\\\"\n\n]\"\n  y: 1\n",
            "  x: \"a\\\"\n\n   ]\"\n  y: 1\n",
        );
        becomes(
            "a:\n- {b: c, # '\nd: \"}\"\n}\ne: f\n",
            "a:\n- {b: c, # '\n d: \"}\"\n }\ne: f\n",
        );
        becomes(
            "- - k: [it's, 'it''s\n']\n",
            "- - k: [it's, 'it''s\n     ']\n",
        );
        becomes("k: &a !t {\n}\n", "k: &a !t {\n }\n");
        becomes("k: {\"a\":'\n'}\n", "k: {\"a\":'\n '}\n");
        // Deep enough, or not a continuation.
        becomes(
            "  a: '\n  b'\n  c: 'd\n'\n",
            "  a: '\n   b'\n  c: 'd\n   '\n",
        );
        becomes(
            "  a: [\n  b]\n  c: 'd\n'\n",
            "  a: [\n   b]\n  c: 'd\n   '\n",
        );
        same("{\"a\": [\n1\n]}\n");
        same("--- {a:\n1}\n");
        same("a: it's\nb: don't\n");
        same("a: b\n  'c\nd: e\n");
        same("a: |\n  'b\n  [\nc: d\n");
        same("- >-\n 'b\n- [c]\n");
        same("a: b # [\nc: 'd' # '\ne: f\n");
        same("a: b:[\nc: d#'\ne: http://['\nf: g\n");
        same("%TAG ! '\n---\na: 1\n");
    }
}
