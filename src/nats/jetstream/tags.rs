//! Source tags of all streams: an event id finds its source by the tag, so tags are unique.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::api::JetStreamError;
use crate::event::SourceTag;

/// Tags of all known streams, by stream name.
#[derive(Debug, Default)]
pub(crate) struct SourceTags(Mutex<HashMap<String, Claim>>);

#[derive(Debug)]
struct Claim {
    tag: SourceTag,
    identity: Option<String>,
}

impl SourceTags {
    /// Assigns a tag to a stream and releases its previous one.
    ///
    /// # Errors
    /// [`JetStreamError::TagCollision`] if another stream has the tag. Streams with the same
    /// identity share theirs on purpose.
    pub(crate) fn claim(
        &self,
        stream: &str,
        identity: Option<&str>,
        tag: SourceTag,
    ) -> Result<(), JetStreamError> {
        let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_other = |claim: &Claim| {
            claim.tag == tag && (claim.identity.is_none() || claim.identity.as_deref() != identity)
        };
        let other = claims
            .iter()
            .find(|(name, claim)| *name != stream && is_other(claim));
        if let Some((other, _)) = other {
            return Err(JetStreamError::TagCollision {
                other: other.clone(),
                tag,
            });
        }
        claims.insert(
            stream.to_owned(),
            Claim {
                tag,
                identity: identity.map(ToOwned::to_owned),
            },
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_collision_names_both_streams_and_the_remedy() {
        let tags = SourceTags::default();
        let tag = SourceTag::of_stream("A", 1);
        assert_eq!(tags.claim("A", None, tag), Ok(()));
        assert_eq!(
            tags.claim("A", None, tag),
            Ok(()),
            "a stream has its own tag again after a reconnect"
        );
        let error = tags.claim("B", None, tag).unwrap_err();
        let text = error.explain("B");
        assert!(
            text.contains("stream B") && text.contains("stream A") && text.contains("`identity`"),
            "{text}"
        );
        assert_eq!(
            tags.claim("B", Some("b"), tag),
            Err(error),
            "whatever the tag was made from"
        );
        // A recreated stream releases its old tag.
        assert_eq!(tags.claim("A", None, SourceTag::of_stream("A", 2)), Ok(()));
        assert_eq!(tags.claim("B", None, tag), Ok(()));
    }

    #[test]
    fn mirror_and_origin_share_the_tag_of_their_identity() {
        let tags = SourceTags::default();
        let tag = SourceTag::of_identity("orders");
        assert_eq!(tags.claim("A", Some("orders"), tag), Ok(()));
        assert_eq!(tags.claim("MIRROR", Some("orders"), tag), Ok(()));
        assert!(tags.claim("C", None, tag).is_err());
    }
}
