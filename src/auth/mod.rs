//! Principals: the identity of a client, as an authentication provider has proved it.
//!
//! `http::request::authenticate` determines the [`Principal`] of a request. Its claims are one more
//! source of template variables (`{claim.sub}`), and an event stream ends when its principal
//! expires. There is no provider yet: every client is anonymous, no principal expires, and the
//! configuration rejects templates with claims.

pub mod principal;

pub use principal::{Identity, Principal};
