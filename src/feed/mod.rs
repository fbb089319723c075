//! The waist: a log per source, a feed per set of filters, a cursor per client. Knows neither NATS nor HTTP.

pub mod limits;
pub mod writer;

pub use limits::Limits;
