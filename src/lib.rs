//! Sidestream: messages come from NATS, become events once, stand in a log; every client is a cursor.

pub mod cli;
pub mod sse;
