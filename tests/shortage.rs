//! A shortage of file descriptors, in a separate process, because the limit applies to the process.

#![allow(clippy::unwrap_used)] // a failure is the result

use std::net::TcpStream;
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sidestream::net::listener::{self, Listener, Sharing};

fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[tokio::test]
async fn a_listener_without_descriptors_does_not_spin_and_accepts_later() {
    let bound = listener::bind("127.0.0.1:0".parse().unwrap(), Sharing::Alone).unwrap();
    let mut listener = Listener::new(bound).unwrap();
    let _client = TcpStream::connect(listener.address()).unwrap();
    let before = getrlimit(Resource::Nofile);
    let used = cpu();
    // The limit is the highest descriptor in use plus one: no lower descriptor is free.
    let lowest_free = std::fs::File::open("/dev/null").unwrap().as_raw_fd();
    let current = Some(u64::try_from(lowest_free).unwrap());
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current,
            maximum: before.maximum,
        },
    )
    .unwrap();
    let early = tokio::time::timeout(Duration::from_millis(700), listener.accept()).await;
    setrlimit(Resource::Nofile, before).unwrap();
    let used = cpu() - used;

    early.expect_err("nothing could be accepted");
    assert!(used < Duration::from_millis(200), "{used:?} of 700 ms");
    tokio::time::timeout(Duration::from_secs(20), listener.accept())
        .await
        .expect("accepts again");
}
