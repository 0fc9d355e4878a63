//! Our own credential in the head of a response.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use pingora::http::ResponseHeader;

use crate::credential::Held;
use crate::request::redact::Needles;
use crate::request::vendor::Vendor;

/// Returns the patterns that must not reach the caller of a request that carried `held`.
pub(in crate::request) fn needles(held: Option<&Held>, vendor: &Vendor) -> Option<Arc<Needles>> {
    let (placement, _) = vendor.credential.as_ref()?;
    vendor.echo.as_ref()?.needles(placement, held?)
}

/// Masks what `needles` finds in the headers and the reason phrase.
pub(in crate::request) fn mask_head(
    needles: &Needles,
    response: &mut ResponseHeader,
    vendor: &Vendor,
) -> pingora::Result<()> {
    let mut masked = 0;
    let names: Vec<_> = response
        .headers
        .iter()
        .filter(|(_, value)| needles.occur_in(value.as_bytes()))
        .map(|(name, _)| name.clone())
        .collect();
    for name in names {
        let mut fields: HeaderMap = response
            .headers
            .get_all(&name)
            .iter()
            .map(|value| (name.clone(), value.clone()))
            .collect();
        masked += needles.mask_fields(&mut fields);
        let spelled = response
            .case_header_iter()
            .map(|(spelled, _)| spelled.as_slice())
            .find(|spelled| spelled.eq_ignore_ascii_case(name.as_str().as_bytes()))
            .unwrap_or(name.as_str().as_bytes());
        let spelled = Bytes::copy_from_slice(spelled);
        response.remove_header(&name);
        for value in fields.values().cloned() {
            response.append_header(spelled.clone(), value)?;
        }
    }
    if let Some(reason) = response.get_reason_phrase()
        && let (found @ 1.., Some(reason)) = needles.masked(reason.as_bytes())
    {
        masked += found;
        response.set_reason_phrase(std::str::from_utf8(&reason).ok())?;
    }
    vendor.metrics.echoes.inc_by(masked);
    Ok(())
}
