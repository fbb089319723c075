//! `allow` of a source: the filters within which the subjects of a request must lie.
//!
//! An entry is a filter, or a claim whose value is a list of filters. Filters are the reach of the
//! route and of the pod's consumer; claims narrow it for one principal:
//!
//! ```text
//! allow: ["orders.>", "{claim.subscribe}"]     subscribe: ["orders.42.>", "users.>"]
//! orders.42.created   admitted: within `orders.>` and within `orders.42.>`
//! orders.7.created    not within a filter of the claim
//! users.alice         not within a filter of the route
//! ```

use std::borrow::Cow;

use super::{ClaimPath, Filter, Unfilled, Variable, Variables};

/// Entries of `allow`. Without an entry every subject is admitted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allow {
    /// Filters of the configuration.
    pub filters: Vec<Filter>,
    /// Claims whose values are filters.
    pub claims: Vec<ClaimPath>,
}

/// Bounds of the subjects of one request.
#[derive(Clone, Debug)]
pub struct Bounds<'a> {
    filters: &'a [Filter],
    /// Filters of the claims; `None` if no entry is a claim.
    claimed: Option<Vec<Filter>>,
}

impl Allow {
    /// True if every subject is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.claims.is_empty()
    }

    /// Number of entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filters.len() + self.claims.len()
    }

    /// Returns the bounds of a request.
    ///
    /// The value of a claim is a filter or a list of filters. A part of it that is not a valid
    /// filter admits nothing.
    ///
    /// # Errors
    /// [`Unfilled::Missing`] if the principal has none of the claims.
    pub fn bounds(&self, variables: &dyn Variables) -> Result<Bounds<'_>, Unfilled> {
        let filters = &self.filters[..];
        let Some(first) = self.claims.first() else {
            return Ok(Bounds {
                filters,
                claimed: None,
            });
        };
        let values: Vec<Vec<Cow<'_, str>>> = self
            .claims
            .iter()
            .filter_map(|claim| variables.claim_list(claim))
            .collect();
        if values.is_empty() {
            return Err(Unfilled::Missing(Variable::Claim(first.clone())));
        }
        let claimed = values
            .iter()
            .flatten()
            .filter_map(|text| Filter::parse(text).ok())
            .collect();
        Ok(Bounds {
            filters,
            claimed: Some(claimed),
        })
    }
}

impl<'a> Bounds<'a> {
    /// Bounds of the configuration's filters and those of the claims.
    #[must_use]
    pub fn new(filters: &'a [Filter], claimed: Option<&[Filter]>) -> Self {
        Self {
            filters,
            claimed: claimed.map(<[Filter]>::to_vec),
        }
    }

    /// Filters of the claims; `None` if no entry is a claim.
    #[must_use]
    pub fn into_claimed(self) -> Option<Vec<Filter>> {
        self.claimed
    }

    /// True if every subject is admitted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filters.is_empty() && self.claimed.is_none()
    }

    /// Returns whether a filter lies within one of the configuration's filters and within one of
    /// the claims' filters.
    #[must_use]
    pub fn admits(&self, filter: &Filter) -> bool {
        let is_within = |filters: &[Filter]| filters.iter().any(|wide| wide.covers(filter));
        (self.filters.is_empty() || is_within(self.filters))
            && self.claimed.as_deref().is_none_or(is_within)
    }
}

/// Bounds of the configuration alone.
impl<'a> From<&'a [Filter]> for Bounds<'a> {
    fn from(filters: &'a [Filter]) -> Self {
        Self {
            filters,
            claimed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Claim `subscribe` of a principal, if it has one.
    struct Claim(Option<&'static [&'static str]>);

    impl Variables for Claim {
        fn values(&self, _: &Variable) -> Vec<Cow<'_, str>> {
            Vec::new()
        }

        fn claim_list(&self, claim: &ClaimPath) -> Option<Vec<Cow<'_, str>>> {
            let texts = self.0.filter(|_| claim.to_string() == ".subscribe")?;
            Some(texts.iter().map(|text| Cow::Borrowed(*text)).collect())
        }
    }

    fn allow(filters: &[&str], claims: &[&str]) -> Allow {
        Allow {
            filters: filters
                .iter()
                .map(|text| Filter::parse(text).unwrap())
                .collect(),
            claims: claims
                .iter()
                .map(|text| ClaimPath::parse(text).unwrap())
                .collect(),
        }
    }

    #[test]
    fn subject_lies_within_a_filter_of_the_route_and_within_one_of_the_claim() {
        let narrowed = allow(&["orders.>", "alerts"], &[".subscribe"]);
        let open = allow(&[], &[".subscribe"]);
        let claim: &[&str] = &["orders.42.>", "users.*", "not..a.filter", "$SYS.>"];
        for (subject, is_narrowed, is_open) in [
            ("orders.42.created", true, true),
            ("orders.42.>", true, true),
            ("orders.42", false, false),
            ("orders.7.created", false, false),
            ("orders.>", false, false),
            ("alerts", false, false),
            ("users.alice", false, true),
            ("users.>", false, false),
            (">", false, false),
        ] {
            let filter = Filter::parse(subject).unwrap();
            let claim = Claim(Some(claim));
            for (allow, expected) in [(&narrowed, is_narrowed), (&open, is_open)] {
                let bounds = allow.bounds(&claim).unwrap();
                assert_eq!(bounds.admits(&filter), expected, "{subject} in {allow:?}");
            }
        }
    }

    #[test]
    fn claims_are_alternatives_and_one_of_them_must_exist() {
        let allow = allow(&[], &[".other", ".subscribe"]);
        let filter = Filter::parse("orders.1").unwrap();
        let bounds = allow.bounds(&Claim(Some(&["orders.*"])));
        assert!(bounds.unwrap().admits(&filter));
        let none = allow.bounds(&Claim(Some(&[])));
        assert!(
            !none.unwrap().admits(&filter),
            "an empty list admits nothing"
        );
        let missing = allow.bounds(&Claim(None)).unwrap_err();
        let first = Variable::Claim(ClaimPath::parse(".other").unwrap());
        assert_eq!(missing, Unfilled::Missing(first));
    }

    #[test]
    fn without_an_entry_every_subject_is_admitted() {
        let allow = Allow::default();
        let bounds = allow.bounds(&Claim(None)).unwrap();
        assert!(allow.is_empty() && bounds.is_empty());
        assert!(bounds.admits(&Filter::parse(">").unwrap()));
    }
}
