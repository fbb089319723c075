//! Tickets with a store in memory.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use serde_json::{Value, json};

use super::{
    ENTRY_BYTES_MAX, IssueFailure, IssueResult, PutError, TicketKey, TicketStore, Tickets,
    Unavailable,
};
use crate::auth::clock::Now;
use crate::auth::{AuthFailure, Identity, Principal};
use crate::telemetry::Metrics;

/// Store in memory, which can be full or not available.
#[derive(Debug, Default)]
struct MemoryStore {
    entries: Mutex<HashMap<String, Vec<u8>>>,
    failure: Mutex<Option<PutError>>,
}

impl TicketStore for MemoryStore {
    fn put(&self, key: TicketKey, entry: Vec<u8>) -> BoxFuture<'_, Result<(), PutError>> {
        async move {
            if let Some(failure) = *self.failure.lock().unwrap() {
                return Err(failure);
            }
            let mut entries = self.entries.lock().unwrap();
            entries.insert(key.as_str().to_owned(), entry);
            Ok(())
        }
        .boxed()
    }

    fn take(&self, key: TicketKey) -> BoxFuture<'_, Result<Option<Vec<u8>>, Unavailable>> {
        async move {
            if self.failure.lock().unwrap().is_some() {
                return Err(Unavailable);
            }
            Ok(self.entries.lock().unwrap().remove(key.as_str()))
        }
        .boxed()
    }
}

struct Fixture {
    store: Arc<MemoryStore>,
    metrics: Metrics,
    tickets: Tickets,
}

fn fixture(ttl: Duration) -> Fixture {
    let store = Arc::new(MemoryStore::default());
    let metrics = Metrics::new().unwrap();
    let tickets = Tickets::new(store.clone(), ttl, &metrics);
    Fixture {
        store,
        metrics,
        tickets,
    }
}

const TTL: Duration = Duration::from_secs(30);

fn identity(claims: Value, expires_in: Option<Duration>) -> Identity {
    let Value::Object(claims) = claims else {
        panic!("claims are an object")
    };
    let now = Now::read();
    let expires = expires_in.and_then(|left| now.expiry(now.wall + left, Duration::from_secs(5)));
    Identity {
        provider: "idp".into(),
        subject: "alice".into(),
        claims,
        expires,
    }
}

fn invalid(principal: Result<Principal, AuthFailure>) -> &'static str {
    match principal {
        Err(AuthFailure::Invalid { description }) => description,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ticket_is_valid_once_and_its_principal_has_the_claims_and_the_expiry() {
    let fixture = fixture(TTL);
    let claims = json!({ "sub": "alice", "jti": "1", "org": { "id": 7 } });
    let buyer = identity(claims, Some(Duration::from_secs(3600)));
    let issued = fixture.tickets.issue(&buyer).await.unwrap();
    assert_eq!(issued.expires_in, TTL);
    let stored = fixture.store.entries.lock().unwrap().clone();
    let (key, entry) = stored.iter().next().unwrap();
    assert!(!key.contains(issued.ticket.as_str()));
    assert!(!String::from_utf8_lossy(entry).contains(issued.ticket.as_str()));

    let ticket = issued.ticket.as_str();
    let all = join_all((0..20).map(|_| fixture.tickets.redeem(ticket, |name| name == "idp")));
    let mut principals: Vec<_> = all.await.into_iter().filter_map(Result::ok).collect();
    assert_eq!(principals.len(), 1);
    let Some(Principal::Identified(redeemed)) = principals.pop() else {
        panic!("a ticket has an identity")
    };
    assert_eq!(redeemed.provider, buyer.provider);
    assert_eq!(redeemed.subject, buyer.subject);
    assert_eq!(redeemed.claims, buyer.claims);
    let (before, after) = (buyer.expires.unwrap(), redeemed.expires.unwrap());
    assert_eq!(after.unix_seconds, before.unix_seconds);
    assert_eq!(after.end - after.at, Duration::from_secs(5));
    // The entry has whole seconds.
    assert!(before.end.saturating_duration_since(after.end) <= Duration::from_secs(1));
    assert!(after.end <= before.end + Duration::from_millis(100));
    let count = |result| {
        fixture
            .metrics
            .ticket_redemptions_total
            .with_label_values(&[result])
    };
    assert_eq!(count("redeemed").get(), 1);
    assert_eq!(count("invalid").get(), 19);
}

#[tokio::test]
async fn ticket_of_another_provider_is_rejected_and_spent() {
    let fixture = fixture(TTL);
    let issued = fixture
        .tickets
        .issue(&identity(json!({}), None))
        .await
        .unwrap();
    let ticket = issued.ticket.as_str();
    let other = fixture.tickets.redeem(ticket, |name| name == "app").await;
    assert_eq!(invalid(other), "the ticket is for other routes");
    let again = fixture.tickets.redeem(ticket, |_| true).await;
    assert_eq!(
        invalid(again),
        "the ticket is unknown, expired or already used"
    );
}

#[tokio::test]
async fn expired_tickets_and_tickets_of_expired_credentials_are_invalid() {
    let expired = fixture(Duration::ZERO);
    let issued = expired
        .tickets
        .issue(&identity(json!({}), None))
        .await
        .unwrap();
    let redeemed = expired
        .tickets
        .redeem(issued.ticket.as_str(), |_| true)
        .await;
    assert_eq!(
        invalid(redeemed),
        "the ticket is unknown, expired or already used"
    );

    let fixture = fixture(TTL);
    let short = identity(json!({}), Some(Duration::from_secs(2)));
    let issued = fixture.tickets.issue(&short).await.unwrap();
    assert!(
        issued.expires_in <= Duration::from_secs(7),
        "{:?}",
        issued.expires_in
    );
    let redeemed = fixture.tickets.redeem("not a ticket", |_| true).await;
    assert_eq!(invalid(redeemed), "this is not a ticket");
}

#[tokio::test]
async fn each_failure_of_the_store_has_its_result() {
    let fixture = fixture(TTL);
    let large = "x".repeat(ENTRY_BYTES_MAX);
    let large = identity(json!({ "roles": large }), None);
    let rejected = fixture.tickets.issue(&large).await.unwrap_err();
    assert_eq!(rejected, IssueFailure::TooLarge);
    let small = identity(json!({}), None);
    let issued = fixture.tickets.issue(&small).await.unwrap();

    *fixture.store.failure.lock().unwrap() = Some(PutError::Full);
    let rejected = fixture.tickets.issue(&small).await.unwrap_err();
    assert_eq!(rejected, IssueFailure::Full);
    *fixture.store.failure.lock().unwrap() = Some(PutError::Unavailable);
    let rejected = fixture.tickets.issue(&small).await.unwrap_err();
    assert!(matches!(rejected, IssueFailure::Unavailable { .. }));
    let redeemed = fixture
        .tickets
        .redeem(issued.ticket.as_str(), |_| true)
        .await;
    assert!(matches!(redeemed, Err(AuthFailure::Unavailable { .. })));

    fixture.tickets.count_issue(IssueResult::Throttled);
    for result in IssueResult::ALL {
        let count = fixture
            .metrics
            .ticket_issues_total
            .with_label_values(&[result.as_str()]);
        assert_eq!(count.get(), 1, "{result:?}");
    }
}

#[tokio::test]
async fn entry_of_another_writer_is_not_a_ticket() {
    let fixture = fixture(TTL);
    let ticket = "A".repeat(43);
    let key = TicketKey::of(&ticket).unwrap().as_str().to_owned();
    for entry in ["", "null", "{}", "not JSON"] {
        let entry = entry.as_bytes().to_vec();
        fixture
            .store
            .entries
            .lock()
            .unwrap()
            .insert(key.clone(), entry);
        let redeemed = fixture.tickets.redeem(&ticket, |_| true).await;
        assert_eq!(
            invalid(redeemed),
            "the ticket is unknown, expired or already used"
        );
    }
}
