//! What goes wrong on the clients' side gets a clear no or a closed connection, and nobody else notices.

#![allow(clippy::unwrap_used)] // here a failure is the result

mod support;

#[path = "refusals/cors.rs"]
mod cors;
#[path = "refusals/descriptors.rs"]
mod descriptors;
#[path = "refusals/floods.rs"]
mod floods;
#[path = "refusals/head.rs"]
mod head;
#[path = "refusals/limits.rs"]
mod limits;
#[path = "refusals/log.rs"]
mod log;
#[path = "refusals/malformed.rs"]
mod malformed;
#[path = "refusals/pressure.rs"]
mod pressure;
#[path = "refusals/rates.rs"]
mod rates;
#[path = "refusals/scene.rs"]
mod scene;
#[path = "refusals/stalled.rs"]
mod stalled;
#[path = "refusals/subjects.rs"]
mod subjects;
#[path = "refusals/table.rs"]
mod table;
#[path = "refusals/tls.rs"]
mod tls;
