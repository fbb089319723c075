//! Limits of clients, with and without claims, and the bound of the table.

use serde_json::json;

use super::*;
use crate::limit::PerClientClaims;
use crate::subject::ClaimPath;

fn clients(config: PerClient) -> Arc<ClientLimiter> {
    let clients = ClientLimiter::new();
    clients.set(config.into());
    clients
}

/// Opens an event stream of an anonymous client without filter sets.
fn acquire(clients: &Arc<ClientLimiter>, id: &str) -> Result<Option<ClientPermit>, Throttled> {
    clients.acquire(id, &Principal::Anonymous, [])
}

#[test]
fn table_is_empty_without_limits() {
    let clients = ClientLimiter::new();
    assert!(acquire(&clients, "a").unwrap().is_none());
    assert!(clients.is_empty());
}

#[test]
fn open_event_streams_are_limited_per_client() {
    let clients = clients(PerClient {
        connections: Some(2),
        ..PerClient::default()
    });
    let (one, _two) = (
        acquire(&clients, "a").unwrap(),
        acquire(&clients, "a").unwrap(),
    );
    for _ in 0..3 {
        assert_eq!(
            acquire(&clients, "a").unwrap_err(),
            Throttled {
                limit: Limit::Connections,
                wait: None
            }
        );
    }
    assert!(acquire(&clients, "b").is_ok());
    drop(one);
    assert!(
        acquire(&clients, "a").is_ok(),
        "rejected attempts are not counted"
    );
}

#[test]
fn different_filter_sets_are_limited_per_client() {
    let clients = clients(PerClient {
        filter_sets: Some(2),
        ..PerClient::default()
    });
    let read = |id: &str, filter_sets: &[u64]| {
        let filter_sets = filter_sets.iter().copied();
        let permit = clients.acquire(id, &Principal::Anonymous, filter_sets)?;
        Ok::<_, Throttled>(permit.unwrap())
    };
    let (one, _two) = (read("a", &[1]).unwrap(), read("a", &[2]).unwrap());
    let throttled = read("a", &[3]).unwrap_err();
    assert_eq!(
        throttled,
        Throttled {
            limit: Limit::FilterSets,
            wait: None
        }
    );
    let again: Vec<ClientPermit> = (0..100).map(|_| read("a", &[1]).unwrap()).collect();
    assert!(read("b", &[3]).is_ok(), "another client has its own limit");
    drop(one);
    assert!(read("a", &[3]).is_err(), "the set is still read");
    drop(again);
    assert!(
        read("a", &[3]).is_ok(),
        "a set without readers does not count"
    );
    assert!(
        read("c", &[4, 5, 6]).is_ok(),
        "the first event stream is served whatever the number of its sources"
    );
}

#[test]
fn opening_event_streams_is_rate_limited_after_a_burst() {
    let clients = clients(PerClient {
        connects: Some(Rate::new(1, 3)),
        ..PerClient::default()
    });
    for _ in 0..3 {
        assert!(acquire(&clients, "a").is_ok());
    }
    let throttled = acquire(&clients, "a").unwrap_err();
    assert_eq!(throttled.limit, Limit::Connects);
    assert!(throttled.wait.is_some_and(
        |wait| wait > Duration::from_millis(500) && wait <= Duration::from_secs(1)
    ));
    assert!(acquire(&clients, "b").is_ok());
}

#[test]
fn changed_limits_apply_to_open_event_streams() {
    let clients = clients(PerClient {
        connections: Some(5),
        ..PerClient::default()
    });
    let permit = acquire(&clients, "a").unwrap().unwrap();
    assert!(permit.events().is_none());
    clients.set(PerClientConfig::from(PerClient {
        connections: Some(1),
        events: Some(Rate::new(1, 1)),
        ..PerClient::default()
    }));
    assert!(acquire(&clients, "a").is_err());
    let events = permit.events().unwrap();
    assert!(events.take(1).is_ok() && events.take(1).is_err());
}

#[test]
fn table_is_bounded_and_keeps_clients_with_open_event_streams() {
    let clients = clients(PerClient {
        connections: Some(1),
        ..PerClient::default()
    });
    let open: Vec<_> = (0..100)
        .map(|number| acquire(&clients, &format!("open-{number}")).unwrap())
        .collect();
    for number in 0..CLIENTS_MAX * 2 {
        assert!(acquire(&clients, &format!("gone-{number}")).is_ok());
    }
    assert!(clients.len() <= CLIENTS_MAX, "{}", clients.len());
    for number in 0..open.len() {
        assert!(acquire(&clients, &format!("open-{number}")).is_err());
    }
}

/// Limiter with fixed limits, and with claims for all of them.
fn with_claims(fixed: PerClient) -> (Arc<ClientLimiter>, PerClientClaims) {
    let claim = |path: &str| vec![ClaimPath::parse(path).unwrap()];
    let claims = PerClientClaims {
        connections: claim(".connections"),
        filter_sets: claim(".filter_sets"),
        connects: claim(".connects"),
        events: claim(".events"),
    };
    let clients = ClientLimiter::new();
    let config = PerClientConfig {
        fixed,
        claims: claims.clone(),
    };
    clients.set(config);
    (clients, claims)
}

fn rate(permit: &ClientPermit) -> Option<Rate> {
    let buckets = permit.client.buckets.load();
    buckets.events.as_ref().map(Bucket::rate)
}

#[test]
fn claims_come_before_fixed_limits() {
    let (clients, _) = with_claims(PerClient {
        connections: Some(1),
        filter_sets: Some(2),
        ..PerClient::default()
    });
    let premium = Principal::with_claims(json!({ "connections": 3, "filter_sets": 4 }));
    let open = |id: &str, principal: &Principal, filter_set: u64| {
        clients.acquire(id, principal, [filter_set])
    };
    let held: Vec<_> = (1..=3).map(|n| open("p", &premium, n).unwrap()).collect();
    assert_eq!(
        open("p", &premium, 1).unwrap_err().limit,
        Limit::Connections
    );
    let _basic = open("b", &Principal::with_claims(json!({})), 1).unwrap();
    let rejected = open("b", &Principal::Anonymous, 1).unwrap_err();
    assert_eq!(rejected.limit, Limit::Connections);
    drop(held);
    let more = Principal::with_claims(json!({ "connections": 100 }));
    let _two = [1, 2].map(|n| open("p", &more, n).unwrap());
    assert_eq!(open("p", &more, 3).unwrap_err().limit, Limit::FilterSets);
    let _three = open("p", &premium, 3).unwrap();
    let rejected = open("p", &premium, 4).unwrap_err();
    assert_eq!(rejected.limit, Limit::Connections);
}

#[test]
fn client_is_limited_by_its_claims_alone() {
    let (clients, _) = with_claims(PerClient::default());
    assert!(acquire(&clients, "a").unwrap().is_none());
    assert!(clients.is_empty(), "clients without limits take no memory");
    let limited = Principal::with_claims(json!({ "connects": { "rate": 1, "burst": 1 } }));
    assert!(clients.acquire("a", &limited, []).unwrap().is_some());
    let throttled = clients.acquire("a", &limited, []).unwrap_err();
    assert_eq!(throttled.limit, Limit::Connects);
}

#[test]
fn rates_from_claims_stay_at_a_reload_and_fixed_ones_change() {
    let events = Some(Rate::new(10, 10));
    let (clients, claims) = with_claims(PerClient {
        events,
        ..PerClient::default()
    });
    let claimed = Principal::with_claims(json!({ "events": { "rate": 5, "burst": 5 } }));
    let one = clients.acquire("one", &claimed, []).unwrap().unwrap();
    let two = acquire(&clients, "two").unwrap().unwrap();
    assert!(one.events().unwrap().take(3).is_ok());
    let fixed = PerClient {
        events: Some(Rate::new(20, 20)),
        ..PerClient::default()
    };
    clients.set(PerClientConfig { fixed, claims });
    assert_eq!(rate(&one), Some(Rate::new(5, 5)));
    assert!(
        one.events().unwrap().take(3).is_err(),
        "the tokens stay used"
    );
    assert_eq!(rate(&two), Some(Rate::new(20, 20)));
    // Without the claims in the configuration, the next event stream has the fixed rate.
    clients.set(fixed.into());
    assert_eq!(rate(&one), Some(Rate::new(5, 5)));
    let _next = clients.acquire("one", &claimed, []).unwrap();
    assert_eq!(rate(&one), Some(Rate::new(20, 20)));
}

#[test]
fn newest_claims_apply_to_the_client_and_refill_nothing() {
    let (clients, _) = with_claims(PerClient::default());
    let of = |rate: u32| {
        let limit = json!({ "rate": rate, "burst": 100 });
        Principal::with_claims(json!({ "events": limit, "connects": limit }))
    };
    let first = clients.acquire("a", &of(1), []).unwrap().unwrap();
    assert!(first.events().unwrap().take(100).is_ok());
    for n in 0..98 {
        let other = clients.acquire("a", &of(1 + n % 2), []).unwrap().unwrap();
        assert_eq!(rate(&first), Some(Rate::new(1 + n % 2, 100)));
        assert!(
            other.events().unwrap().take(50).is_err(),
            "one bucket for both"
        );
    }
    let throttled = (0..5).find_map(|n| clients.acquire("a", &of(1 + n % 2), []).err());
    assert_eq!(throttled.unwrap().limit, Limit::Connects);
}
