//! Filters of an operator, within the reach of a route: a variable without a value matches any.

use super::{Piece, SubjectTemplate, allowed, is_token};
use crate::subject::{Allow, Bounds, Filter, Unfilled, Variables};

impl SubjectTemplate {
    /// Returns the filters that the values of some variables select from the reach of the template:
    /// `*` for a variable without a value, every filter of `allow` for a whole variable without one.
    /// Claims do not narrow it: they belong to clients.
    ///
    /// # Errors
    /// [`Unfilled`] if a value is invalid, or the result is outside of the reach.
    pub fn narrow(
        &self,
        variables: &dyn Variables,
        allow: &Allow,
    ) -> Result<Vec<Filter>, Unfilled> {
        if let ([Piece::Variable(variable)], false) = (&self.tokens[..], allow.is_empty()) {
            let (values, reach) = (variables.values(variable), self.reach(allow));
            let bounds = Bounds::from(&reach[..]);
            if values.is_empty() {
                return Ok(reach);
            }
            return values.iter().map(|value| allowed(value, &bounds)).collect();
        }
        let mut tokens = Vec::with_capacity(self.tokens.len());
        for piece in &self.tokens {
            let Piece::Variable(variable) = piece else {
                let Piece::Text(text) = piece else { continue };
                tokens.push(text.to_string());
                continue;
            };
            match variables.values(variable).first() {
                None => tokens.push("*".to_owned()),
                Some(value) if is_token(value) => tokens.push(value.to_string()),
                Some(_) => return Err(Unfilled::Token(variable.clone())),
            }
        }
        let bounds = Bounds::from(&allow.filters[..]);
        allowed(&tokens.join("."), &bounds).map(|filter| vec![filter])
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::subject::{ClaimPath, Variable};

    struct Values(&'static [(&'static str, &'static str)]);

    impl Variables for Values {
        fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
            let name = variable.to_string();
            let found = self.0.iter().filter(|(known, _)| *known == name);
            found.map(|(_, value)| Cow::Borrowed(*value)).collect()
        }
    }

    fn narrow(
        template: &str,
        allow: &Allow,
        values: &'static [(&'static str, &'static str)],
    ) -> Result<Vec<String>, Unfilled> {
        let filters = SubjectTemplate::parse(template)
            .unwrap()
            .narrow(&Values(values), allow)?;
        Ok(filters.iter().map(ToString::to_string).collect())
    }

    fn allow(filters: &[&str]) -> Allow {
        Allow {
            filters: filters
                .iter()
                .map(|filter| Filter::parse(filter).unwrap())
                .collect(),
            claims: Vec::new(),
        }
    }

    #[test]
    fn variable_without_a_value_matches_any_token() {
        let any = Allow::default();
        let template = "orders.{id}.{claim.sub}.>";
        assert_eq!(narrow(template, &any, &[]).unwrap(), ["orders.*.*.>"]);
        assert_eq!(
            narrow(template, &any, &[("{id}", "42")]).unwrap(),
            ["orders.42.*.>"]
        );
        for value in ["4.2", "*", ">", "", "a b"] {
            let values: &'static _ = vec![("{id}", value)].leak();
            assert!(
                matches!(narrow(template, &any, values), Err(Unfilled::Token(_))),
                "{value:?}"
            );
        }
    }

    #[test]
    fn filter_of_a_whole_variable_lies_within_the_reach_of_the_route() {
        let orders = allow(&["orders.>", "alerts"]);
        let template = "{query.subject}";
        assert_eq!(
            narrow(template, &orders, &[]).unwrap(),
            ["orders.>", "alerts"]
        );
        let values = &[
            ("{query.subject}", "orders.42.*"),
            ("{query.subject}", "alerts"),
        ];
        assert_eq!(
            narrow(template, &orders, values).unwrap(),
            ["orders.42.*", "alerts"]
        );
        for outside in ["users.>", ">", "*.42"] {
            let values: &'static _ = vec![("{query.subject}", outside)].leak();
            assert!(
                matches!(
                    narrow(template, &orders, values),
                    Err(Unfilled::NotAllowed(_))
                ),
                "{outside}"
            );
        }
        let claims = Allow {
            filters: Vec::new(),
            claims: vec![ClaimPath::parse(".subscribe").unwrap()],
        };
        assert_eq!(narrow(template, &claims, &[]).unwrap(), [">"]);
    }
}
