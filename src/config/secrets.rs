//! Possible secrets in a parsed text: hides them by its structure.
//!
//! Hidden are: everything in `nats:` except addresses and file names, the values of unknown keys
//! and of keys that sound like secrets (in `authentication:` and `admin:` also keys without a
//! value), credentials in addresses, keys in PEM. Anchors need no rule: the value of an alias has
//! the location of its anchor. `mask` then replaces the hidden ranges in excerpts.

use super::mask::{
    ADMIN, ADMIN_WORDS, AUTHENTICATION, AUTHENTICATION_WORDS, Hidden, NATS, NATS_WORDS, is_key,
    is_secret_name,
};
use super::problem::Report;
use super::spelling::is_near;
use super::tree::{Node, Scalar, Value};

/// Keys in `nats` whose values are addresses or names of files.
const SHOWN: [&str; 2] = ["servers", "tls"];

/// Sensitivity of a value that follows from its parents.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sensitivity {
    /// Not sensitive by its parents.
    Public,
    /// List of addresses.
    Addresses,
    /// Secret, or possibly one.
    Secret,
}

/// Hides possible secrets in a parsed text.
pub(super) fn hide(root: &Node, report: &Report<'_>) {
    let Value::Map(entries) = &root.value else {
        return hide_in(root, Sensitivity::Secret, report);
    };
    for entry in entries {
        if entry.key == AUTHENTICATION || is_near(&entry.key, &[AUTHENTICATION]) {
            hide_among_others(&entry.node, &AUTHENTICATION_WORDS, report);
            continue;
        }
        if entry.key == ADMIN {
            hide_among_others(&entry.node, &ADMIN_WORDS, report);
            continue;
        }
        if entry.key != NATS && !is_near(&entry.key, &[NATS]) {
            hide_in(
                &entry.node,
                sensitivity(&entry.key, Sensitivity::Public),
                report,
            );
            continue;
        }
        let Value::Map(entries) = &entry.node.value else {
            hide_in(&entry.node, Sensitivity::Secret, report);
            continue;
        };
        for entry in entries {
            let sensitivity = match &*entry.key {
                "servers" => Sensitivity::Addresses,
                key if SHOWN.contains(&key) => Sensitivity::Public,
                _ => Sensitivity::Secret,
            };
            // In braces, the part of an unquoted value after a comma is a key of its own.
            if entry.node.is_null() && !NATS_WORDS.contains(&&*entry.key) {
                report.hide(entry.at.range(), Hidden::All);
            }
            hide_in(&entry.node, sensitivity, report);
        }
    }
}

/// Hides the secrets of a section with other values. `words`: its keys.
fn hide_among_others(node: &Node, words: &[&str], report: &Report<'_>) {
    match &node.value {
        Value::Scalar(_) => hide_in(node, Sensitivity::Public, report),
        Value::List(items) => {
            for item in items {
                hide_among_others(item, words, report);
            }
        }
        Value::Map(entries) => {
            for entry in entries {
                // In braces, the part of an unquoted value after a comma is a key of its own.
                if entry.node.is_null() && !words.contains(&&*entry.key) {
                    report.hide(entry.at.range(), Hidden::All);
                }
                if is_secret_name(&entry.key) {
                    hide_in(&entry.node, Sensitivity::Secret, report);
                } else {
                    hide_among_others(&entry.node, words, report);
                }
            }
        }
    }
}

/// Hides a whole value.
pub(super) fn hide_value(node: &Node, report: &Report<'_>) {
    hide_in(node, Sensitivity::Secret, report);
}

fn sensitivity(key: &str, parent: Sensitivity) -> Sensitivity {
    if is_secret_name(key) {
        Sensitivity::Secret
    } else {
        parent
    }
}

fn hide_in(node: &Node, place: Sensitivity, report: &Report<'_>) {
    match &node.value {
        Value::Scalar(scalar) => {
            if let Some(what) = hidden(scalar, place) {
                report.hide(node.range, what);
            }
        }
        Value::List(items) => items.iter().for_each(|item| hide_in(item, place, report)),
        Value::Map(entries) => {
            for entry in entries {
                let place = if place == Sensitivity::Addresses {
                    Sensitivity::Secret
                } else {
                    sensitivity(&entry.key, place)
                };
                if place == Sensitivity::Secret && entry.node.is_null() {
                    report.hide(entry.at.range(), Hidden::All);
                }
                hide_in(&entry.node, place, report);
            }
        }
    }
}

/// Returns the part of a value to hide, if any.
fn hidden(scalar: &Scalar, place: Sensitivity) -> Option<Hidden> {
    let text = &scalar.text;
    match place {
        Sensitivity::Secret => Some(Hidden::All),
        _ if is_key(text) => Some(Hidden::All),
        Sensitivity::Addresses if text.contains('@') => Some(Hidden::UserInfo),
        _ if text.contains("://") && text.contains('@') => Some(Hidden::UserInfo),
        _ => None,
    }
}
