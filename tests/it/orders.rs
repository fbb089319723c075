//! A nats-server with the JetStream stream ORDERS, and pods that serve it.

use async_nats::jetstream::{self, stream};

use testkit::certs::Authority;
use testkit::nats::{Nats, store};
use testkit::proxy::Proxy;
use testkit::sidestream::{Sidestream, config_with_tls};
use testkit::wait::DEADLINE;

/// Fixture of the tests that read the stream ORDERS.
pub(crate) struct Orders {
    pub(crate) sidestream: Sidestream,
    pub(crate) nats: Nats,
    pub(crate) jetstream: jetstream::Context,
    pub(crate) authority: Authority,
    /// Configuration of every pod, without NATS and listeners.
    configuration: String,
}

impl Orders {
    pub(crate) async fn start(configuration: String) -> Self {
        let nats = Nats::start().await;
        let jetstream = nats.jetstream().await;
        let config = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        jetstream.create_stream(config).await.unwrap();
        let authority = Authority::new();
        Self {
            sidestream: pod(&nats, &authority, &configuration).await,
            nats,
            jetstream,
            authority,
            configuration,
        }
    }

    /// Starts another pod.
    pub(crate) async fn pod(&self) -> Sidestream {
        pod(&self.nats, &self.authority, &self.configuration).await
    }

    pub(crate) async fn publish(&self, subject: &str, payload: impl Into<bytes::Bytes>) {
        store(&self.jetstream, subject, payload).await;
    }

    /// Publishes the numbers 0 to 29 while the pod drains and another one takes its place.
    pub(crate) async fn publish_across_a_drain(&mut self, proxy: &Proxy) {
        self.publish_numbers(0..10).await;
        let next = self.pod().await;
        self.sidestream.terminate();
        self.publish_numbers(10..20).await;
        assert_eq!(self.sidestream.wait_exit(DEADLINE).await, 0);
        proxy.forward_to(next.address());
        self.sidestream = next;
        self.publish_numbers(20..30).await;
    }

    async fn publish_numbers(&self, numbers: std::ops::Range<u32>) {
        for number in numbers {
            self.publish("orders.1", number.to_string()).await;
        }
    }
}

async fn pod(nats: &Nats, authority: &Authority, configuration: &str) -> Sidestream {
    Sidestream::start(config_with_tls(nats, authority, configuration)).await
}
