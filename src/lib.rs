//! An authenticating reverse proxy: callers prove who they are to us, we prove who we are to the
//! vendor, and neither side ever sees the other's secret.
//!
//! Six words: a **caller** is who is calling us, proven; a **vendor** is a way in, an upstream and
//! one credential, all data; a **source** obtains a credential; a **credential** is what we hold
//! now; a **placement** is where on a request it goes; a **store** is where a rotating refresh
//! token survives a crash.
//!
//! Two paths run through this crate, and they meet in exactly one place.
//!
//! ```text
//! REQUEST PATH (never fetches, takes no lock)                REFRESH PATH (one task per credential)
//! listener → caller → vendor → allowed? → Credential::current() ◀─ store ◀─ Source::fetch ◀─ timer | 401
//!         → strip → place → upstream → 401? reject, await newer, replay once → answer → one log line
//! ```
//!
//! * [`request`] drives the request path; what it decides is in plain functions beneath it.
//! * [`credential`] is the refresh path: one task per credential, which never sees a request.
//! * They meet in [`credential::Credential`]: the task writes it, requests load it.
//!
//! Around them: [`config`] turns proxy.yaml into what cannot be invalid, [`server`] owns sockets
//! and the process's end, [`upstream`] the way to a vendor's servers, [`store`] what must survive,
//! [`error`] the one table of refusals, [`metrics`] every series, [`traces`]
//! every span, [`wording`] the errors of libraries in words. The vendors of `countersign demo` and of
//! the tests are a crate of their own, `demo/`.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cli;
mod clock;
pub mod config;
mod content_digest;
pub mod credential;
pub mod downstream;
pub mod endpoint;
pub mod error;
mod http_fields;
pub mod jwks;
pub mod late_client_auth;
pub mod logs;
pub mod metrics;
pub mod outbound;
pub mod pattern;
pub mod request;
pub mod secret;
pub mod server;
pub mod store;
pub mod tls;
pub mod traces;
pub mod upstream;
pub mod wording;
