//! Facts about a request that are not in its headers: authority, scheme, handshake.

use pingora::proxy::Session;

use crate::downstream::tls::Handshake;
use crate::error::Error;
use crate::request::{headers, path};

/// Returns the authority that the caller named, in the target or in `Host`.
pub(in crate::request) fn callers_authority(session: &Session) -> Result<&str, Error> {
    let head = session.req_header();
    let (of_target, _) = path::split_absolute(head.raw_path())?;
    let of_target = of_target.or_else(|| head.uri.authority().map(http::uri::Authority::as_str));
    headers::authority(&head.headers, of_target)
}

pub(in crate::request) fn callers_scheme(session: &Session) -> &'static str {
    let tls = session
        .digest()
        .is_some_and(|digest| digest.ssl_digest.is_some());
    if tls { "https" } else { "http" }
}

pub(in crate::request) fn handshake(session: &Session) -> Option<&Handshake> {
    let tls = session.digest()?.ssl_digest.as_deref()?;
    tls.extension.get::<Handshake>()
}
