//! A client that a drain has sent away and that comes back without its position: where it goes on.

use std::sync::Arc;

use super::context::Context;
use super::event_stream::Opening;
use crate::feed::Source;
use crate::registry::{Handover, Wanted};
use crate::subject::FilterSet;

/// What was left for it, if anything was. A client that has its position itself does not wait; what was left for it is
/// taken out of the way of whoever comes next under its name.
pub(super) async fn find(context: &Context, asked: &Opening) -> Option<Handover> {
    let cluster = context.registry.cluster()?;
    let wanted = wanted(asked)?;
    if wanted.last_event_id.is_none() {
        return cluster.take_over(wanted).await;
    }
    let cluster = Arc::clone(cluster);
    // The registry bounds how many of these look at a time, and how long.
    tokio::spawn(async move { drop(cluster.take_over(wanted).await) });
    None
}

/// Leaves it to the next try: nothing was opened.
pub(super) async fn give_back(context: &Context, handover: Handover) {
    if let Some(cluster) = context.registry.cluster() {
        cluster.give_back(handover).await;
    }
}

/// What to look for; nothing where nobody can come back: the route does not say who a client is, this client has no name
/// by it, or no source of the route has positions that another pod knows.
fn wanted(asked: &Opening) -> Option<Wanted> {
    let resumable = asked.route.sources.iter().any(|source| !matches!(source.source, Source::OnDemand(_)));
    (resumable && asked.is_named).then(|| Wanted {
        client: asked.client.to_string(),
        route: asked.route.label.to_string(),
        subjects: asked.filters.iter().flat_map(FilterSet::filters).map(ToString::to_string).collect(),
        last_event_id: asked.last_event_id.as_ref().map(|id| String::from_utf8_lossy(id).into_owned()),
    })
}
