//! A server's own certificate, pinned in `ca:`.
//!
//! `openssl req -x509` makes a self-signed certificate that says it is an authority (`CA:TRUE`).
//! webpki takes it for an issuer and for nothing else. A server that presents exactly a certificate
//! that the configuration trusts is authentic all the same, as long as name and time match.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};

use super::parsed;

/// Accepts what webpki accepts, and a server that presents one of the trusted certificates itself.
#[derive(Debug)]
pub(super) struct IssuedOrPinned {
    pub(super) issued: Arc<WebPkiServerVerifier>,
    pub(super) trusted: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for IssuedOrPinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verdict = self
            .issued
            .verify_server_cert(leaf, intermediates, name, ocsp, now);
        if verdict.is_ok() || !self.trusted.iter().any(|pinned| pinned == leaf) {
            return verdict;
        }
        vouches(leaf, name, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.issued
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.issued.supported_verify_schemes()
    }
}

impl IssuedOrPinned {
    /// Tells whether one of the trusted certificates is accepted from `name` only because it is
    /// pinned. Time is not checked.
    pub(super) fn pins(&self, name: &ServerName<'_>) -> bool {
        self.trusted.iter().any(|certificate| {
            let Ok(begin) = parsed(certificate).map(|it| it.validity().not_before.timestamp())
            else {
                return false;
            };
            let begin = std::time::Duration::from_secs(u64::try_from(begin).unwrap_or(0));
            let now = UnixTime::since_unix_epoch(begin);
            let issued = self
                .issued
                .verify_server_cert(certificate, &[], name, &[], now);
            issued.is_err() && vouches(certificate, name, now).is_ok()
        })
    }
}

/// Checks whether a pinned certificate proves that its holder is `name` at `now`.
///
/// The name is an alternative name of the certificate, or its common name where it has no
/// alternative names, as `openssl req -x509` makes it by default.
///
/// # Errors
/// The reason why it does not.
pub(crate) fn vouches(
    certificate: &CertificateDer<'_>,
    name: &ServerName<'_>,
    now: UnixTime,
) -> Result<(), Error> {
    // The verifier of the handshake's signature must be able to parse it, too.
    let for_webpki = ParsedCertificate::try_from(certificate)?;
    let parsed = parsed(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > parsed.validity().not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    let usage = parsed
        .extended_key_usage()
        .map_err(|_| CertificateError::BadEncoding)?;
    if usage.is_some_and(|usage| !usage.value.any && !usage.value.server_auth) {
        return Err(CertificateError::InvalidPurpose.into());
    }
    let alternative = parsed
        .subject_alternative_name()
        .map_err(|_| CertificateError::BadEncoding)?;
    if alternative.is_some() {
        return verify_server_name(&for_webpki, name);
    }
    let wanted = match name {
        ServerName::DnsName(name) => name.as_ref().to_ascii_lowercase(),
        ServerName::IpAddress(address) => IpAddr::from(*address).to_string(),
        _ => return Err(CertificateError::NotValidForName.into()),
    };
    let mut names = parsed.subject().iter_common_name();
    let fits = names.any(|name| {
        name.as_str()
            .is_ok_and(|name| name.eq_ignore_ascii_case(&wanted))
    });
    if fits {
        Ok(())
    } else {
        Err(CertificateError::NotValidForName.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

    use super::super::Roots;
    use super::*;

    /// Returns a certificate as `openssl req -x509` makes it; without `names` it has only its
    /// common name.
    fn self_signed(names: &[&str], common: &str) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, common);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().clone()
    }

    fn verified(
        roots: &Roots,
        shown: &CertificateDer<'_>,
        host: &str,
        now: UnixTime,
    ) -> Result<(), Error> {
        let name = ServerName::try_from(host).unwrap();
        let verifier = roots.verifier().unwrap();
        let verdict = verifier.verify_server_cert(shown, &[], &name, &[], now);
        verdict.map(drop)
    }

    #[test]
    fn a_pinned_certificate_is_accepted_from_whom_it_names_and_no_other_is() {
        crate::tls::install_provider();
        let pinned = self_signed(&["a.test", "127.0.0.1"], "x");
        let nameless = self_signed(&[], "b.test");
        let other = self_signed(&["a.test"], "x");
        let roots = Roots::of(vec![pinned.clone(), nameless.clone()]);
        let now = UnixTime::now();
        verified(&roots, &pinned, "a.test", now).unwrap();
        verified(&roots, &pinned, "127.0.0.1", now).unwrap();
        verified(&roots, &nameless, "B.test", now).unwrap();
        for (shown, host) in [
            (&pinned, "b.test"),
            (&pinned, "x"),
            (&pinned, "127.0.0.2"),
            (&nameless, "a.test"),
            (&other, "a.test"),
        ] {
            verified(&roots, shown, host, now).unwrap_err();
        }
        let long_ago = UnixTime::since_unix_epoch(Duration::from_secs(1));
        assert_eq!(
            verified(&roots, &pinned, "a.test", long_ago).unwrap_err(),
            CertificateError::NotValidYet.into()
        );
        let far = UnixTime::since_unix_epoch(Duration::from_secs(1 << 40));
        assert_eq!(
            verified(&roots, &pinned, "a.test", far).unwrap_err(),
            CertificateError::Expired.into()
        );
    }

    #[test]
    fn only_a_certificate_that_needs_it_counts_as_pinned() {
        crate::tls::install_provider();
        let pinned = Roots::of(vec![self_signed(&["a.test"], "x")]);
        assert!(pinned.pins("a.test"));
        assert!(!pinned.pins("b.test"));
        // An ordinary authority, and a self-signed certificate that webpki accepts as it is.
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(DnType::CommonName, "Corporate Root");
        let authority = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let plain = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let both = Roots::of(vec![authority.der().clone(), plain.cert.der().clone()]);
        assert!(!both.pins("a.test"));
    }
}
