//! Rules of revocations: which credentials and event streams an entry concerns.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

const AT: u32 = 1_000_000;

fn identity(claims: Value) -> Principal {
    let Value::Object(claims) = claims else {
        panic!("claims are an object")
    };
    Principal::Identified(Box::new(Identity {
        provider: "idp".into(),
        subject: claims["sub"].as_str().unwrap().into(),
        claims,
        expires: None,
    }))
}

fn token() -> Principal {
    identity(json!({ "sub": "alice", "jti": "t1", "sid": "s1", "iat": AT }))
}

fn change(kind: Kind, value: &str, at: u32) -> Change {
    let until = unix_seconds() + 3600;
    Change {
        kind,
        value: value.to_owned(),
        times: Some(Times { at, until }),
    }
}

/// Returns whether a request is rejected, and whether an open event stream with the same
/// credentials ends, which is always the same.
fn is_revoked_by(change: Change, principal: &Principal, client: Option<&str>) -> bool {
    let revocations = Revocations::new();
    let mark = revocations.mark(principal, client);
    revocations.apply(&[change]);
    let checked = revocations
        .check_principal(principal)
        .and_then(|()| client.map_or(Ok(()), |client| revocations.check_client(client, principal)));
    let ends = revocations.take_ended().find(&mark).is_some();
    assert_eq!(checked.is_err(), ends);
    ends
}

#[test]
fn token_and_session_are_revoked_whatever_their_time_of_issue() {
    for at in [0, AT, AT + 1] {
        assert!(is_revoked_by(change(Kind::Jti, "t1", at), &token(), None));
        assert!(is_revoked_by(change(Kind::Sid, "s1", at), &token(), None));
    }
    for other in [
        change(Kind::Jti, "s1", AT),
        change(Kind::Sid, "t1", AT),
        change(Kind::Sub, "t1", AT),
        change(Kind::Client, "alice", AT),
        change(Kind::Kick, "alice", AT),
    ] {
        assert!(
            !is_revoked_by(other.clone(), &token(), Some("shop")),
            "{other:?}"
        );
    }
}

#[test]
fn subject_and_client_are_revoked_up_to_a_time_of_issue() {
    for (kind, value) in [(Kind::Sub, "alice"), (Kind::Client, "shop")] {
        let revoked = |at, principal: Principal| {
            is_revoked_by(change(kind, value, at), &principal, Some("shop"))
        };
        assert!(revoked(AT, token()), "issued at the time of the revocation");
        assert!(revoked(AT + 1, token()));
        assert!(!revoked(AT - 1, token()), "issued later");
        for without in [
            json!({ "sub": "alice" }),
            json!({ "sub": "alice", "iat": "later" }),
        ] {
            assert!(revoked(1, identity(without)), "no time of issue");
        }
        let fraction = identity(json!({ "sub": "alice", "iat": f64::from(AT) + 0.9 }));
        assert!(revoked(AT, fraction));
    }
    let anonymous = Principal::Anonymous;
    assert!(is_revoked_by(
        change(Kind::Client, "shop", 1),
        &anonymous,
        Some("shop")
    ));
    assert!(!is_revoked_by(
        change(Kind::Client, "shop", AT),
        &anonymous,
        None
    ));
}

#[test]
fn kick_ends_event_streams_and_rejects_nothing() {
    let revocations = Revocations::new();
    let mark = revocations.mark(&token(), Some("shop"));
    let other = revocations.mark(&token(), Some("other"));
    revocations.apply(&[change(Kind::Kick, "shop", AT)]);
    assert_eq!(revocations.check_client("shop", &token()), Ok(()));
    assert_eq!(revocations.len(), 0);
    let ended = revocations.take_ended();
    assert_eq!(ended.find(&mark), Some(Kind::Kick));
    assert_eq!(ended.find(&other), None);
    assert!(revocations.take_ended().is_empty(), "once");
}

#[test]
fn entries_end_by_deletion_and_at_their_time() {
    let revocations = Revocations::new();
    let before = revocations.generation();
    revocations.apply(&[change(Kind::Sub, "alice", AT)]);
    assert_ne!(revocations.generation(), before);
    assert_eq!(revocations.check_principal(&token()), Err(Denial::Revoked));
    let deleted = Change {
        times: None,
        ..change(Kind::Sub, "alice", AT)
    };
    revocations.apply(&[deleted]);
    assert_eq!(revocations.check_principal(&token()), Ok(()));
    assert!(revocations.take_ended().is_empty());

    let until = unix_seconds();
    let expired = Change {
        times: Some(Times { at: AT, until }),
        ..change(Kind::Sub, "alice", AT)
    };
    revocations.apply(&[change(Kind::Sub, "alice", AT), expired]);
    assert_eq!(revocations.check_principal(&token()), Ok(()));
}

#[test]
fn unknown_revocations_reject_only_if_configured() {
    for (when, expected) in [
        (WhenUnavailable::Allow, Ok(())),
        (WhenUnavailable::Reject, Err(Denial::Unavailable)),
    ] {
        let revocations = Revocations::new();
        revocations.set_when_unavailable(when);
        assert_eq!(revocations.check_principal(&token()), expected, "not read");
        assert_eq!(revocations.check_principal(&Principal::Anonymous), Ok(()));
        revocations.apply(&[change(Kind::Jti, "t1", AT)]);
        let known = revocations.check_principal(&token());
        assert_eq!(known, Err(Denial::Revoked), "what is known counts");
        revocations.set_current();
        let other = identity(json!({ "sub": "bob" }));
        assert_eq!(revocations.check_principal(&other), Ok(()));
        revocations.set_lost();
        assert_eq!(revocations.check_principal(&other), Ok(()), "for a while");
        revocations.source_mut(|source| {
            source.lost = Instant::now().checked_sub(UNAVAILABLE_AFTER + Duration::from_secs(1));
        });
        assert_eq!(revocations.check_principal(&other), expected);
        revocations.set_current();
        assert_eq!(revocations.check_principal(&other), Ok(()));
    }
}

#[test]
fn entries_above_the_maximum_end_event_streams_and_make_the_table_incomplete() {
    let revocations = Revocations::with_max(2);
    revocations.set_when_unavailable(WhenUnavailable::Reject);
    revocations.set_current();
    let mark = revocations.mark(&token(), None);
    revocations.apply(&[change(Kind::Jti, "a", AT), change(Kind::Jti, "b", AT)]);
    assert!(revocations.is_available());
    revocations.apply(&[change(Kind::Jti, "t1", AT)]);
    assert!(revocations.is_incomplete() && !revocations.is_available());
    assert!(revocations.take_ended().find(&mark).is_some());
    let denial = revocations.check_principal(&token());
    assert_eq!(denial, Err(Denial::Unavailable));
    revocations.read_begins();
    assert!(revocations.is_available());
}
