//! A caller's connection: its limits in time and memory, its framing, and the facts of its
//! handshake.

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
