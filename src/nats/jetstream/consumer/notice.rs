//! Status messages of nats-server to a consumer: heartbeats, ends of requests, errors.

use async_nats::{Message, StatusCode};

/// One status message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// It is there; this delivery was its last, and it has passed this sequence.
    Heartbeat {
        delivery: u64,
        passed: u64,
    },
    /// A request has expired or is served.
    RequestOver,
    /// The next message is larger than what is left of the request, of which so many messages are unused.
    TooLarge {
        unused: Option<usize>,
    },
    NobodyThere,
    Deleted,
    Rejected(usize, String),
    Other,
}

impl Notice {
    pub(super) fn of(message: &Message) -> Self {
        let text = message.description.as_deref().unwrap_or_default();
        let number = |name| {
            let header = message
                .headers
                .as_ref()
                .and_then(|headers| headers.get(name));
            header.and_then(|value| value.as_str().parse::<u64>().ok())
        };
        match message.status {
            Some(StatusCode::IDLE_HEARTBEAT) => {
                match (number("Nats-Last-Consumer"), number("Nats-Last-Stream")) {
                    (Some(delivery), Some(passed)) => Self::Heartbeat { delivery, passed },
                    _ => Self::Other,
                }
            }
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => Self::RequestOver,
            Some(StatusCode::NO_RESPONDERS) => Self::NobodyThere,
            Some(_) if text.starts_with("Batch Completed") => Self::RequestOver,
            Some(_) if text.starts_with("Message Size Exceeds MaxBytes") => {
                let unused =
                    number("Nats-Pending-Messages").and_then(|number| usize::try_from(number).ok());
                Self::TooLarge { unused }
            }
            Some(_)
                if ["Consumer Deleted", "Leadership Change", "Server Shutdown"]
                    .iter()
                    .any(|known| text.starts_with(known)) =>
            {
                Self::Deleted
            }
            Some(status) => Self::Rejected(status.as_u16().into(), format!("{status} {text}")),
            None => Self::Other,
        }
    }
}
