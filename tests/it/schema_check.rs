//! `sidestream schema check` in a shell: its output and its exit code.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

fn check(old: &Path, new: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidestream"));
    command.args(["schema", "check", "--old"]).arg(old);
    let output: Output = command.arg("--new").arg(new).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

fn write(file: &Path, schema: &Value) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, schema.to_string()).unwrap();
}

#[test]
fn incompatible_folders_end_with_65_and_a_line_for_each_place() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let order = json!({
        "type": "object",
        "required": ["total"],
        "properties": { "status": { "enum": ["open", "paid"] }, "total": { "$ref": "common/money.json" } }
    });
    let mut changed = order.clone();
    changed["properties"]["status"]["enum"] = json!(["open", "paid", "lost"]);
    changed["required"] = json!([]);
    write(&old.join("order.json"), &order);
    write(&new.join("order.json"), &changed);
    write(
        &old.join("common/money.json"),
        &json!({ "type": "integer" }),
    );
    write(&new.join("common/money.json"), &json!({ "type": "number" }));
    // Not compared: another extension, and a new file.
    std::fs::write(old.join("README.md"), "text").unwrap();
    write(&new.join("further.json"), &json!({}));
    let (code, output, errors) = check(&old, &new);
    assert_eq!((code, errors.as_str()), (Some(65), ""), "{output}");
    let root = old.display();
    let expected = format!(
        "{root}/common/money.json#/type: the new schema also accepts number\n\
         {root}/order.json#/properties/status/enum: the new schema also accepts \"lost\"\n\
         {root}/order.json#/required: property \"total\" is no longer required\n"
    );
    assert_eq!(output, expected);
    // The other direction only narrows.
    std::fs::remove_file(new.join("further.json")).unwrap();
    let (code, output, errors) = check(&new, &old);
    assert_eq!((code, errors.as_str()), (Some(0), ""), "{output}");
    assert_eq!(output, "2 schemas: backward compatible\n");
}

#[test]
fn files_are_compared_whatever_their_names_are() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new) = (folder.path().join("v1.json"), folder.path().join("v2.json"));
    write(&old, &json!({ "type": "string", "maxLength": 5 }));
    write(&new, &json!({ "type": "string", "maxLength": 4 }));
    let compatible = "1 schema: backward compatible\n".to_owned();
    assert_eq!(check(&old, &new), (Some(0), compatible, String::new()));
    let line = format!("{}#/maxLength: was 4, is 5\n", new.display());
    assert_eq!(check(&new, &old), (Some(65), line, String::new()));
}

#[test]
fn what_is_not_a_schema_ends_with_64_and_the_file_and_its_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    write(&path("valid.json"), &json!({}));
    write(&path("invalid.json"), &json!({ "minLength": "three" }));
    std::fs::write(path("text.json"), "type: string").unwrap();
    std::fs::create_dir(path("empty")).unwrap();
    let cases = [
        ("missing.json", ": No such file or directory"),
        ("text.json", ": is not JSON: "),
        ("invalid.json", ": is not a valid schema: #/minLength: "),
        ("empty", ": the folder has no .json files"),
    ];
    for (name, problem) in cases {
        let (code, output, errors) = check(&path("valid.json"), &path(name));
        assert_eq!((code, output.as_str()), (Some(64), ""), "{errors}");
        let expected = format!("{}{problem}", path(name).display());
        assert!(errors.starts_with(&expected), "{errors}");
        assert_eq!(check(&path(name), &path("valid.json")).0, Some(64));
    }
    write(&path("folder/a.json"), &json!({}));
    let (code, _, errors) = check(&path("valid.json"), &path("folder"));
    assert!(
        code == Some(64) && errors.contains("two files or two folders"),
        "{errors}"
    );
}
