//! Messages of `proto/sidestream/v1/events.proto`.
//!
//! [`Event`] and [`Removed`] are encoded by hand (`encoding::grpc`): only tests use these.

/// Request of `Events/Subscribe`.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SubscribeRequest {
    /// Path of a route, with its query.
    #[prost(string, tag = "1")]
    pub path: String,
    /// Position from which the client continues.
    #[prost(string, tag = "2")]
    pub last_event_id: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct SubscribeResponse {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(oneof = "Content", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11")]
    pub(super) content: Option<Content>,
}

#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub(super) enum Content {
    #[prost(message, tag = "2")]
    Event(Event),
    #[prost(message, tag = "3")]
    Removed(Removed),
    #[prost(message, tag = "4")]
    Open(Open),
    #[prost(message, tag = "5")]
    Position(Nothing),
    #[prost(message, tag = "6")]
    Gap(Gap),
    #[prost(message, tag = "7")]
    Renew(Renew),
    #[prost(message, tag = "8")]
    Snapshot(Nothing),
    #[prost(message, tag = "9")]
    Synced(Nothing),
    #[prost(message, tag = "10")]
    End(Nothing),
    #[prost(message, tag = "11")]
    Close(Close),
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Event {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) subject: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(super) data: Vec<u8>,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Removed {
    #[prost(string, tag = "1")]
    pub(super) subject: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Open {
    #[prost(uint64, tag = "1")]
    pub(super) retry: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Gap {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
    #[prost(uint64, optional, tag = "2")]
    pub(super) missed: Option<u64>,
    #[prost(string, tag = "3")]
    pub(super) resume: String,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Renew {
    #[prost(uint64, tag = "1")]
    pub(super) expires: u64,
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
pub(super) struct Close {
    #[prost(string, tag = "1")]
    pub(super) reason: String,
    #[prost(uint64, tag = "2")]
    pub(super) retry: u64,
}

/// `Position`, `Snapshot`, `Synced` or `End`: the content says everything.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct Nothing {}
