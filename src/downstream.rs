//! A caller's connection: what may come on it, how fast, and what its handshake has shown.

pub mod body_rate;
pub mod budget;
pub mod certificate;
mod chunks;
mod frames;
mod head;
pub(crate) mod preamble;
pub mod raw_head;
pub mod stream;
pub mod tls;
