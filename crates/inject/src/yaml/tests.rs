//! Tests of YAML 1.1: values as kubectl reads them, and lossless output.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn value(text: &str) -> Value {
    read(text).unwrap().unwrap().root.to_json()
}

/// Values of `kubectl patch --local --type=json -p '[]' -o json` 1.32 over a manifest with these
/// values.
#[test]
fn plain_scalar_has_the_value_that_kubectl_reads() {
    let told = [
        ("y", json!(true)),
        ("on", json!(true)),
        ("No", json!(false)),
        ("OFF", json!(false)),
        ("0644", json!(420)),
        ("0x10", json!(16)),
        ("0o17", json!(15)),
        ("0b11", json!(3)),
        ("-017", json!(-15)),
        ("1_000", json!(1000)),
        ("1e3", json!(1000)),
        ("+12", json!(12)),
        ("08", json!(8)),
        ("1.5", json!(1.5)),
        (".5", json!(0.5)),
        ("1:30", json!("1:30")),
        ("012:3", json!("012:3")),
        ("08_0x", json!("08_0x")),
        ("2001-01-01", json!("2001-01-01")),
        ("~", json!(null)),
        ("", json!(null)),
        ("1.2.3", json!("1.2.3")),
        ("-", json!("-")),
        ("!!str 12", json!("12")),
        ("!!binary aGk=", json!("hi")),
        ("'on'", json!("on")),
    ];
    for (text, expected) in told {
        let text = if text == "-" { "'-'" } else { text };
        assert_eq!(value(&format!("a: {text}\n"))["a"], expected, "{text}");
    }
    assert_eq!(value("on: k\n1: one\n"), json!({ "true": "k", "1": "one" }));
}

/// The order of entries decides, as in kubectl; of several merged maps the first wins.
#[test]
fn anchors_aliases_and_merge_keys_are_expanded_as_in_kubectl() {
    let text = "l: &l {a: '1', b: '2'}\nm: {<<: *l, b: '3'}\nm2: {b: '3', <<: *l}\nm3: {<<: [{a: 1}, *l]}\nm4: *l\n";
    let both = json!({ "a": "1", "b": "2" });
    let first = json!({ "a": 1, "b": "2" });
    assert_eq!(
        value(text),
        json!({ "l": both, "m": { "a": "1", "b": "3" }, "m2": both, "m3": first, "m4": both })
    );
}

/// `yaml11.json` was written by kubectl 1.32: `kubectl patch --local --type=json -p '[]' -f
/// yaml11.yaml -o json`.
#[test]
fn recorded_manifest_is_read_as_kubectl_reads_it_and_written_without_a_change_of_value() {
    let document = read(include_str!(
        "../../../../tests/fixtures/inject/yaml11.yaml"
    ))
    .unwrap()
    .unwrap();
    let kubectl: Value = serde_json::from_str(include_str!(
        "../../../../tests/fixtures/inject/yaml11.json"
    ))
    .unwrap();
    assert!(document.fixed.is_none());
    assert_eq!(document.root.to_json(), kubectl);
    let written = emit(&document.root);
    assert_eq!(value(&written), kubectl);
    for kept in [
        "hostNetwork: on\n",
        "hostPID: y\n",
        "activeDeadlineSeconds: 0644\n",
        "image: y\n",
        "1:30\n",
    ] {
        assert!(written.contains(kept), "{kept}: {written}");
    }
}

#[test]
fn document_that_cannot_be_written_back_is_reported_with_the_line() {
    let fixed = |text: &str| {
        read(text)
            .unwrap()
            .unwrap()
            .fixed
            .map(|broken| (broken.line, broken.message))
    };
    assert_eq!(fixed("a: 1\nb: !Ref x\n").unwrap().0, 2);
    assert_eq!(
        fixed("a: 1\n'a': 2\n").unwrap(),
        (2, "one map has the key `a` twice".to_owned())
    );
    assert_eq!(fixed("a: !!int x\n").unwrap().0, 1);
    assert!(fixed("a: !!int 3\nb: !!map {}\nc: !!seq []\n").is_none());
    assert_eq!(read("a: [\n").unwrap_err().line, 2);
    assert!(read("a: &a [*a]\n").is_err());
    assert!(read(&"[".repeat(100)).is_err());
    let bomb: String = (1..40)
        .map(|n| format!("a{n}: &a{n} [*a{}, *a{}]\n", n - 1, n - 1))
        .collect();
    assert!(
        read(&format!("a0: &a0 xxxxxxxx\n{bomb}"))
            .unwrap_err()
            .message
            .contains("too large")
    );
    assert!(read("# nothing\n").unwrap().is_none());
}

/// Expected values are those of kubectl 1.32.
#[test]
fn quoted_and_flow_values_may_end_at_the_column_of_their_key() {
    for (text, expected) in [
        (
            "m:\n  x: '[\n    1\n  ]'\n",
            json!({ "m": { "x": "[ 1 ]" } }),
        ),
        (
            "m:\n  x: \"[\n1\n]\"\n  z: 2\n",
            json!({ "m": { "x": "[ 1 ]", "z": 2 } }),
        ),
        (
            "m:\n  x: {a: b,\n  c: [d,\ne]\n  }\n  z: 2\n",
            json!({ "m": { "x": { "a": "b", "c": ["d", "e"] }, "z": 2 } }),
        ),
        ("m:\n- 'a\n'\n- b\n", json!({ "m": ["a ", "b"] })),
    ] {
        assert_eq!(value(text), expected, "{text}");
    }
    // The reported problem is one that kubectl rejects as well.
    let broken = read("a:\n  x: 'b\n  c\n").unwrap_err();
    assert!(
        broken.message.ends_with("unexpected end of stream"),
        "{}",
        broken.message
    );
}

#[test]
fn parsing_time_is_linear_in_the_size_of_a_map() {
    let keys: String = (0..200_000).map(|key| format!("key-{key}: v\n")).collect();
    let begun = std::time::Instant::now();
    assert!(
        matches!(read(&keys).unwrap().unwrap().root, Node::Map(entries) if entries.len() == 200_000)
    );
    // In quadratic time it takes minutes, even optimised.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
}

#[test]
fn values_with_anchors_are_bounded() {
    let items = "aaaaaaaa, ".repeat(20_000);
    let anchors: String = (0..30).map(|level| format!("&a{level} [")).collect();
    let broken = read(&format!("{anchors}{items}{}", "]".repeat(30))).unwrap_err();
    assert!(broken.message.contains("too large"), "{}", broken.message);
}

#[test]
fn unchanged_value_keeps_its_spelling() {
    let text = "a: on\nb: 0644\nc:\n- y\n- gone\n- 1:30\nd: {e: 1e3}\n";
    let mut wanted = value(text);
    wanted["c"].as_array_mut().unwrap().remove(1);
    wanted["d"]["f"] = json!("on");
    let written = emit(&read(text).unwrap().unwrap().root.become_json(&wanted));
    assert_eq!(
        written,
        "a: on\nb: 0644\nc:\n- y\n- 1:30\nd:\n  e: 1e3\n  f: \"on\"\n"
    );
    assert_eq!(value(&written), wanted);
}

fn values() -> impl Strategy<Value = Value> {
    let texts = prop_oneof![
        Just("on".to_owned()),
        Just("0644".to_owned()),
        Just("1:30".to_owned()),
        Just("---".to_owned()),
        Just("a\nb\n".to_owned()),
        Just("a\n\n b\n\n".to_owned()),
        Just(" # a".to_owned()),
        "[ -~]{0,12}",
        "\\PC{0,6}",
        any::<String>(),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        texts.clone().prop_map(Value::from)
    ];
    leaf.prop_recursive(4, 40, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(texts.clone(), inner, 0..5)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn written_value_is_read_back(wanted in values()) {
        let document = json!({ "root": wanted });
        let written = emit(&Node::Map(Vec::new()).become_json(&document));
        prop_assert_eq!(value(&written), document, "{}", written);
    }

    /// The indentation of continuation lines is not part of a value.
    #[test]
    fn indentation_of_continuation_lines_does_not_change_a_value(
        words in prop::collection::vec("[a-c:#'\"\\\\,-]{1,4}( [a-c'\"#]{1,3})?", 1..6),
        indents in prop::collection::vec(0usize..8, 6),
        style in 0..3,
    ) {
        let quoted = |word: &str| match style {
            0 => word.replace('\'', "''"),
            1 => word.replace('\\', "\\\\").replace('"', "\\\""),
            _ => format!("'{}',", word.replace('\'', "''")),
        };
        let (open, close) = [("'", "'"), ("\"", "\""), ("[", "]")][style as usize];
        let text = |indent: &dyn Fn(usize) -> usize| {
            let lines = words.iter().enumerate().map(|(line, word)| {
                format!("\n{}{}", " ".repeat(indent(line)), quoted(word))
            });
            format!("m:\n  - k: {open}{}{close}\n    z: 1\n", lines.collect::<String>())
        };
        // Without a line that would end the document.
        let shallow = text(&|line| indents[line]);
        prop_assume!(!shallow.contains("\n---") && !shallow.contains("\n- "));
        prop_assert_eq!(value(&shallow), value(&text(&|_| 7)), "{}", shallow);
    }

    #[test]
    fn parsing_never_panics(text in "[-a-c:\\[\\]{}&*!|>'\"#?,%@` \n\t<]{0,60}") {
        if let Ok(Some(document)) = read(&text) {
            emit(&document.root);
        }
    }
}
