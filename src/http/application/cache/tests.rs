//! Tests of the rules and of the store, without an application.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};

use super::status::Reason;
use super::store::{Begun, Cache, Key, Recording, Reservation};
use super::stored::{Moment, Stored};
use super::wanted::{self, Wanted};
use crate::http::application::config::CacheConfig;
use crate::telemetry::Metrics;

const PAST: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
const MINUTE: (&str, &str) = ("cache-control", "max-age=60");

fn request(path: &str, fields: &[(&str, &str)]) -> Parts {
    let request = Request::get(path);
    let request = fields.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    request.body(()).unwrap().into_parts().0
}

fn response(fields: &[(&str, &str)]) -> Response<()> {
    let response = Response::builder().header("content-length", "0");
    let response = fields.iter().fold(response, |response, (name, value)| {
        response.header(*name, *value)
    });
    response.body(()).unwrap()
}

fn stored(request: &Parts, fields: &[(&str, &str)]) -> Option<Stored> {
    Stored::new(request, &response(fields), Moment::now())
}

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn cache(bytes: usize, object_bytes: usize) -> Arc<Cache> {
    let config = CacheConfig {
        bytes,
        object_bytes,
    };
    Cache::new(config, &Metrics::new().unwrap()).unwrap()
}

fn begin(cache: &Arc<Cache>, head: &Parts) -> Begun {
    let key = Key::of(head);
    let object = cache.get(&key);
    cache.begin(&key, object.as_ref(), &head.headers, false)
}

fn recording(cache: &Arc<Cache>, head: &Parts) -> Recording {
    match begin(cache, head) {
        Begun::Recording(recording) => recording,
        Begun::Wait(_) => panic!("another request is in flight"),
    }
}

fn find(cache: &Cache, head: &Parts) -> Option<Arc<Stored>> {
    let object = cache.get(&Key::of(head))?;
    object.select(&head.headers).cloned()
}

#[test]
fn response_is_stored_if_the_application_marks_it_cacheable() {
    let plain = request("/", &[]);
    let later = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(60));
    let with = |fields: &[(&str, &str)]| stored(&plain, fields).is_some();
    for control in [
        "max-age=60",
        "Max-Age=60",
        "s-maxage=60, max-age=0",
        "public, max-age=\"60\"",
        "max-age=18446744073709551615",
        "max-age=60, stale-while-revalidate=60",
        "immutable, max-age=60",
    ] {
        assert!(with(&[("cache-control", control)]), "{control}");
    }
    assert!(with(&[("expires", &later)]));
    for control in [
        "public",
        "immutable",
        "max-age=0",
        "max-age=x",
        "max-age=60, s-maxage=0",
        "No-Store, max-age=60",
        "PRIVATE, max-age=60",
        "private=\"x, y\", max-age=60",
        "no-cache, max-age=60",
        "no-cache=\"set-cookie\", max-age=60",
        "max-age=60, private=\u{e9}",
    ] {
        let fields = [("cache-control", control), ("last-modified", PAST)];
        assert!(!with(&fields), "{control}");
    }
    for field in [
        ("cache-control", "private"),
        ("age", "60"),
        ("age", "18446744073709551616"),
        ("date", PAST),
        ("vary", "*"),
        ("vary", "accept, *"),
        ("set-cookie", "a=1"),
        ("Sidestream-Client", "a"),
        ("Sidestream-Subscribe", "a"),
        ("trailer", "a"),
        ("content-range", "bytes 0-1/2"),
    ] {
        assert!(!with(&[MINUTE, field]), "{field:?}");
    }
    for fields in [&[][..], &[("last-modified", PAST)], &[("expires", PAST)]] {
        assert!(!with(fields), "{fields:?}");
    }
    let close_delimited = Response::builder().header(MINUTE.0, MINUTE.1).body(());
    let stored = Stored::new(&plain, &close_delimited.unwrap(), Moment::now());
    assert!(stored.is_none());
    let head = Request::head("/").body(()).unwrap().into_parts().0;
    assert!(self::stored(&head, &[MINUTE]).is_none());
}

#[test]
fn requests_for_one_client_bypass_the_cache() {
    let reason = |head: &Parts, has_body| {
        let wanted = Wanted::of(&head.headers);
        wanted::bypass(head, has_body, &wanted)
    };
    assert_eq!(reason(&request("/", &[("cookie", "a=1")]), false), None);
    for (name, value) in [
        ("authorization", "Bearer a"),
        ("range", "bytes=0-1"),
        ("if-range", "\"a\""),
        ("if-match", "\"a\""),
        ("if-unmodified-since", PAST),
        ("upgrade", "websocket"),
        ("cache-control", "max-age=0, No-Store"),
    ] {
        let head = request("/", &[(name, value)]);
        assert_eq!(reason(&head, false), Some(Reason::Bypass), "{name}");
    }
    assert_eq!(reason(&request("/", &[]), true), Some(Reason::Bypass));
    let post = Request::post("/").body(()).unwrap().into_parts().0;
    assert_eq!(reason(&post, false), Some(Reason::Method));
}

#[test]
fn client_decides_with_cache_control_what_it_accepts() {
    let fields = [MINUTE, ("age", "20")];
    let stored = stored(&request("/", &[]), &fields).unwrap();
    let satisfies = |field: (&str, &str), after| {
        let wanted = Wanted::of(&request("/", &[field]).headers);
        stored.satisfies(&wanted, later(after))
    };
    assert!(satisfies(("accept", "*/*"), 0));
    assert!(!satisfies(("accept", "*/*"), 41));
    assert!(!satisfies(("cache-control", "max-stale"), 41));
    for directive in [
        "No-Cache",
        "max-age=0",
        "max-age=10",
        "max-age=x",
        "min-fresh=50",
        "min-fresh=x",
        "a=b,no-cache",
    ] {
        assert!(!satisfies(("cache-control", directive), 1), "{directive}");
    }
    assert!(!satisfies(("pragma", "no-cache"), 1));
    for directive in [
        "max-age=30",
        "Max-Age=\"30\"",
        "min-fresh=30",
        "max-stale=1",
    ] {
        assert!(satisfies(("cache-control", directive), 1), "{directive}");
    }
}

#[test]
fn vary_compares_all_lines_of_a_field() {
    let fields = [MINUTE, ("vary", "Accept-Language, X")];
    let stored = stored(&request("/", &[("x", "a"), ("x", "b")]), &fields).unwrap();
    let selects = |fields: &[(&str, &str)]| stored.is_selected_by(&request("/", fields).headers);
    assert!(selects(&[("x", "a"), ("x", "b"), ("other", "c")]));
    assert!(!selects(&[]));
    assert!(!selects(&[("x", "a")]));
    assert!(!selects(&[("x", "a"), ("x", "c")]));
    assert!(!selects(&[("x", "b"), ("x", "a")]));
    let other_language = [("x", "a"), ("x", "b"), ("accept-language", "de")];
    assert!(!selects(&other_language));
}

#[test]
fn conditions_of_clients_compare_weakly_and_by_date() {
    let fields = [MINUTE, ("etag", "\"a\""), ("last-modified", PAST)];
    let stored = stored(&request("/", &[]), &fields).unwrap();
    let stored = stored.with_body("text".into());
    for (name, value, expected) in [
        ("if-none-match", "\"b\", W/\"a\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"b\"", 200),
        ("if-none-match", "", 200),
        ("if-modified-since", PAST, 304),
        ("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT", 200),
        ("if-modified-since", "today", 200),
    ] {
        let answer = stored.answer(&request("/", &[(name, value)]));
        assert_eq!(answer.status(), expected, "{name}: {value}");
        let is_whole = expected == 200;
        assert_eq!(answer.headers().contains_key("content-length"), is_whole);
        assert_eq!(answer.body().is_empty(), !is_whole);
        assert!(answer.headers().contains_key("etag"));
    }
    // If-None-Match counts alone.
    let both = [("if-none-match", "\"b\""), ("if-modified-since", PAST)];
    assert_eq!(stored.answer(&request("/", &both)).status(), 200);
}

#[test]
fn not_modified_updates_the_response_that_it_is_about() {
    let head = request("/", &[]);
    let before = [MINUTE, ("etag", "\"a\""), ("x", "1"), ("content-type", "b")];
    let stored = stored(&head, &before).unwrap().with_body("text".into());
    let refreshed = |fields: &[(&str, &str)]| {
        let mut response = response(fields);
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        stored.refreshed(&head, &response, Moment::now())
    };
    let updated = refreshed(&[("etag", "W/\"a\""), ("x", "2"), ("content-type", "c")]).unwrap();
    assert!(updated.is_storable);
    let answer = updated.stored.answer(&head);
    for (name, value) in [("x", "2"), ("content-type", "b"), ("content-length", "4")] {
        assert_eq!(answer.headers()[name], value, "{name}");
    }
    assert!(updated.stored.is_fresh(later(59)));
    assert!(!updated.stored.is_fresh(later(60)));
    let older = refreshed(&[("age", "30")]).unwrap();
    assert!(!older.stored.is_fresh(later(30)));
    assert!(!older.stored.answer(&head).headers().contains_key("age"));

    assert!(refreshed(&[("etag", "\"b\"")]).is_none());
    assert!(refreshed(&[("last-modified", PAST)]).is_none());
    for field in [
        ("set-cookie", "a=1"),
        ("sidestream-client", "a"),
        ("cache-control", "no-store"),
        ("cache-control", "private, max-age=60"),
        ("age", "60"),
        ("vary", "*"),
    ] {
        let refreshed = refreshed(&[field]).unwrap();
        assert!(!refreshed.is_storable, "{field:?}");
    }
    let with_cookie = refreshed(&[("set-cookie", "a=1")]).unwrap().stored;
    let answer = with_cookie.answer(&head);
    assert_eq!(answer.headers()["set-cookie"], "a=1");
}

#[test]
fn key_has_scheme_host_path_and_query() {
    let key = |path, fields: &[(&str, &str)]| Key::of(&request(path, fields));
    let own = [
        ("host", "a"),
        ("x-forwarded-host", "a"),
        ("x-forwarded-proto", "http"),
    ];
    let other_cookie = [own[0], own[1], own[2], ("cookie", "a")];
    assert_eq!(key("/a?b", &own), key("/a?b", &other_cookie));
    assert_ne!(key("/a?b", &own), key("/a?c", &own));
    assert_ne!(key("/a?b", &own), key("/a", &own));
    for (index, value) in [(0, "b"), (1, "b"), (2, "https")] {
        let mut other = own;
        other[index].1 = value;
        assert_ne!(key("/a?b", &own), key("/a?b", &other), "{other:?}");
    }
}

#[test]
fn objects_stay_within_the_bound() {
    let cache = cache(64 * 1024, 8 * 1024);
    for number in 0..1000 {
        let head = request(&format!("/{number}"), &[]);
        let stored = stored(&head, &[MINUTE]).unwrap();
        assert!(recording(&cache, &head).store(&Arc::new(stored)));
        assert!(cache.bytes() <= 64 * 1024);
    }
    assert!(cache.bytes() > 32 * 1024, "{}", cache.bytes());
    let head = request("/large", &[]);
    let large = stored(&head, &[MINUTE]).unwrap();
    let large = large.with_body(vec![0; 8 * 1024].into());
    assert!(!recording(&cache, &head).store(&Arc::new(large)));
    assert!(find(&cache, &head).is_none());
}

#[test]
fn responses_of_one_object_stay_within_its_bound() {
    let cache = cache(1024 * 1024, 8 * 1024);
    let of = |number: usize| request("/", &[("x", &number.to_string())]);
    let store = |number, size| {
        let stored = stored(&of(number), &[MINUTE, ("vary", "x")]).unwrap();
        let stored = stored.with_body(vec![0; size].into());
        assert!(recording(&cache, &of(number)).store(&Arc::new(stored)));
    };
    let kept = || (0..20).filter(|number| find(&cache, &of(*number)).is_some());
    for number in 0..20 {
        store(number, 0);
    }
    assert!(kept().count() <= 8);
    assert!(find(&cache, &of(19)).is_some());
    store(0, 6 * 1024);
    assert!(cache.bytes() <= 8 * 1024);
    assert!(find(&cache, &of(0)).is_some());
    // A new response replaces the one that the same requests select.
    let before = kept().count();
    store(0, 6 * 1024);
    assert_eq!(kept().count(), before);
}

#[test]
fn response_to_a_request_before_an_invalidation_is_not_stored() {
    let cache = cache(64 * 1024, 8 * 1024);
    let head = request("/", &[]);
    let response = Arc::new(stored(&head, &[MINUTE]).unwrap());
    let before = recording(&cache, &head);
    cache.invalidate(&Key::of(&head));
    assert!(!before.store(&response));
    assert!(find(&cache, &head).is_none());
    drop(before);
    assert!(recording(&cache, &head).store(&response));
    assert!(find(&cache, &head).is_some());
    cache.invalidate(&Key::of(&head));
    assert!(find(&cache, &head).is_none());
}

#[test]
fn invalidation_and_storage_have_one_order_on_all_threads() {
    let cache = cache(64 * 1024, 8 * 1024);
    let head = request("/", &[]);
    let response = Arc::new(stored(&head, &[MINUTE]).unwrap());
    let key = Key::of(&head);
    for _ in 0..1000 {
        let Begun::Recording(before) = cache.begin(&key, None, &head.headers, true) else {
            panic!("a request alone does not wait");
        };
        std::thread::scope(|scope| {
            scope.spawn(|| before.store(&response));
            scope.spawn(|| cache.invalidate(&key));
        });
        assert!(find(&cache, &head).is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_requests_look_again_unless_the_response_is_not_stored() {
    let cache = cache(64 * 1024, 8 * 1024);
    let head = request("/", &[]);
    let wait = || match begin(&cache, &head) {
        Begun::Wait(flight) => flight.landed(),
        Begun::Recording(_) => panic!("no other request is in flight"),
    };
    // The client of the first one leaves.
    let first = recording(&cache, &head);
    let waiting = wait();
    drop(first);
    assert!(waiting.await);
    // The application fails.
    let first = recording(&cache, &head);
    let waiting = wait();
    first.release();
    assert!(!waiting.await);
    drop(first);
    // The response is for one client: later requests do not wait either.
    let first = recording(&cache, &head);
    let waiting = wait();
    first.set_not_cacheable();
    drop(first);
    assert!(!waiting.await);
    let alone = recording(&cache, &head);
    let other = recording(&cache, &head);
    // Until a response is stored.
    let response = Arc::new(stored(&head, &[MINUTE]).unwrap());
    assert!(alone.store(&response));
    drop((alone, other));
    let first = recording(&cache, &head);
    // At most 5 s, and from then on later requests do not wait for it.
    let began = tokio::time::Instant::now();
    assert!(!wait().await);
    assert!(began.elapsed() >= Duration::from_millis(4900));
    drop(first);
}

#[test]
fn requests_with_other_selecting_fields_do_not_wait_for_each_other() {
    let cache = cache(64 * 1024, 8 * 1024);
    let of = |value| request("/", &[("x", value)]);
    let response = Arc::new(stored(&of("a"), &[MINUTE, ("vary", "x")]).unwrap());
    assert!(recording(&cache, &of("a")).store(&response));
    let first = recording(&cache, &of("b"));
    let other = recording(&cache, &of("c"));
    assert!(matches!(begin(&cache, &of("b")), Begun::Wait(_)));
    drop((first, other));
}

#[test]
fn bodies_that_are_read_for_the_cache_have_a_bound() {
    let cache = cache(64 * 1024, 8 * 1024);
    let mut first = Reservation::new(&cache);
    assert!(first.grow(4 * 1024));
    assert!(!first.grow(9 * 1024));
    assert!(first.grow(8 * 1024));
    let mut second = Reservation::new(&cache);
    assert!(second.grow(8 * 1024));
    // A quarter of all.
    assert!(!Reservation::new(&cache).grow(1));
    drop(first);
    assert!(Reservation::new(&cache).grow(8 * 1024));
}
