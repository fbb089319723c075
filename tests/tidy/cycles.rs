//! Imports between the files of a folder of `src`: they form no cycle.
//!
//! An edge leads from a file to the file that defines what it uses. Paths are followed through
//! modules, imports and re-exports, so `pub use` in a `mod.rs` adds no edge. `mod` declarations and
//! tests add none either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use super::tokens::{Token, tokens};
use super::{folder, root, rust_files, without_tests};

/// Files of each folder that are in a cycle today. The numbers may only fall.
const IN_CYCLES: [(&str, usize); 0] = [];

/// Re-exports that are followed before a path counts as unknown.
const HOPS_MAX: usize = 16;

#[test]
fn files_of_a_folder_do_not_import_one_another_in_a_cycle() {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let sources: BTreeMap<PathBuf, String> = files
        .into_iter()
        .map(|file| {
            let path = file.strip_prefix(root()).unwrap().to_owned();
            (path, fs::read_to_string(&file).unwrap())
        })
        .collect();
    let graph = Graph::of(&sources);
    let mut by_folder: BTreeMap<String, Vec<BTreeSet<PathBuf>>> = BTreeMap::new();
    for files in graph.cycles() {
        let folder = files.first().and_then(|file| folder(file));
        by_folder.entry(folder.unwrap()).or_default().push(files);
    }
    let mut wrong = String::new();
    for (folder, cycles) in &by_folder {
        let count = cycles.iter().map(BTreeSet::len).sum::<usize>();
        let allowed = IN_CYCLES.iter().find(|(name, _)| name == folder);
        let allowed = allowed.map_or(0, |(_, allowed)| *allowed);
        if count > allowed {
            writeln!(
                wrong,
                "src/{folder}: {count} files import one another in cycles, allowed {allowed}; move what \
                 two files need into a third, or pass it as an argument:"
            )
            .unwrap();
            for files in cycles {
                writeln!(wrong, "{}", graph.edges_of(files)).unwrap();
            }
        }
    }
    for (folder, allowed) in IN_CYCLES {
        let cycles = by_folder.get(folder).into_iter().flatten();
        let count = cycles.map(BTreeSet::len).sum::<usize>();
        if count < allowed {
            writeln!(wrong, "src/{folder}: {count} files are in cycles, allowed {allowed}; lower the number in tests/tidy/cycles.rs").unwrap();
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

/// Path of a module from the crate's root: `["feed", "cursor"]`.
type ModulePath = Vec<String>;

/// File of a module with the names that it imports and the paths that it uses.
struct Module {
    file: PathBuf,
    /// Imported and re-exported names with their full paths.
    imports: BTreeMap<String, ModulePath>,
    /// Full paths in the code with their lines.
    used: Vec<(ModulePath, usize)>,
}

/// Uses between files, each with a line and a path as example.
struct Graph {
    edges: BTreeMap<PathBuf, BTreeMap<PathBuf, String>>,
}

/// Path of the names that a file imports, before it is made absolute.
struct Import {
    path: ModulePath,
    name: String,
    line: usize,
}

// === impl Graph ===

impl Graph {
    fn of(sources: &BTreeMap<PathBuf, String>) -> Self {
        let paths: BTreeMap<ModulePath, &PathBuf> = sources
            .keys()
            .map(|file| (module_path(file), file))
            .collect();
        let modules: BTreeMap<ModulePath, Module> = paths
            .iter()
            .map(|(path, file)| {
                let module = Module::read(file, path, without_tests(&sources[*file]), &paths);
                (path.clone(), module)
            })
            .collect();
        let mut edges: BTreeMap<PathBuf, BTreeMap<PathBuf, String>> = BTreeMap::new();
        for module in modules.values() {
            for (used, line) in &module.used {
                let Some(definer) = resolve(&modules, used, HOPS_MAX) else {
                    continue;
                };
                let other = &modules[&definer].file;
                if other != &module.file && folder(other) == folder(&module.file) {
                    let example = format!("line {line}: {}", used.join("::"));
                    let from = edges.entry(module.file.clone()).or_default();
                    from.entry(other.clone()).or_insert(example);
                }
            }
        }
        Self { edges }
    }

    /// Sets of files that reach one another, of more than one file.
    fn cycles(&self) -> Vec<BTreeSet<PathBuf>> {
        let reached: BTreeMap<&PathBuf, BTreeSet<&PathBuf>> = self
            .edges
            .keys()
            .map(|file| (file, self.reach(file)))
            .collect();
        let mut cycles: Vec<BTreeSet<PathBuf>> = Vec::new();
        for (file, others) in &reached {
            if !others.contains(file) || cycles.iter().any(|cycle| cycle.contains(*file)) {
                continue;
            }
            let back =
                |other: &&&PathBuf| reached.get(**other).is_some_and(|set| set.contains(file));
            cycles.push(
                others
                    .iter()
                    .filter(back)
                    .map(|other| (*other).clone())
                    .collect(),
            );
        }
        cycles
    }

    fn reach(&self, file: &PathBuf) -> BTreeSet<&PathBuf> {
        let mut reached = BTreeSet::new();
        let mut next: Vec<&PathBuf> = self
            .edges
            .get(file)
            .into_iter()
            .flat_map(BTreeMap::keys)
            .collect();
        while let Some(other) = next.pop() {
            if reached.insert(other) {
                next.extend(self.edges.get(other).into_iter().flat_map(BTreeMap::keys));
            }
        }
        reached
    }

    /// The edges among these files, one a line.
    fn edges_of(&self, files: &BTreeSet<PathBuf>) -> String {
        let mut text = String::new();
        for from in files {
            for (to, example) in self.edges.get(from).into_iter().flatten() {
                if files.contains(to) {
                    writeln!(
                        text,
                        "    {} -> {} ({example})",
                        from.display(),
                        to.display()
                    )
                    .unwrap();
                }
            }
        }
        text
    }
}

// === impl Module ===

impl Module {
    fn read(
        file: &Path,
        own: &ModulePath,
        source: &str,
        modules: &BTreeMap<ModulePath, &PathBuf>,
    ) -> Self {
        let tokens = tokens(source);
        let mut module = Self {
            file: file.to_owned(),
            imports: BTreeMap::new(),
            used: Vec::new(),
        };
        let is_child =
            |name: &str| modules.contains_key(&[own.as_slice(), &[name.to_owned()]].concat());
        let absolute = |path: &[String]| absolute(own, path, &is_child);
        let mut paths = Vec::new();
        let mut at = 0;
        while at < tokens.len() {
            if tokens[at].text == "use" {
                let mut found = Vec::new();
                at = read_use(&tokens, at + 1, &[], &mut found);
                for import in found {
                    let Some(path) = absolute(&import.path) else {
                        continue;
                    };
                    if import.name == "*" {
                        module
                            .used
                            .push(([path, vec!["*".to_owned()]].concat(), import.line));
                    } else {
                        module.imports.insert(import.name, path.clone());
                        module.used.push((path, import.line));
                    }
                }
                continue;
            }
            let (path, end) = read_path(&tokens, at);
            if path.len() > 1 {
                paths.push((path, tokens[at].line));
            }
            at = end.max(at + 1);
        }
        for (path, line) in paths {
            let full = match module.imports.get(&path[0]) {
                Some(import) => Some([import.as_slice(), &path[1..]].concat()),
                None => absolute(&path),
            };
            module.used.extend(full.map(|full| (full, line)));
        }
        module
    }
}

/// The module that defines what a full path names. A module by itself is not a use of it.
fn resolve(
    modules: &BTreeMap<ModulePath, Module>,
    path: &[String],
    hops: usize,
) -> Option<ModulePath> {
    let depth = (0..=path.len())
        .rev()
        .find(|depth| modules.contains_key(&path[..*depth]))?;
    let (module, rest) = (&path[..depth], &path[depth..]);
    let item = rest.first()?;
    if hops == 0 {
        return Some(module.to_vec());
    }
    if let Some(import) = modules[module].imports.get(item) {
        let further = [import.as_slice(), &rest[1..]].concat();
        // A name of another crate that is re-exported here is used from here.
        return resolve(modules, &further, hops - 1).or_else(|| Some(module.to_vec()));
    }
    Some(module.to_vec())
}

/// Makes a path absolute; `None` for paths into other crates and for local names.
fn absolute(
    own: &[String],
    path: &[String],
    is_child: &impl Fn(&str) -> bool,
) -> Option<ModulePath> {
    let mut base = own.to_vec();
    let mut rest = path;
    match rest.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &rest[1..];
        }
        "self" => rest = &rest[1..],
        "super" => {}
        name if is_child(name) => {}
        _ => return None,
    }
    while rest.first().is_some_and(|name| name == "super") {
        base.pop()?;
        rest = &rest[1..];
    }
    Some([&base, rest].concat())
}

/// Reads the tree of a `use` declaration from `at` on; returns the token after it.
fn read_use(tokens: &[Token], mut at: usize, prefix: &[String], found: &mut Vec<Import>) -> usize {
    let mut path = prefix.to_vec();
    let mut name = None;
    let text = |at: usize| tokens.get(at).map_or(";", |token| token.text.as_str());
    let line = tokens.get(at).map_or(0, |token| token.line);
    loop {
        match text(at) {
            "::" => at += 1,
            "as" => {
                name = Some(text(at + 1).to_owned());
                at += 2;
            }
            "{" => {
                at += 1;
                while text(at) != "}" {
                    at = read_use(tokens, at, &path, found);
                    at += usize::from(text(at) == ",");
                    if text(at) == ";" {
                        return at;
                    }
                }
                return at + 1;
            }
            ";" | "," | "}" => break,
            "self" if !path.is_empty() => at += 1,
            "*" => {
                name = Some("*".to_owned());
                at += 1;
            }
            segment => {
                path.push(segment.to_owned());
                at += 1;
            }
        }
    }
    if let Some(last) = path.last() {
        let name = name.unwrap_or_else(|| last.clone());
        found.push(Import { name, path, line });
    }
    at
}

/// The path that begins at `at`, and the token after it: one name if no `::` follows.
fn read_path(tokens: &[Token], at: usize) -> (ModulePath, usize) {
    let is_name = |at: usize| {
        tokens.get(at).is_some_and(|token| {
            token
                .text
                .starts_with(|char: char| char.is_alphabetic() || char == '_')
        })
    };
    let is_joined = |at: usize| tokens.get(at).is_some_and(|token| token.text == "::");
    if !is_name(at) || (at > 0 && (is_joined(at - 1) || tokens[at - 1].text == ".")) {
        return (Vec::new(), at + 1);
    }
    let mut path = vec![tokens[at].text.clone()];
    let mut end = at + 1;
    while is_joined(end) && is_name(end + 1) {
        path.push(tokens[end + 1].text.clone());
        end += 2;
    }
    (path, end)
}

/// `src/feed/cursor/past.rs` is `feed::cursor::past`, `src/feed/mod.rs` is `feed`, `src/lib.rs` the
/// root.
fn module_path(file: &Path) -> ModulePath {
    let mut path: ModulePath = file
        .with_extension("")
        .iter()
        .skip(1)
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    path.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
    path
}

// === the rule can fail ===

#[cfg(test)]
mod can_fail {
    use super::*;

    fn cycles(sources: &[(&str, &str)]) -> Vec<Vec<String>> {
        let sources = sources
            .iter()
            .map(|(file, source)| (PathBuf::from(file), (*source).to_owned()))
            .collect();
        Graph::of(&sources)
            .cycles()
            .into_iter()
            .map(|files| {
                files
                    .iter()
                    .map(|file| file.to_str().unwrap().to_owned())
                    .collect()
            })
            .collect()
    }

    #[test]
    fn two_files_that_import_each_other_are_a_cycle() {
        let a = ("src/x/a.rs", "use crate::x::b::B;");
        assert_eq!(
            cycles(&[
                ("src/x/mod.rs", "mod a; mod b;"),
                a,
                ("src/x/b.rs", "use super::a::{self, A};")
            ]),
            [["src/x/a.rs", "src/x/b.rs"]]
        );
        assert!(cycles(&[a, ("src/x/b.rs", "use std::fmt; mod tests {}")]).is_empty());
    }

    #[test]
    fn a_path_in_the_code_and_a_renamed_import_are_uses() {
        let a = ("src/x/a.rs", "fn f() { super::b::g() }");
        let b = ("src/x/b.rs", "use super::a as other; fn g() { other::f() }");
        assert_eq!(cycles(&[a, b]).len(), 1);
        assert!(cycles(&[a, ("src/x/b.rs", "use super::a as other;")]).is_empty());
    }

    #[test]
    fn a_re_export_leads_to_the_file_that_defines() {
        let root = ("src/x/mod.rs", "mod a; mod b; pub use a::A; pub use b::B;");
        let b = ("src/x/b.rs", "pub struct B;");
        assert!(cycles(&[root, ("src/x/a.rs", "use super::B; pub struct A;"), b]).is_empty());
        let b = ("src/x/b.rs", "use crate::x::A;");
        let found = cycles(&[root, ("src/x/a.rs", "use super::B;"), b]);
        assert_eq!(found, [["src/x/a.rs", "src/x/b.rs"]]);
    }

    #[test]
    fn a_child_that_uses_its_parent_is_a_cycle_with_a_parent_that_uses_it() {
        let parent = ("src/x/a.rs", "mod c; use c::C; pub struct A;");
        assert_eq!(
            cycles(&[parent, ("src/x/a/c.rs", "use super::A;")]).len(),
            1
        );
        let tested = (
            "src/x/a/c.rs",
            "pub struct C; #[cfg(test)] mod tests { use super::super::A; }",
        );
        assert!(cycles(&[parent, tested]).is_empty());
        assert!(
            cycles(&[
                ("src/x/a.rs", "mod c; pub struct A;"),
                ("src/x/a/c.rs", "use super::A;")
            ])
            .is_empty()
        );
    }
}
