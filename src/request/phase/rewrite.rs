//! References to the vendor in the headers of a response.

use http::header::{CONTENT_LOCATION, LINK, LOCATION};
use pingora::http::ResponseHeader;

use crate::request::references;
use crate::request::vendor::Vendor;

/// Rewrites `Location`, `Content-Location` and `Link` so that they lead through the proxy again.
pub(in crate::request) fn rewrite_references(
    response: &mut ResponseHeader,
    vendor: &Vendor,
    by_prefix: bool,
) -> pingora::Result<()> {
    let prefix = if by_prefix { &vendor.prefix } else { "" };
    for (name, spelled) in [
        (LOCATION, "Location"),
        (CONTENT_LOCATION, "Content-Location"),
    ] {
        if let Some(value) = response.headers.get(name)
            && let Some(ours) = references::location(value, &vendor.upstream, prefix)
        {
            response.insert_header(spelled, ours)?;
        }
    }
    if !response.headers.contains_key(LINK) {
        return Ok(());
    }
    let links = response.headers.get_all(LINK).iter();
    let ours = links.map(|value| {
        let ours = references::link(value, &vendor.upstream, prefix);
        ours.unwrap_or_else(|| value.clone())
    });
    let ours: Vec<_> = ours.collect();
    response.remove_header(&LINK);
    for value in ours {
        response.append_header("Link", value)?;
    }
    Ok(())
}
