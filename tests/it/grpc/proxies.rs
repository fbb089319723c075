//! Calls through nginx and Envoy, with the files of `docs/proxies`.

use async_nats::jetstream::stream;

use testkit::certs::Authority;
use testkit::front::{Front, Kind, Ports};
use testkit::grpc::{Call, Form, Message, Response};
use testkit::nats::{Nats, free_port};
use testkit::sidestream::Sidestream;
use testkit::wait::{DEADLINE, eventually};

/// A proxy in front of two pods that read the stream ORDERS.
struct Fixture {
    nats: Nats,
    front: Front,
    authority: Authority,
    pods: [Sidestream; 2],
}

async fn pod(nats: &Nats, ports: Ports) -> Sidestream {
    let Ports { clients, admin } = ports;
    let url = nats.url();
    Sidestream::start(format!(
        "listen: [{{ address: \"127.0.0.1:{clients}\" }}]
admin: {{ address: \"127.0.0.1:{admin}\" }}
nats: {{ servers: [\"{url}\"] }}
routes:
  - {{ path: /orders, framings: [grpc_web], sources: [{{ stream: ORDERS, subjects: [\"orders.>\"] }}] }}
trusted_proxies: [\"127.0.0.0/8\"]
drain: {{ accept_for: 500ms, spread: 100ms, timeout: 5s, retry: {{ min: 100ms, max: 600ms }} }}
"
    ))
    .await
}

impl Fixture {
    async fn set(kind: Kind) -> Self {
        let nats = Nats::start().await;
        let config = stream::Config {
            name: "ORDERS".into(),
            subjects: vec!["orders.>".into()],
            storage: stream::StorageType::Memory,
            ..Default::default()
        };
        nats.jetstream().await.create_stream(config).await.unwrap();
        let ports = [(); 2].map(|()| Ports {
            clients: free_port(),
            admin: free_port(),
        });
        let (first, second) = tokio::join!(pod(&nats, ports[0]), pod(&nats, ports[1]));
        let authority = Authority::new();
        let front = Front::start(kind, ports, &authority).await;
        Self {
            nats,
            front,
            authority,
            pods: [first, second],
        }
    }

    /// Calls through the proxy: HTTP/2 with TLS, HTTP/1.1 in clear text.
    async fn call(&self, form: Form, id: &str) -> Response {
        let (base, tls) = match form {
            Form::WebHttp1 => (self.front.url(""), None),
            Form::Grpc | Form::WebH2 => {
                let tls = self.authority.trusting(&["h2"]);
                (self.front.url_tls(""), Some(tls))
            }
        };
        let call = Call {
            tls,
            ..Call::new(form, base, "/orders", id)
        };
        call.send().await
    }

    /// Reads numbers up to this one; reconnects after each end. Returns the position.
    async fn read(&self, form: Form, mut id: String, numbers: std::ops::Range<u64>) -> String {
        let mut next = numbers.start;
        while next < numbers.end {
            let mut response = self.call(form, &id).await;
            while let Some(message) = response.advance().await {
                if message.content == "event" {
                    assert_eq!(message.number(), next, "in order, by {form:?}");
                    next += 1;
                }
                if !message.id.is_empty() {
                    id = message.id;
                }
                if next == numbers.end {
                    return id;
                }
            }
            let (_, trailers) = response.read_to_end().await;
            assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        id
    }
}

async fn calls_pass(kind: Kind) {
    let mut fixture = Fixture::set(kind).await;
    let client = fixture.nats.client().await;
    let mut ids = Vec::new();
    for form in Form::ALL {
        let mut response = fixture.call(form, "").await;
        assert_eq!(response.header("content-type"), Some(form.content_type()));
        let position: Message = response.until("position").await;
        ids.push(position.id);
    }
    let publish = async |numbers: std::ops::Range<u64>| {
        for number in numbers {
            let payload = number.to_string().into();
            client.publish("orders.1", payload).await.unwrap();
        }
        client.flush().await.unwrap();
    };
    publish(0..10).await;
    for (form, id) in Form::ALL.into_iter().zip(&mut ids) {
        *id = fixture.read(form, id.clone(), 0..10).await;
    }
    let [first, _] = &mut fixture.pods;
    first.terminate();
    publish(10..20).await;
    assert_eq!(first.wait_exit(DEADLINE).await, 0);
    for (form, id) in Form::ALL.into_iter().zip(&mut ids) {
        *id = fixture.read(form, id.clone(), 10..20).await;
    }
    fixture.pods[1].kill9();
    for form in Form::ALL {
        let fact = format!("{form:?} without a pod is UNAVAILABLE");
        eventually(DEADLINE, &fact, || async {
            let response = fixture.call(form, "").await;
            // Libraries take these statuses of HTTP for UNAVAILABLE.
            matches!(response.status, 502..=504)
                || response.status == 200 && response.header("grpc-status") == Some("14")
        })
        .await;
    }
}

#[tokio::test]
async fn calls_pass_nginx_as_documented_and_without_a_pod_they_are_unavailable() {
    calls_pass(Kind::Nginx).await;
}

#[tokio::test]
async fn calls_pass_envoy_as_documented_and_without_a_pod_they_are_unavailable() {
    calls_pass(Kind::Envoy).await;
}
