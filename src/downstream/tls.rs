//! Certificates of our own listeners, chosen by server name, and those that callers present.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::tls::TlsRef;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};

use super::certificate::{Authorities, Certificate, Standing};
use crate::config::Listener;
use crate::tls::{CertFiles, Error, Identity, Roots, San};

/// The facts of a caller's TLS handshake.
#[derive(Debug)]
pub struct Handshake {
    /// The server name that it asked for, lower-case.
    pub server_name: Option<String>,
    /// Its certificate, where the listener requested one.
    pub certificate: Option<Certificate>,
}

/// Returns a TLS listener's settings: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3.
pub(crate) fn settings(certificates: Arc<ListenerCertificates>) -> Result<TlsSettings, Error> {
    let note = NoteHandshake(certificates.clone());
    let mut settings = TlsSettings::with_callbacks(Box::new(note))
        .map_err(|_| Error::Settings("a TLS listener cannot be made"))?;
    if certificates.0.load().callers.is_some() {
        settings.set_client_cert_verifier(certificates.clone());
    }
    settings.set_cert_resolver(certificates);
    settings.enable_h2();
    Ok(settings)
}

/// One listener's certificates, and the issuers of its callers' certificates. New handshakes use
/// the newest.
#[derive(Debug)]
pub(crate) struct ListenerCertificates(ArcSwap<Certificates>);

impl ListenerCertificates {
    /// Reads the files for the first time.
    pub(crate) fn start(listener: &Listener) -> Result<Self, Error> {
        Certificates::read(listener).map(|read| Self(ArcSwap::from_pointee(read)))
    }

    /// Reads the files again, without using them yet.
    #[expect(clippy::unused_self, reason = "reads for this listener")]
    pub(crate) fn read(&self, listener: &Listener) -> Result<Certificates, Error> {
        Certificates::read(listener)
    }

    /// Returns the authorities of callers' certificates.
    pub(crate) fn authorities(&self) -> HashSet<[u8; 8]> {
        self.0.load().authorities()
    }

    /// Uses `certificates` from now on.
    pub(crate) fn swap(&self, mut certificates: Certificates) {
        let before = self.0.load();
        let digest = |of: &Certificates| of.callers.as_ref().map(|callers| callers.sha256);
        let changed = digest(&before) != digest(&certificates);
        certificates.generation = before.generation + u64::from(changed);
        self.0.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for ListenerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().choose(hello.server_name())
    }
}

impl ListenerCertificates {
    /// Returns the current issuers. A listener that requests certificates does so until the process
    /// ends.
    fn callers(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        let certificates = self.0.load();
        let callers = certificates.callers.as_ref();
        callers
            .map(|callers| callers.verifier.clone())
            .ok_or(rustls::Error::General("no client_ca".into()))
    }
}

impl ClientCertVerifier for ListenerCertificates {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// No hints: they could not change with the issuers. A caller then presents the certificate it
    /// has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.callers()?.verify_client_cert(leaf, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.callers()?
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.callers()?
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.callers()
            .map_or_else(|_| Vec::new(), |callers| callers.supported_verify_schemes())
    }
}

/// Keeps the server name of each handshake, to compare it with a request's Host, and the names in
/// the caller's certificate.
struct NoteHandshake(Arc<ListenerCertificates>);

#[async_trait]
impl TlsAccept for NoteHandshake {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Handshake {
            server_name: tls.server_name().map(str::to_ascii_lowercase),
            certificate: tls
                .peer_cert_chain_der()
                .and_then(|chain| self.certificate(chain)),
        }))
    }
}

impl NoteHandshake {
    /// Returns what the chain proves now. A resumed session has the chain it began with, which may
    /// have expired or lost its issuer since.
    fn certificate(&self, chain: &[CertificateDer<'_>]) -> Option<Certificate> {
        let (leaf, _) = chain.split_first()?;
        let names = crate::tls::names(leaf).ok()?;
        let until = crate::tls::not_after(leaf).ok()?;
        let chain = chain.iter().map(|one| one.clone().into_owned());
        Some(Certificate::new(
            names,
            until,
            chain.collect(),
            self.0.clone(),
        ))
    }
}

impl Authorities for ListenerCertificates {
    fn generation(&self) -> u64 {
        self.0.load().generation
    }

    fn verify(&self, chain: &[CertificateDer<'static>]) -> Standing {
        let certificates = self.0.load();
        let callers = certificates.callers.as_ref();
        Standing {
            generation: certificates.generation,
            authority: callers.and_then(|callers| callers.authority_of(chain)),
        }
    }
}

/// Verifiers of callers' certificates.
#[derive(Debug)]
struct CallersCertificates {
    /// Accepts a certificate of any authority.
    verifier: Arc<dyn ClientCertVerifier>,
    /// One verifier per authority.
    each: Vec<([u8; 8], Arc<dyn ClientCertVerifier>)>,
    /// Digest of the file's certificates.
    sha256: [u8; 32],
}

impl CallersCertificates {
    fn new(roots: &Roots) -> Result<Self, rustls::Error> {
        let each = roots.authorities();
        let each = each
            .iter()
            .map(|(authority, alone)| Ok((*authority, alone.client_verifier()?)));
        Ok(Self {
            verifier: roots.client_verifier()?,
            each: each.collect::<Result<_, rustls::Error>>()?,
            sha256: roots.sha256,
        })
    }

    /// Returns the authority that vouches for a chain now. Authorities with other names are skipped
    /// before a signature is verified.
    fn authority_of(&self, chain: &[CertificateDer<'_>]) -> Option<[u8; 8]> {
        let (leaf, intermediates) = chain.split_first()?;
        let now = UnixTime::now();
        let mut each = self.each.iter();
        let found = each.find(|(_, verifier)| {
            verifier
                .verify_client_cert(leaf, intermediates, now)
                .is_ok()
        });
        found.map(|(authority, _)| *authority)
    }
}

/// Certificates by the DNS names in them.
#[derive(Debug, Default)]
pub(crate) struct Certificates {
    /// Lower-case; wildcards as written, `*.example.org`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// The first certificate, for callers without a server name or with an unknown one.
    default: Option<Arc<CertifiedKey>>,
    /// `None`: callers' certificates are not requested.
    callers: Option<CallersCertificates>,
    /// Counts the changes of `callers`.
    generation: u64,
}

impl Certificates {
    fn read(listener: &Listener) -> Result<Self, Error> {
        let callers = listener.client_ca.as_ref().map(|path| {
            let roots = Roots::load(path)?;
            CallersCertificates::new(&roots).map_err(|_| Error::Unusable {
                path: path.clone(),
                fault: crate::tls::pem::NO_ISSUER,
            })
        });
        let mut certificates = Self {
            callers: callers.transpose()?,
            ..Self::default()
        };
        for pair in listener.tls.iter().flatten() {
            let identity = Identity::load(pair)?;
            certificates.add(&identity, pair)?;
        }
        Ok(certificates)
    }

    /// Returns the authorities of callers' certificates.
    pub(crate) fn authorities(&self) -> HashSet<[u8; 8]> {
        let each = self.callers.iter().flat_map(|callers| &callers.each);
        each.map(|(authority, _)| *authority).collect()
    }

    fn add(&mut self, identity: &Identity, files: &CertFiles) -> Result<(), Error> {
        let key = identity.certified().map_err(|_| Error::Unusable {
            path: files.key.clone(),
            fault: crate::tls::pem::UNUSABLE_KEY,
        })?;
        for name in crate::tls::names(&identity.chain[0]).unwrap_or_default() {
            if let San::Dns(name) = name {
                self.by_name.entry(name).or_insert_with(|| key.clone());
            }
        }
        self.default.get_or_insert(key);
        Ok(())
    }

    fn choose(&self, name: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_name = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            self.by_name.get(&name).or_else(|| {
                // RFC 6125 §6.4.3: a wildcard stands for exactly one label.
                let (_, parent) = name.split_once('.')?;
                self.by_name.get(&format!("*.{parent}"))
            })
        });
        by_name.or(self.default.as_ref()).cloned()
    }
}
