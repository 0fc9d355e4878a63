//! An authenticating reverse proxy: callers prove who they are to us, we prove who we are to the
//! vendor, and neither side ever sees the other's secret.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod config;
pub mod credential;
pub mod metrics;
pub mod secret;
pub mod store;
pub mod tls;
