//! Faults and attacks of clients: rejected with a reason or closed, without effect on other
//! clients.

mod cors;
mod descriptors;
mod fixture;
mod floods;
mod head;
mod limits;
mod log;
mod malformed;
mod pressure;
mod rates;
mod stalled;
mod subjects;
mod table;
mod tls;
