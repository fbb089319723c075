//! Presence of clients across pods in a NATS KV bucket: entries, handover, and faults of the
//! bucket.

mod entries;
mod faults;
mod takeover;

use std::time::Duration;

use async_nats::jetstream::{self, kv};
use futures_util::TryStreamExt as _;
use serde_json::Value;

use testkit::nats::{Nats, create_stream, store};
use testkit::sidestream::{Sidestream, config};
use testkit::sse::SseClient;
use testkit::wait::{DEADLINE, eventually};

/// A server with a stream `A` of `a.>`, and pods that share the presence bucket `clients`.
struct Fixture {
    nats: Nats,
    jetstream: jetstream::Context,
    pods: Vec<Sidestream>,
}

impl Fixture {
    /// Starts this number of pods, named `pod-0`, `pod-1`, ...
    async fn with(pods: usize) -> Self {
        Self::on(Nats::start().await, pods).await
    }

    async fn on(nats: Nats, pods: usize) -> Self {
        Self::on_with(nats, pods, "").await
    }

    /// Same as [`Fixture::on`], with further configuration keys.
    async fn on_with(nats: Nats, pods: usize, rest: &str) -> Self {
        Self::edited(nats, pods, |text| format!("{text}{rest}\n")).await
    }

    /// Same as [`Fixture::on`], with an edited configuration.
    async fn edited(nats: Nats, pods: usize, edit: impl Fn(String) -> String) -> Self {
        let jetstream = nats.jetstream().await;
        create_stream(&jetstream, "A", &["a.>"]).await;
        let mut fixture = Self {
            nats,
            jetstream,
            pods: Vec::new(),
        };
        for number in 0..pods {
            let pod = Sidestream::builder(edit(configuration(&fixture.nats)))
                .env("POD_NAME", &format!("pod-{number}"));
            fixture.pods.push(pod.start().await);
        }
        fixture
    }

    /// Publishes to the stream and waits until the message is stored.
    async fn publish(&self, subject: &str, text: &str) {
        store(&self.jetstream, subject, text.to_owned()).await;
    }

    /// Connects a client without a `Last-Event-ID`; returns when it has its position.
    async fn connect(&self, pod: usize, target: &str) -> SseClient {
        let mut client = SseClient::get(self.pods[pod].url(target)).connect().await;
        assert_eq!(client.status(), 200);
        client.positioned().await;
        client
    }

    /// Entries of a client on all pods, as one pod reports them.
    async fn find(&self, pod: usize, client: &str) -> Vec<Value> {
        // On a busy machine, the connection to NATS may time out and be opened again.
        eventually(DEADLINE, &format!("pod {pod} can ask all pods"), || async {
            let answer = self.pods[pod].admin_json(&target_of(client)).await;
            let is_whole = answer["scope"] == "cluster" && answer["complete"] == true;
            is_whole.then(|| answer["connections"].as_array().unwrap().clone())
        })
        .await
    }

    /// Waits until a pod reports this number of entries for a client and `wanted` returns true for
    /// each.
    async fn until_found(
        &self,
        pod: usize,
        client: &str,
        count: usize,
        is_so: impl Fn(&Value) -> bool,
    ) -> Vec<Value> {
        eventually(
            DEADLINE,
            &format!("pod {pod} finds {count} of {client:?} as wanted"),
            || async {
                let found = self.find(pod, client).await;
                (found.len() == count && found.iter().all(&is_so)).then_some(found)
            },
        )
        .await
    }

    async fn bucket(&self) -> kv::Store {
        eventually(DEADLINE, "the bucket is there", || async {
            self.jetstream.get_key_value("clients").await.ok()
        })
        .await
    }

    /// Shuts a pod down gracefully.
    async fn drain(&mut self, pod: usize) {
        self.pods[pod].terminate();
        assert_eq!(self.pods[pod].wait_exit(DEADLINE).await, 0);
    }
}

/// Routes with and without a client name.
fn configuration(nats: &Nats) -> String {
    let all = "sources: [{ stream: A, subjects: [\"a.>\"] }]";
    let one = "sources: [{ stream: A, subjects: [\"a.{id}\"] }]";
    config(
        nats,
        &format!(
            "routes:
  - {{ path: /named, {all}, client: \"{{query.client}}\" }}
  - {{ path: /other, {all}, client: \"{{query.client}}\" }}
  - {{ path: \"/one/{{id}}\", {one}, client: \"{{query.client}}\" }}
  - {{ path: /chosen, sources: [{{ stream: A, subjects: [\"{{query.subject}}\"], allow: [\"a.>\"] }}], client: \"{{query.client}}\" }}
  - {{ path: /plain, {all} }}
drain: {{ accept_for: 0s, spread: 0s, timeout: 1500ms, retry: {{ min: 10ms, max: 20ms }} }}
presence: {{ bucket: clients }}"
        ),
    )
}

fn target_of(client: &str) -> String {
    let client: String = form_urlencoded::byte_serialize(client.as_bytes()).collect();
    format!("/connections?scope=cluster&client={client}")
}

/// All keys of the bucket.
async fn keys(bucket: &kv::Store) -> Vec<String> {
    bucket.keys().await.unwrap().try_collect().await.unwrap()
}

/// Returns true if no event arrives for a time that is long compared with a delivery.
async fn is_silent(client: &mut SseClient) -> bool {
    client
        .next_within(Duration::from_millis(300))
        .await
        .is_none()
}
