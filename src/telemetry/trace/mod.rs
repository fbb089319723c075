//! Traces: spans of sampled events and event streams, sent to a collector by OTLP.
//!
//! ```text
//! nats decoder -> Tracer::sample_event -> Event::sample, a number
//!                                              | feed, http: samples::deliver, samples::ids
//! request      -> Tracer::begin_stream -> StreamSpan
//!                                              v
//!                 spans that wait (bounded) -> thread `trace` -> collector
//! ```
//!
//! There is never a span per delivery: the span of an event counts them. While tracing is off, the
//! decoder checks one flag per message, and a delivery checks a field of the event that it reads
//! anyway.
//!
//! | file | job |
//! | --- | --- |
//! | `config` | the collector and the ratio |
//! | `context` | `traceparent` and `tracestate` |
//! | `tracer` | decides what is sampled |
//! | `waiting` | spans that wait for the exporter |
//! | `samples` | counts deliveries of sampled events |
//! | `span`, `stream_span` | spans and their attributes |
//! | `exporter`, `http_client`, `resource` | the thread that sends them |

pub mod config;
mod context;
mod exporter;
mod http_client;
mod resource;
pub mod samples;
mod span;
mod stream_span;
mod tracer;
mod waiting;

pub use config::{Config, SampleRatio};
pub use stream_span::{StreamDescription, StreamEnd, StreamSpan};
pub use tracer::{SampledMessage, Tracer};
