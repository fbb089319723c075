//! Comparison of response heads: what the pod sent, and what arrived.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_ORIGIN, CONTENT_LENGTH, HeaderMap,
    HeaderName, HeaderValue,
};

/// Head of every event stream of Sidestream, for a pod that answers no probes.
pub(super) const EXPECTED: [(&str, &str); 4] = [
    ("content-type", "text/event-stream"),
    ("cache-control", "no-store, no-transform"),
    ("x-content-type-options", "nosniff"),
    ("incremental", "?1"),
];

/// Fields that proxies remove because they are meant for them.
const FOR_PROXIES: [&str; 1] = ["x-accel-buffering"];

/// Fields whose values are lists; a proxy may add to them.
const LISTS: [&str; 2] = ["vary", "cache-control"];

/// Returns a sentence for each header field that does not arrive as it was sent.
pub(super) fn changes<'s>(
    sent: impl Iterator<Item = (&'s str, &'s str)>,
    arrived: &HeaderMap,
) -> Vec<String> {
    let mut changes = Vec::new();
    for (name, value) in sent {
        if FOR_PROXIES.contains(&name) || name.starts_with("access-control-") {
            continue;
        }
        let values = values(arrived, name);
        let text = values.join(", ");
        if values.is_empty() {
            changes.push(format!("`{name}: {value}` is removed"));
        } else if !is_same(name, value, &text) {
            changes.push(format!("`{name}: {value}` arrives as `{text}`"));
        }
    }
    if let Some(length) = arrived.get(CONTENT_LENGTH) {
        let length = String::from_utf8_lossy(length.as_bytes());
        changes.push(format!("`content-length: {length}` is added"));
    }
    changes
}

fn is_same(name: &str, sent: &str, arrived: &str) -> bool {
    if LISTS.contains(&name) {
        let arrived = list(arrived);
        return list(sent).iter().all(|item| arrived.contains(item))
            && !(name == "cache-control" && arrived.iter().any(|item| item == "public"));
    }
    if name == "content-type" {
        return essence(sent) == essence(arrived);
    }
    sent == arrived
}

/// Returns whether most of the fields are those of an event stream of Sidestream.
pub(super) fn is_sidestream(arrived: &HeaderMap) -> bool {
    let same = EXPECTED
        .iter()
        .filter(|(name, value)| is_same(name, value, &values(arrived, name).join(", ")));
    same.count() >= 3
}

/// Returns whether the content is an event stream.
pub(super) fn is_event_stream(arrived: &HeaderMap) -> bool {
    values(arrived, "content-type")
        .first()
        .is_some_and(|value| essence(value) == "text/event-stream")
}

/// Returns what is wrong with the fields of cross-origin access. `sent`: as the pod sent them, if
/// it has reported them. `is_required`: this origin must be allowed.
pub(super) fn cors_fault(
    sent: Option<&[(String, String)]>,
    arrived: &HeaderMap,
    origin: &str,
    is_required: bool,
) -> Option<String> {
    let allowed = values(arrived, ACCESS_CONTROL_ALLOW_ORIGIN.as_str());
    if allowed.len() > 1 || allowed.iter().any(|value| value.contains(',')) {
        return Some(format!(
            "`Access-Control-Allow-Origin` has several values ({}): browsers reject the response",
            allowed.join(", ")
        ));
    }
    if let Some(sent) = sent {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
        ] {
            let by_pod = sent.iter().filter(|(sent, _)| *sent == name.as_str());
            let by_pod: Vec<_> = by_pod.map(|(_, value)| value.as_str()).collect();
            let arrived = values(arrived, name.as_str());
            if by_pod != arrived {
                return Some(change_of(&name, &by_pod, &arrived));
            }
        }
    }
    let allowed = allowed.first().map(String::as_str);
    let has_credentials = arrived.contains_key(ACCESS_CONTROL_ALLOW_CREDENTIALS);
    if allowed == Some("*") && has_credentials {
        return Some("`Access-Control-Allow-Origin: *` is not valid with credentials".into());
    }
    if is_required && allowed != Some("*") && allowed != Some(origin) {
        let allowed = allowed.unwrap_or("no origin");
        return Some(format!(
            "{origin} is not allowed; the response allows {allowed}"
        ));
    }
    None
}

fn change_of(name: &HeaderName, sent: &[&str], arrived: &[String]) -> String {
    let text = |values: String| match values.as_str() {
        "" => "nothing".to_owned(),
        _ => format!("`{values}`"),
    };
    format!(
        "`{name}`: the pod sends {}, and {} arrives",
        text(sent.join(", ")),
        text(arrived.join(", "))
    )
}

fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    values
        .map(|value| String::from_utf8_lossy(value).trim().to_owned())
        .collect()
}

fn list(text: &str) -> Vec<String> {
    text.split(',')
        .map(|item| item.trim().to_ascii_lowercase())
        .collect()
}

fn essence(text: &str) -> String {
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn fields_that_proxies_add_or_use_are_no_change() {
        let arrived = headers(&[
            ("content-type", "text/event-stream;charset=utf-8"),
            ("cache-control", "no-store, no-transform, private"),
            ("x-content-type-options", "nosniff"),
            ("incremental", "?1"),
            ("server", "nginx"),
        ]);
        let sent = EXPECTED.into_iter().chain([("x-accel-buffering", "no")]);
        assert_eq!(changes(sent, &arrived), Vec::<String>::new());
        assert!(is_sidestream(&arrived) && is_event_stream(&arrived));
    }

    #[test]
    fn changed_removed_and_added_fields_are_named() {
        let arrived = headers(&[
            ("content-type", "text/plain"),
            ("cache-control", "public, max-age=60"),
            ("content-length", "7"),
            ("incremental", "?1"),
        ]);
        let changes = changes(EXPECTED.into_iter(), &arrived).join("\n");
        for part in [
            "`content-type: text/event-stream` arrives as `text/plain`",
            "`cache-control: no-store, no-transform` arrives as",
            "`x-content-type-options: nosniff` is removed",
            "`content-length: 7` is added",
        ] {
            assert!(changes.contains(part), "{changes}");
        }
    }

    #[test]
    fn cross_origin_fields_are_those_of_the_pod_once() {
        let allow = "access-control-allow-origin";
        let page = "https://page.example";
        let sent = vec![(allow.to_owned(), page.to_owned())];
        let fault = |arrived: &[(&'static str, &'static str)]| {
            cors_fault(Some(&sent), &headers(arrived), page, true)
        };
        assert_eq!(fault(&[(allow, "https://page.example")]), None);
        assert!(fault(&[]).unwrap().contains("nothing arrives"));
        assert!(fault(&[(allow, "*")]).unwrap().contains("`*` arrives"));
        let twice = [(allow, "https://page.example"), (allow, "*")];
        assert!(fault(&twice).unwrap().contains("several values"));
        let other = cors_fault(None, &headers(&[]), page, true).unwrap();
        assert!(other.contains("not allowed"));
        assert_eq!(cors_fault(None, &headers(&[]), page, false), None);
        assert_eq!(cors_fault(Some(&[]), &headers(&[]), page, false), None);
    }
}
