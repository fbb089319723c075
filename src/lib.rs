//! Messages come from NATS, become events once, stand in a log; every client is a cursor.

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod feed;
pub mod http;
pub mod injector;
pub mod lifecycle;
pub mod limit;
pub mod nats;
pub mod net;
pub mod presence;
pub mod sse;
pub mod subject;
pub mod telemetry;
