//! Nesting: no function has blocks more than five deep.

use std::collections::BTreeMap;

use super::tokens::{Token, tokens};
use super::{assert_tidy, without_tests};

/// Blocks inside one another below the body of a function.
const DEPTH_MAX: usize = 5;

/// Functions that are deeper today, as `path: name`. The list may only become shorter.
const DEEPER: [&str; 2] = [
    "benches/load/client/fleet.rs: open",
    "src/admin/control.rs: serve",
];

#[test]
fn blocks_are_at_most_five_deep() {
    let mut found = Vec::new();
    assert_tidy(&["src", "crates", "tests", "benches"], |path, source| {
        let mut wrong = Vec::new();
        for function in deep_functions(without_tests(source)) {
            let name = format!("{}: {}", path.display(), function.name);
            if !DEEPER.contains(&name.as_str()) {
                wrong.push(format!(
                    "line {}: `{}` nests {} blocks, more than {DEPTH_MAX}: return early, or name a part",
                    function.line, function.name, function.depth
                ));
            }
            found.push(name);
        }
        wrong
    });
    for name in DEEPER {
        assert!(
            found.iter().any(|found| found == name),
            "{name} is no longer too deep; remove it from DEEPER in tests/tidy/nesting.rs"
        );
    }
}

/// Function with more than [`DEPTH_MAX`] blocks in one another.
#[derive(Debug)]
struct Function {
    name: String,
    line: usize,
    depth: usize,
}

/// Meaning of a pair of braces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Braces {
    /// Body of a function: its depth is 0.
    Body,
    /// Block, body of a loop or closure, arms of a `match`: one level.
    Block,
    /// Fields of a struct or pattern, group of imports, object in `json!`: no level.
    Fields,
}

/// Functions whose bodies are open, the innermost last, each with its present depth.
#[derive(Default)]
struct Scan {
    open: Vec<(usize, Braces)>,
    /// Meaning of the closed braces, and where they opened, by the token that closed them.
    closed: BTreeMap<usize, (usize, Braces)>,
    functions: Vec<(Function, usize)>,
    /// A definition whose body has not begun, and the open parentheses and brackets outside it.
    defined: Option<(Function, usize)>,
    groups: usize,
}

fn deep_functions(source: &str) -> Vec<Function> {
    let tokens = tokens(source);
    let mut scan = Scan::default();
    let mut deep = Vec::new();
    for at in 0..tokens.len() {
        match tokens[at].text.as_str() {
            "fn" => scan.define(&tokens, at),
            "(" | "[" => scan.groups += 1,
            ")" | "]" => scan.groups = scan.groups.saturating_sub(1),
            ";" if scan.is_at_definition() => scan.defined = None,
            "{" => scan.open(&tokens, at),
            "}" => deep.extend(scan.close(at)),
            _ => {}
        }
    }
    deep
}

// === impl Scan ===

impl Scan {
    fn define(&mut self, tokens: &[Token], at: usize) {
        let Some(name) = tokens.get(at + 1).filter(|token| token.text != "(") else {
            return; // the type of a function
        };
        let function = Function {
            name: name.text.clone(),
            line: name.line,
            depth: 0,
        };
        self.defined = Some((function, self.groups));
    }

    fn is_at_definition(&self) -> bool {
        let groups = self.groups;
        self.defined
            .as_ref()
            .is_some_and(|(_, outside)| *outside == groups)
    }

    fn open(&mut self, tokens: &[Token], at: usize) {
        if self.is_at_definition()
            && let Some((function, _)) = self.defined.take()
        {
            self.functions.push((function, 0));
            self.open.push((at, Braces::Body));
            return;
        }
        let braces = self.meaning(tokens, at);
        self.open.push((at, braces));
        if let (Braces::Block, Some((function, depth))) = (braces, self.functions.last_mut()) {
            *depth += 1;
            function.depth = function.depth.max(*depth);
        }
    }

    /// Returns the function that ends here if it is too deep.
    fn close(&mut self, at: usize) -> Option<Function> {
        let (opened, braces) = self.open.pop()?;
        self.closed.insert(at, (opened, braces));
        match braces {
            Braces::Fields => None,
            Braces::Body => {
                let (function, _) = self.functions.pop()?;
                (function.depth > DEPTH_MAX).then_some(function)
            }
            Braces::Block => {
                if let Some((_, depth)) = self.functions.last_mut() {
                    *depth -= 1;
                }
                None
            }
        }
    }

    /// Meaning of the brace that opens at `at`, by what is before it in its statement.
    fn meaning(&self, tokens: &[Token], at: usize) -> Braces {
        let text = |at: usize| tokens[at].text.as_str();
        let Some(before) = at.checked_sub(1) else {
            return Braces::Block;
        };
        let is_arrow = text(before) == ">" && before > 0 && ["=", "-"].contains(&text(before - 1));
        match text(before) {
            "::" | ":" => return Braces::Fields,
            "(" if self.is_json(tokens, before) => return Braces::Fields,
            "[" | "," if self.is_in_fields() => return Braces::Fields,
            ">" if is_arrow => return Braces::Block,
            ">" => {}
            word if word.starts_with(|char: char| char.is_alphanumeric() || char == '_') => {}
            _ => return Braces::Block,
        }
        self.meaning_after_a_name(tokens, before)
    }

    /// Looks back to the beginning of the statement: `if name {` is a block, `Name {` has fields.
    fn meaning_after_a_name(&self, tokens: &[Token], name: usize) -> Braces {
        let mut is_assigned = false;
        let mut at = name;
        loop {
            match tokens[at].text.as_str() {
                "else" | "loop" | "unsafe" | "async" | "move" | "const" | "if" | "while"
                | "match" | "in" | "impl" | "struct" | "enum" | "trait" | "mod" | "union" => {
                    return Braces::Block;
                }
                "for" => return Braces::Fields,
                "let" if !is_assigned => return Braces::Fields,
                ";" | "{" | "(" | "[" | "," => return Braces::Fields,
                "-" if tokens[at + 1].text == ">" => return Braces::Block,
                "=" if tokens[at + 1].text == ">" => return Braces::Fields,
                "=" => is_assigned = true,
                ")" | "]" => {
                    let Some(opened) = opening(tokens, at) else {
                        return Braces::Block;
                    };
                    at = opened;
                }
                "}" => match self.closed.get(&at) {
                    Some((opened, Braces::Fields)) => at = *opened,
                    _ => return Braces::Fields,
                },
                _ => {}
            }
            let Some(before) = at.checked_sub(1) else {
                return Braces::Fields;
            };
            at = before;
        }
    }

    fn is_json(&self, tokens: &[Token], parenthesis: usize) -> bool {
        parenthesis >= 2
            && tokens[parenthesis - 1].text == "!"
            && tokens[parenthesis - 2].text == "json"
    }

    fn is_in_fields(&self) -> bool {
        self.open
            .last()
            .is_some_and(|(_, braces)| *braces == Braces::Fields)
    }
}

/// The parenthesis or bracket that `close` closes.
fn opening(tokens: &[Token], close: usize) -> Option<usize> {
    let mut depth = 0_usize;
    for at in (0..=close).rev() {
        match tokens[at].text.as_str() {
            ")" | "]" => depth += 1,
            "(" | "[" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

// === the rule can fail ===

#[test]
fn only_blocks_inside_a_function_are_levels() {
    let depth = |body: &str| {
        let source = format!("impl X {{ fn f(x: [u8; 2]) -> Y {{ {body} }} }}");
        let deep = format!("fn f() {{ {} {body} {} }}", "{".repeat(9), "}".repeat(9));
        let found = deep_functions(&deep);
        assert_eq!(found.len(), 1, "{source}");
        found[0].depth - 9
    };
    assert_eq!(depth("x"), 0);
    assert_eq!(depth("if a { b } else if c.d() { e } else { f }"), 1);
    assert_eq!(
        depth("for x in y { match z { A { b } => { c } _ => {} } }"),
        3
    );
    assert_eq!(depth("let Foo { a } = b else { return };"), 1);
    assert_eq!(depth("if let Foo { a } = b { c }"), 1);
    assert_eq!(depth("while let Some(Foo { a, .. }) = b { c }"), 1);
    assert_eq!(depth("return Foo { a: Bar { b }, ..c };"), 0);
    assert_eq!(depth("x(|y| { z }); x(move || async move { y });"), 1);
    assert_eq!(depth("let x: Vec<T> = y.map(|z| -> Foo { w });"), 1);
    assert_eq!(depth("json!({ \"a\": { \"b\": [{}, {}] } });"), 0);
    assert_eq!(depth("if x == Foo::A { y }"), 1);
    assert_eq!(depth("tokio::select! { x = y => { z } }"), 2);
}

#[test]
fn a_function_that_is_too_deep_is_found() {
    let nested = |depth| {
        format!(
            "fn f() {{ {} x {} }}",
            "if a {".repeat(depth),
            "}".repeat(depth)
        )
    };
    assert_eq!(deep_functions(&nested(DEPTH_MAX)).len(), 0);
    assert_eq!(deep_functions(&nested(DEPTH_MAX + 1))[0].name, "f");
    assert_eq!(deep_functions("trait X { fn f(); fn g() { } }").len(), 0);
    let inner = format!("fn f() {{ {} }}", nested(DEPTH_MAX).replace("f()", "g()"));
    assert_eq!(deep_functions(&inner).len(), 0, "a function in a function");
}
