//! Tap: readers of a route's events for the operator, without a request of a client.
//!
//! A tap reads what the clients of a route can read together: its subjects with any value for each
//! variable, within `allow`. The operator may narrow that by values. The events are encoded as
//! NDJSON, under the names and in the version of the route; they begin with the next one. A tap is no
//! client: limits, presence and the metrics of event streams do not count it.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use crate::encoding::Framing;
use crate::feed::{Cursor, FeedOptions, Limits, OpenError, Start};
use crate::http::route::{Route, Routes};
use crate::subject::{FilterSet, SubjectTemplate, Unfilled, Variable, Variables};

/// 256 events, 1 MiB, 1 min: a tap skips what it does not show at once. With limits of its own it
/// has its own feed, so it costs the clients of a feed nothing.
const WINDOW: Limits = Limits {
    events: 256,
    bytes: 1 << 20,
    age: Duration::from_secs(60),
};

/// Route that can be tapped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapRoute {
    /// Path as configured.
    pub route: Arc<str>,
    /// Subjects and filters of `allow`, as configured.
    pub subjects: Vec<String>,
    /// Variables of the subjects, as written, with braces.
    pub variables: Vec<String>,
}

/// Reason why a tap cannot be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapError {
    /// No route has this path.
    UnknownRoute,
    /// A value is not valid, or outside of the reach of the route.
    Filter(Unfilled),
    /// A source is not available.
    Source(OpenError),
}

/// Values of an operator: the names of variables, as written, and their values.
struct Values<'v>(&'v [(String, String)]);

impl Variables for Values<'_> {
    fn values(&self, variable: &Variable) -> Vec<Cow<'_, str>> {
        let name = variable.to_string();
        let found = self.0.iter().filter(|(known, _)| *known == name);
        found.map(|(_, value)| Cow::Borrowed(&**value)).collect()
    }
}

impl Routes {
    /// Returns the routes in the order of the configuration.
    #[must_use]
    pub fn tap_routes(&self) -> Vec<TapRoute> {
        self.routes.iter().map(|route| tap_route(route)).collect()
    }

    /// Opens a reader of each source of a route. `values`: names of variables, as written, and their
    /// values; a variable without a value matches any.
    ///
    /// # Errors
    /// [`TapError`]
    pub async fn open_tap(
        &self,
        path: &str,
        values: &[(String, String)],
    ) -> Result<Vec<Cursor>, TapError> {
        let mut routes = self.routes.iter();
        let route = routes
            .find(|route| &*route.label == path)
            .ok_or(TapError::UnknownRoute)?;
        let version = route.config.versions.as_ref();
        let of_clients = route.options(
            Framing::Ndjson,
            None,
            version.map(|versions| versions.current),
        );
        let options = Arc::new(FeedOptions {
            window: WINDOW,
            // The end of one client's events is not that of the tap.
            is_finite: false,
            ..FeedOptions::clone(&of_clients.options)
        });
        let mut cursors = Vec::with_capacity(route.sources.len());
        for source in &route.sources {
            let mut filters = Vec::new();
            for template in &source.subjects {
                let narrowed = template.narrow(&Values(values), &source.allow);
                filters.extend(narrowed.map_err(TapError::Filter)?);
            }
            let opened = source
                .source
                .open(FilterSet::new(filters), &options, Start::Live)
                .await;
            cursors.push(opened.map_err(TapError::Source)?.cursor);
        }
        Ok(cursors)
    }
}

fn tap_route(route: &Route) -> TapRoute {
    let subjects = route.sources.iter().flat_map(|source| {
        let allow = source.allow.filters.iter().map(ToString::to_string);
        let is_bounded = source
            .subjects
            .iter()
            .any(SubjectTemplate::is_whole_variable);
        let subjects = source
            .subjects
            .iter()
            .map(|template| template.as_str().to_owned());
        subjects.chain(allow.filter(move |_| is_bounded))
    });
    let variables: BTreeSet<String> = route
        .sources
        .iter()
        .flat_map(|source| &source.subjects)
        .flat_map(SubjectTemplate::variables)
        .map(ToString::to_string)
        .collect();
    TapRoute {
        route: route.label.clone(),
        subjects: subjects.collect(),
        variables: variables.into_iter().collect(),
    }
}
