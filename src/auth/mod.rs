//! Principals: the identity of a client, as an authentication provider has proved it.
//!
//! `http::request::authenticate` determines the [`Principal`] of a request. Its claims are one more
//! source of template variables (`{claim.sub}`). There is no provider yet: every client is
//! anonymous, and the configuration rejects templates with claims.

pub mod principal;

pub use principal::{Identity, Principal};
