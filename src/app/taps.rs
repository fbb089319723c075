//! Taps of the admin port on the routes in force.

use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;

use crate::feed::{Cursor, OpenError};
use crate::http::{self, TapError};
use crate::subject::Unfilled;
use crate::{admin, admin::TapRequest};

/// Routes of the context, which is set once the admin port runs.
#[derive(Clone, Debug, Default)]
pub(super) struct RouteTaps(pub(super) Arc<OnceLock<Arc<http::Context>>>);

impl admin::Taps for RouteTaps {
    fn routes(&self) -> Vec<admin::TapRoute> {
        let routes = self.0.get().map(|context| context.routes());
        let routes = routes.iter().flat_map(|routes| routes.tap_routes());
        let shown = |route: http::TapRoute| admin::TapRoute {
            route: route.route.to_string(),
            subjects: route.subjects,
            variables: route.variables,
        };
        routes.map(shown).collect()
    }

    fn open(
        &self,
        request: TapRequest,
    ) -> BoxFuture<'static, Result<Vec<Cursor>, admin::TapError>> {
        let context = self.0.get().cloned();
        Box::pin(async move {
            let context = context.ok_or(admin::TapError::Unavailable("the sidecar is starting"))?;
            let opened = context
                .routes()
                .open_tap(&request.route, &request.values)
                .await;
            opened.map_err(admin_error)
        })
    }
}

fn admin_error(error: TapError) -> admin::TapError {
    match error {
        TapError::UnknownRoute => admin::TapError::UnknownRoute,
        TapError::Filter(Unfilled::NotAllowed(filter)) => {
            admin::TapError::NotAllowed(format!("this route does not allow {filter}"))
        }
        TapError::Filter(Unfilled::Filter(invalid)) => {
            admin::TapError::Filter(invalid.explain().to_string())
        }
        TapError::Filter(Unfilled::Missing(variable) | Unfilled::Token(variable)) => {
            let message = format!("the value of {variable} is not one token of a subject");
            admin::TapError::Filter(message)
        }
        TapError::Source(error) => admin::TapError::Unavailable(match error {
            OpenError::Rejected => "NATS rejects the subscription; the checks have the reason",
            OpenError::TooManyFeeds => "`limits.feeds` is reached",
            OpenError::NotReady | OpenError::TooManyReplays | OpenError::StateTooLarge => {
                "NATS is not available; the checks have the reason"
            }
        }),
    }
}
