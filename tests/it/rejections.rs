//! What goes wrong on the clients' side gets a clear no or a closed connection, and nobody else notices.

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
