//! Headers of a message that its event keeps: the message id, and the attributes of a CloudEvent in
//! binary content mode (`ce-*`).
//!
//! Few messages have them, and every event has room for them, so they are one text: the message id,
//! then a line for each attribute with its name, a tab and its value. Header values have no line
//! ends.

/// Prefix of the headers of attributes, in lower case.
const PREFIX: &str = "ce-";

/// Most attributes of one event; further headers are ignored.
const ATTRIBUTES_MAX: usize = 64;

/// Name of the attribute with the media type of the data.
pub const CONTENT_TYPE: &str = "datacontenttype";

/// Headers of a message that its event keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventHeaders(Option<Box<str>>);

impl EventHeaders {
    /// Keeps a message id, and attributes as [`attributes`] returns them.
    #[must_use]
    pub fn new(message_id: Option<&str>, attributes: Option<&str>) -> Self {
        let message_id = message_id.unwrap_or_default();
        let text = match attributes {
            None if message_id.is_empty() => None,
            None => Some(Box::from(message_id)),
            Some(attributes) => Some(format!("{message_id}\n{attributes}").into_boxed_str()),
        };
        Self(text)
    }

    /// Bytes that it takes in memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.as_deref().map_or(0, str::len)
    }

    /// Removes and returns the message id: `Nats-Msg-Id`, only on core subjects, which are
    /// deduplicated in this process.
    pub fn take_message_id(&mut self) -> Option<Box<str>> {
        let text = self.0.take()?;
        let Some((id, attributes)) = text.split_once('\n') else {
            return Some(text);
        };
        *self = Self::new(None, Some(attributes));
        (!id.is_empty()).then(|| id.into())
    }

    /// Names and values of the attributes of a CloudEvent, as in the headers.
    pub fn cloud_event(&self) -> impl Iterator<Item = (&str, &str)> {
        let text = self.0.as_deref().unwrap_or_default();
        let lines = text.split('\n').skip(1);
        lines.filter_map(|line| line.split_once('\t'))
    }

    /// Removes the attributes of a CloudEvent.
    #[must_use]
    pub fn without_cloud_event(mut self) -> Self {
        let message_id = self.take_message_id();
        Self::new(message_id.as_deref(), None)
    }
}

/// Collects the attributes of a CloudEvent from headers: the ones with the prefix, and
/// `Content-Type` as `datacontenttype`. `None` without a header that has the prefix and a valid name.
#[must_use]
pub fn attributes<'a>(headers: impl Iterator<Item = (&'a str, &'a str)>) -> Option<String> {
    let mut attributes: Vec<(String, &str)> = Vec::new();
    let mut content_type = None;
    for (header, value) in headers {
        if header.eq_ignore_ascii_case("content-type") {
            content_type = Some((CONTENT_TYPE.to_owned(), value));
        } else if let Some(name) = attribute(header)
            && attributes.len() < ATTRIBUTES_MAX
        {
            attributes.push((name, value));
        }
    }
    if attributes.is_empty() {
        return None;
    }
    let has_type = attributes.iter().any(|(name, _)| name == CONTENT_TYPE);
    attributes.extend(content_type.filter(|_| !has_type));
    let lines = attributes
        .iter()
        .flat_map(|(name, value)| [name, "\t", value, "\n"]);
    Some(lines.collect())
}

/// True if a header has an attribute of a CloudEvent.
#[must_use]
pub fn is_attribute(header: &str) -> bool {
    let prefix = header.as_bytes().get(..PREFIX.len());
    prefix.is_some_and(|prefix| prefix.eq_ignore_ascii_case(PREFIX.as_bytes()))
}

/// Name of the attribute of a header: lower-case letters and digits, as CloudEvents requires.
fn attribute(header: &str) -> Option<String> {
    if !is_attribute(header) {
        return None;
    }
    let name = header[PREFIX.len()..].to_ascii_lowercase();
    let is_valid = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_name = !name.is_empty() && name.bytes().all(is_valid) && name != "data";
    is_name.then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_headers_with_the_prefix_and_the_content_type() {
        let headers = [
            ("Content-Type", "text/plain"),
            ("CE-Id", "7"),
            ("ce-type", "com.example\tcreated"),
            ("ce-", "no name"),
            ("ce-data", "reserved"),
            ("ce-a_b", "not a name"),
            ("Nats-Msg-Id", "7"),
        ];
        let attributes = attributes(headers.into_iter());
        let mut kept = EventHeaders::new(Some("m"), attributes.as_deref());
        let expected = [
            ("id", "7"),
            ("type", "com.example\tcreated"),
            ("datacontenttype", "text/plain"),
        ];
        assert_eq!(kept.cloud_event().collect::<Vec<_>>(), expected);
        assert_eq!(kept.take_message_id().as_deref(), Some("m"));
        assert_eq!(kept.take_message_id(), None);
        assert_eq!(kept.cloud_event().collect::<Vec<_>>(), expected);
        assert_eq!(kept.without_cloud_event(), EventHeaders::default());
    }

    #[test]
    fn message_without_attributes_keeps_its_id() {
        let without = [("Content-Type", "text/plain"), ("é-", "x"), ("ce", "x")];
        assert_eq!(attributes(without.into_iter()), None);
        let mut kept = EventHeaders::new(Some("m"), None);
        assert_eq!(kept.cloud_event().count(), 0);
        assert_eq!(kept.take_message_id().as_deref(), Some("m"));
        assert_eq!(kept, EventHeaders::default());
        assert_eq!(EventHeaders::new(None, None).take_message_id(), None);
    }
}
