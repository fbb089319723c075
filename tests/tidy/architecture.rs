//! The names in ARCHITECTURE.md exist in the code.
//!
//! A path such as `feed::dispatch::Dispatcher::run` must lead to a module of `src`, and the names
//! after the module must occur in the files of that module or of the folder below it. The page may
//! shorten a path (`feed::Cursor`): then the name must occur anywhere in the folder.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::tokens::tokens;
use super::{root, rust_files};

#[test]
fn names_in_the_architecture_page_exist_in_the_code() {
    let code = Code::read();
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let wrong: Vec<String> = paths(&page)
        .filter(|path| code.has_folder(path))
        .filter_map(|path| code.missing(path))
        .collect();
    assert!(
        wrong.is_empty(),
        "ARCHITECTURE.md names what does not exist; change the page with the code:\n{}",
        wrong.join("\n")
    );
}

/// Identifiers of each module, by its path in `src`.
struct Code(BTreeMap<String, Vec<String>>);

impl Code {
    fn read() -> Self {
        let mut files = Vec::new();
        rust_files(&root().join("src"), &mut files);
        let modules = files.iter().map(|file| {
            let inside = file.strip_prefix(root().join("src")).unwrap();
            let names = tokens(&fs::read_to_string(file).unwrap());
            let names = names.into_iter().map(|token| token.text).collect();
            (module(inside), names)
        });
        Self(modules.collect())
    }

    /// Returns true if the first segment is a folder of `src`.
    fn has_folder(&self, path: &str) -> bool {
        let first = path.split("::").next().unwrap_or_default();
        self.0.keys().any(|module| is_within(module, first))
    }

    /// The name in `path` that the code does not have.
    fn missing(&self, path: &str) -> Option<String> {
        let segments: Vec<&str> = path.split("::").collect();
        let known = (1..=segments.len())
            .rev()
            .find(|count| {
                let module = segments[..*count].join("::");
                self.0.keys().any(|other| is_within(other, &module))
            })
            .unwrap_or(1);
        let module = segments[..known].join("::");
        let missing = segments[known..].iter().find(|name| {
            let mut within = self.0.iter().filter(|(other, _)| is_within(other, &module));
            !within.any(|(_, names)| names.iter().any(|other| other == *name))
        })?;
        Some(format!("`{path}`: no `{missing}` in `{module}`"))
    }
}

fn is_within(module: &str, folder: &str) -> bool {
    module
        .strip_prefix(folder)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn module(file: &Path) -> String {
    let path = file.with_extension("");
    let mut segments: Vec<_> = path
        .iter()
        .map(|part| part.to_string_lossy().into_owned())
        .collect();
    segments.pop_if(|last| last == "mod");
    segments.join("::")
}

/// Words of the page that are paths with `::`.
fn paths(page: &str) -> impl Iterator<Item = &str> {
    page.split(|char: char| !(char.is_alphanumeric() || matches!(char, '_' | ':')))
        .map(|word| word.trim_matches(':'))
        .filter(|word| word.contains("::"))
}

#[test]
fn a_name_that_does_not_exist_is_found() {
    let modules = [
        ("feed::cursor", vec!["Cursor", "poll_read"]),
        ("feed", vec!["Feed"]),
    ];
    let code = Code(
        modules
            .into_iter()
            .map(|(module, names)| {
                (
                    module.to_owned(),
                    names.into_iter().map(String::from).collect(),
                )
            })
            .collect(),
    );
    assert_eq!(code.missing("feed::cursor::Cursor::poll_read"), None);
    assert_eq!(code.missing("feed::Cursor"), None);
    assert!(code.missing("feed::cursor::Courier").is_some());
    assert!(code.missing("feed::courier::Courier").is_some());
    assert!(!code.has_folder("tokio::spawn"));
    let page = "see `feed::Cursor`, h2::x and (a::b). Not a:b";
    assert_eq!(
        paths(page).collect::<Vec<_>>(),
        ["feed::Cursor", "h2::x", "a::b"]
    );
}
