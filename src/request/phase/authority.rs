//! Facts about a request that are not in its headers: authority and scheme.

use crate::downstream::request::{Peer, Request};
use crate::error::Error;
use crate::request::{headers, path};

/// Returns the authority that the caller named, in the target or in `Host`.
pub(in crate::request) fn callers_authority(request: &Request) -> Result<&str, Error> {
    let head = &request.head;
    let (of_target, _) = path::split_absolute(head.raw_path())?;
    let of_target = of_target.or_else(|| head.uri.authority().map(http::uri::Authority::as_str));
    headers::authority(&head.headers, of_target)
}

pub(in crate::request) fn callers_scheme(peer: &Peer) -> &'static str {
    if peer.tls.is_some() { "https" } else { "http" }
}
