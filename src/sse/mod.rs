//! `text/event-stream`, pure: bytes in, bytes out, no input or output of its own.

pub mod decode;
