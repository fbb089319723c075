//! Which tag belongs to which stream: ids find their source by it, so no two streams may share one.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::api::JetStreamError;
use crate::sse::SourceTag;

/// The tags of all streams that were heard from, each under the name of its stream.
#[derive(Debug, Default)]
pub(crate) struct SourceTags(Mutex<HashMap<String, Claim>>);

#[derive(Debug)]
struct Claim {
    tag: SourceTag,
    identity: Option<String>,
}

impl SourceTags {
    /// Takes a tag for a stream, in the place of the one that it had.
    ///
    /// # Errors
    /// [`JetStreamError::Collision`] when another stream has it. Those of one identity share theirs on purpose.
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
            return Err(JetStreamError::Collision {
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
    fn two_streams_with_one_tag_are_told_by_name_and_the_way_out() {
        let tags = SourceTags::default();
        let tag = SourceTag::of_stream("A", 1);
        assert_eq!(tags.claim("A", None, tag), Ok(()));
        assert_eq!(
            tags.claim("A", None, tag),
            Ok(()),
            "a stream has its own tag again after a reconnect"
        );
        let trouble = tags.claim("B", None, tag).unwrap_err();
        let text = trouble.explain("B");
        assert!(
            text.contains("stream B") && text.contains("stream A") && text.contains("`identity`"),
            "{text}"
        );
        assert_eq!(
            tags.claim("B", Some("b"), tag),
            Err(trouble),
            "whatever the tag was made from"
        );
        // A stream that was created anew gives its old tag back.
        assert_eq!(tags.claim("A", None, SourceTag::of_stream("A", 2)), Ok(()));
        assert_eq!(tags.claim("B", None, tag), Ok(()));
    }

    #[test]
    fn a_mirror_and_its_origin_share_the_tag_of_their_identity() {
        let tags = SourceTags::default();
        let tag = SourceTag::of_identity("orders");
        assert_eq!(tags.claim("A", Some("orders"), tag), Ok(()));
        assert_eq!(tags.claim("MIRROR", Some("orders"), tag), Ok(()));
        assert!(tags.claim("C", None, tag).is_err());
    }
}
