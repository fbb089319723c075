//! Faults that the doctor finds: one closed list.

/// Fault of a proxy between the client and the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Fault {
    /// The response arrives in blocks of a buffer.
    Buffering,
    /// The response arrives when it is complete.
    BodyHeldBack,
    /// A compressed response is not flushed with each event.
    Compression,
    /// Every response ends at an age.
    AgeLimit,
    /// A response without bytes ends before the next heartbeat.
    IdleTimeout,
    /// A silent connection is forgotten, and neither side is notified.
    SilentDrop,
    /// The request reaches the pod as HTTP/1.0.
    Http10,
    /// The position of the client does not reach the pod.
    LastEventId,
    /// The end of a connection that the pod announces does not reach its peer.
    Goaway,
    /// A header field of the response is changed or removed.
    HeaderChanged,
    /// Each request of the client needs another connection.
    ConnectionReuse,
    /// Header fields of cross-origin access are wrong.
    Cors,
    /// HTTP/2 flow control allows a few bytes at a time.
    Window,
    /// A proxy answers in place of the pod.
    StatusPage,
}

impl Fault {
    /// Every fault, in the order of the enum.
    #[cfg(test)]
    pub(super) const ALL: [Self; 14] = [
        Self::Buffering,
        Self::BodyHeldBack,
        Self::Compression,
        Self::AgeLimit,
        Self::IdleTimeout,
        Self::SilentDrop,
        Self::Http10,
        Self::LastEventId,
        Self::Goaway,
        Self::HeaderChanged,
        Self::ConnectionReuse,
        Self::Cors,
        Self::Window,
        Self::StatusPage,
    ];

    /// Name in the output, and heading in `docs/doctor.md`.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Buffering => "buffering",
            Self::BodyHeldBack => "body_held_back",
            Self::Compression => "compression",
            Self::AgeLimit => "age_limit",
            Self::IdleTimeout => "idle_timeout",
            Self::SilentDrop => "silent_drop",
            Self::Http10 => "http_1_0",
            Self::LastEventId => "last_event_id",
            Self::Goaway => "goaway",
            Self::HeaderChanged => "header_changed",
            Self::ConnectionReuse => "connection_reuse",
            Self::Cors => "cors",
            Self::Window => "window",
            Self::StatusPage => "status_page",
        }
    }

    /// Documentation of the fault.
    pub(super) fn docs(self) -> String {
        format!("docs/doctor.md#{}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_a_heading_in_the_documentation() {
        let page = include_str!("../../../docs/doctor.md");
        for fault in Fault::ALL {
            let heading = format!("\n### {}\n", fault.as_str());
            assert!(page.contains(&heading), "{}", fault.as_str());
        }
    }
}
