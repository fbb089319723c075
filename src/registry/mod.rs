//! Who is connected here: the event streams that are open on this pod, filled by the serving side, read by the operator's.

mod close;
mod local;
mod member;

pub use close::Close;
pub use local::{Registration, Registry, RouteLag};
pub use member::{Description, Lag, Member, Protocol, Sent, State};
