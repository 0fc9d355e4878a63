//! A connection to a vendor over HTTP/1.1, without a request.

use std::fmt;
use std::sync::Arc;

use pingora::protocols::SocketDigest;

use crate::http1::output::Io;

/// A connection.
pub(super) struct Connection {
    /// What carries the bytes: TCP, or TLS over it.
    pub(super) io: Box<dyn Io>,
    /// The socket below, to ask for its state.
    pub(super) socket: Arc<SocketDigest>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}
