//! The certificates that a peer presents and trusts in its TLS handshake, and the key that keeps
//! its connections apart from all others.

use std::sync::Arc;

use pingora::upstreams::peer::HttpPeer;
use pingora::utils::tls::{CertKey, WrappedX509, parse_x509};
use rustls::RootCertStore;

use crate::config::Vendor;
use crate::tls::{Error, Identity, Roots, sha256};

/// Sets the vendor's client certificate, CA and group key on `peer`.
///
/// pingora tells pooled connections apart by the client certificate's serial number, and not at all
/// by CA, so two vendors could share a connection that authenticates one of them. The group key
/// closes that: it is a digest over everything that makes a connection this vendor's.
pub(super) fn configure_tls(
    peer: &mut HttpPeer,
    vendor: &Vendor,
    generation: u64,
) -> Result<(), Error> {
    let mut leaf = [0; 32];
    if let Some(files) = &vendor.client_cert {
        let identity = Identity::load(files)?;
        leaf = identity.leaf_sha256;
        let chain = identity.chain.iter().map(|der| der.to_vec()).collect();
        peer.client_cert_key = Some(Arc::new(CertKey::new(
            chain,
            identity.key.secret_der().to_vec(),
        )));
    }
    let mut trusted = [0; 32];
    if let Some(path) = &vendor.ca {
        let roots = Roots::load(path)?;
        trusted = roots.sha256;
        // pingora fails the handshake for a bundle with one unusable certificate; such bundles
        // exist.
        let usable = roots
            .certificates
            .iter()
            .filter(|der| RootCertStore::empty().add((*der).clone()).is_ok())
            .map(|der| WrappedX509::new(der.to_vec(), parse_x509))
            .collect();
        peer.options.ca = Some(usable);
    }
    let digest = sha256(&[
        vendor.name.as_bytes(),
        &[0],
        &leaf,
        &trusted,
        &generation.to_be_bytes(),
    ]);
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    peer.group_key = u64::from_be_bytes(first);
    Ok(())
}
