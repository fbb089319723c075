//! Status messages of nats-server to a pull consumer: heartbeats, ends of requests, errors.

use async_nats::{Message, StatusCode};

/// One status message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// Idle heartbeat: the last delivery of this consumer and the last stream sequence it has
    /// passed.
    Heartbeat {
        delivery: u64,
        passed: u64,
    },
    /// A pull request has expired or is fully served.
    RequestEnded,
    /// The next message is larger than the rest of the request; `unused` messages of it are left.
    TooLarge {
        unused: Option<usize>,
    },
    NoResponders,
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
            Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => Self::RequestEnded,
            Some(StatusCode::NO_RESPONDERS) => Self::NoResponders,
            Some(_) if text.starts_with("Batch Completed") => Self::RequestEnded,
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
