//! Authentication: providers that turn the credentials of a request into a [`Principal`].
//!
//! A [`Provider`] looks for its credentials in a request ([`Credentials`], so that no request type
//! is needed here) and returns an identity or a failure. [`Providers`] has them by name, as the
//! configuration lists them. The claims of a principal are one more source of template
//! variables (`{claim.sub}`), and an event stream ends when its principal expires.
//!
//! | file | job |
//! | --- | --- |
//! | `provider` | interface of a provider: credentials, failures |
//! | `providers` | all providers by name; a reload replaces those that changed |
//! | `config` | `authentication:` of the configuration as types |
//! | `jwt` | signed tokens |
//! | `certificate` | client certificates |
//! | `forward` | an HTTP endpoint that decides |
//! | `principal` | principal of a request |
//! | `revocations` | credentials that are not accepted until a time |
//! | `tickets` | credentials for one event stream, which other ones buy |
//! | `expires` | end of a permission that an endpoint or the application grants |
//! | `clock` | wall-clock time of credentials as monotonic time |
//!
//! Tokens, secrets and their claims never appear in logs, errors or metrics.

mod certificate;
mod client_tls;
mod clock;
pub mod config;
pub mod expires;
mod forward;
mod jwt;
pub mod principal;
pub mod provider;
pub mod providers;
pub mod revocations;
pub mod tickets;

pub use config::{Config, Secret};
pub use principal::{Expiry, Identity, Principal};
pub use provider::{AuthFailure, Credentials, Provider};
pub use providers::Providers;
pub use revocations::Revocations;
pub use tickets::{TicketStore, Tickets};
