//! Bounds of the cache, and changes of them.

use testkit::application::Application;
use testkit::http1::End;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use super::{Fixture, HIT, MINUTE, MISS, STORED, bytes, count, get};

const MIB: u64 = 1 << 20;

#[tokio::test]
async fn all_responses_together_have_a_bound() {
    let settings = "cache: { bytes: 256KiB, object_bytes: 8KiB },";
    let fixture = Fixture::with(Application::start().await, settings, "").await;
    let large = format!("/cached/a?{MINUTE}&size=9000");
    for _ in 0..2 {
        let (answer, status) = get(&fixture, &large, &[]).await;
        assert_eq!((answer.body.len(), answer.end), (9000, End::Terminated));
        assert_eq!(status, MISS);
    }
    for number in 0..100 {
        let path = format!("/cached/{number}?{MINUTE}&size=6000");
        let (_, status) = get(&fixture, &path, &[]).await;
        assert_eq!(status, STORED);
        assert!(bytes(&fixture).await <= 262_144.0);
    }
    assert!(bytes(&fixture).await > 128_000.0);
}

#[tokio::test]
async fn response_above_the_bound_streams_in_constant_memory() {
    const SIZE: usize = 64 << 20;
    let fixture = Fixture::start().await;
    get(&fixture, &format!("/cached/a?{MINUTE}"), &[]).await;
    let before = fixture.sidestream.resident_bytes_peak();
    for length in ["", "&chunked=1"] {
        let path = format!("/cached/b?{MINUTE}&size={SIZE}{length}");
        for _ in 0..2 {
            let (answer, status) = get(&fixture, &path, &[]).await;
            assert_eq!((answer.body.len(), answer.end), (SIZE, End::Terminated));
            assert_eq!(status, MISS);
        }
    }
    let more = fixture.sidestream.resident_bytes_peak() - before;
    assert!(more < 24 * MIB, "{more}");
}

#[tokio::test]
async fn clients_that_do_not_read_hold_one_stored_response() {
    let fixture = Fixture::start().await;
    let path = format!("/cached/a?{MINUTE}&size=4000000");
    get(&fixture, &path, &[]).await;
    let before = fixture.sidestream.resident_bytes();
    let address = fixture.sidestream.address();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(request.as_bytes()).await.unwrap();
        client.readable().await.unwrap();
        clients.push(client);
    }
    assert_eq!(count(&fixture, "hit").await, 50.0);
    let more = fixture.sidestream.resident_bytes().saturating_sub(before);
    assert!(more < 24 * MIB, "{more}");
    assert_eq!(fixture.application.requests(&path), 1);
}

#[tokio::test]
async fn reload_changes_the_bounds_and_switches_the_cache_off() {
    let settings = "cache: { bytes: 1MiB },";
    let fixture = Fixture::with(Application::start().await, settings, "").await;
    let path = format!("/cached/a?{MINUTE}&size=5000");
    let file = fixture.sidestream.config_file();
    let text = std::fs::read_to_string(file).unwrap();
    for (number, now, expected) in [
        (1.0, "cache: { bytes: 2MiB },", [STORED, HIT]),
        (2.0, "cache: { bytes: 0 },", ["", ""]),
        (3.0, settings, [STORED, HIT]),
    ] {
        let (_, status) = get(&fixture, &path, &[]).await;
        assert_eq!(bytes(&fixture).await > 5000.0, !status.is_empty());
        fixture
            .sidestream
            .rewrite_config(&text.replace(settings, now));
        let changed = [("result", "changed")];
        let name = "sidestream_config_reloads_total";
        fixture
            .sidestream
            .until_metric(name, &changed, |reloads| reloads == number)
            .await;
        assert_eq!(bytes(&fixture).await, 0.0, "{now}");
        for expected in expected {
            let (_, status) = get(&fixture, &path, &[]).await;
            assert_eq!(status, expected, "{now}");
        }
    }
}
