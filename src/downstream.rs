//! A caller's side: its connections and their limits, its requests over HTTP/1.1 and HTTP/2, and the
//! facts of its handshake.

pub mod body_rate;
pub mod budget;
pub mod certificate;
mod frames;
mod head;
pub(crate) mod http1;
pub(crate) mod http2;
pub(crate) mod http2_io;
pub(crate) mod preamble;
pub mod raw_head;
pub mod removal;
pub(crate) mod request;
pub(crate) mod session;
pub mod tls;
