//! An authenticating reverse proxy: callers prove who they are to us, we prove who we are to the
//! vendor, and neither side ever sees the other's secret.
//!
//! Six words: a **caller** is who is calling us, proven; a **vendor** is a route to an upstream, with
//! one credential, all data; a **source** obtains a credential; a **credential** is what we hold now;
//! a **placement** is how it goes onto a request; a **store** is where a rotating refresh token
//! survives a crash.
//!
//! Two paths run through this crate, and they meet in exactly one place.
//!
//! ```text
//! REQUEST PATH (never fetches, takes no lock)                REFRESH PATH (one task per credential)
//! listener → caller → vendor → allowed? → Credential::current() ◀─ store ◀─ Source::fetch ◀─ timer | 401
//!         → strip → place → upstream → 401? reject, await newer, replay once → response → one log line
//! ```
//!
//! * [`request`] is the request path: one function drives both sides of a request, and decisions are
//!   plain functions.
//! * [`credential`] is the refresh path: one task per credential, which never sees a request.
//! * They meet in [`credential::Credential`]: the task writes it, requests load it.
//!
//! Around them: [`config`] reads proxy.yaml into a form that is always valid; [`server`] has sockets,
//! reloads and the admin listener; [`downstream`] a caller's connection and [`upstream`] a vendor's
//! servers, and [`http1`] the messages of both; [`store`] what must survive; [`error`] the one table of refusals; [`metrics`], [`traces`]
//! and [`logs`] what operators see; [`wording`] the errors of libraries in words. The mock vendors of
//! `countersign demo` and of the tests are a crate of their own, `demo/`. docs/architecture.md says
//! what each module may import.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod alarm;
pub mod cli;
mod clock;
pub mod config;
mod content_digest;
pub mod credential;
pub mod downstream;
pub mod endpoint;
pub mod error;
pub mod http1;
mod http2_output;
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
