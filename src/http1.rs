//! HTTP/1.1 messages (RFC 9112), for the caller's side and the vendor's alike: heads from and to
//! bytes, the framing of bodies, and the bytes that wait to be written.

pub mod body;
pub mod chunks;
pub mod head;
pub mod output;
