//! Certificates of our own listeners: chosen by the name the caller asked for.

use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use pingora::listeners::TlsAccept;
use pingora::listeners::tls::TlsSettings;
use pingora::protocols::tls::TlsRef;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::unix_seconds;
use crate::config::CertFiles;
use crate::metrics::Metrics;
use crate::request::ServerName;
use crate::tls::{Error, Identity};

/// A TLS listener's settings: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3.
pub(super) fn settings(certificates: Arc<ListenerCertificates>) -> Result<TlsSettings, Error> {
    let unusable = |cause: Box<pingora::Error>| Error::Unreadable {
        path: std::path::PathBuf::new(),
        cause: cause.to_string(),
    };
    let mut settings = TlsSettings::with_callbacks(Box::new(NoteName)).map_err(unusable)?;
    settings.set_cert_resolver(certificates);
    settings.enable_h2();
    Ok(settings)
}

/// One listener's certificates; new handshakes use what was swapped in last.
#[derive(Debug)]
pub(super) struct ListenerCertificates(ArcSwap<Certificates>);

impl ListenerCertificates {
    /// Reads the files for the first time.
    pub(super) fn start(files: &[CertFiles], metrics: &Metrics) -> Result<Self, Error> {
        Certificates::read(files, metrics).map(|read| Self(ArcSwap::from_pointee(read)))
    }

    /// Reads the files again, changing nothing yet.
    #[expect(clippy::unused_self, reason = "reads for this listener")]
    pub(super) fn read(
        &self,
        files: &[CertFiles],
        metrics: &Metrics,
    ) -> Result<Certificates, Error> {
        Certificates::read(files, metrics)
    }

    /// Serves `certificates` from now on.
    pub(super) fn swap(&self, certificates: Certificates) {
        self.0.store(Arc::new(certificates));
    }
}

impl ResolvesServerCert for ListenerCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load().choose(hello.server_name())
    }
}

/// Keeps the name of each handshake, so that a request's Host can be held against it.
struct NoteName;

#[async_trait]
impl TlsAccept for NoteName {
    async fn handshake_complete_callback(
        &self,
        tls: &TlsRef,
    ) -> Option<Arc<dyn Any + Send + Sync>> {
        let name = tls.server_name().map(str::to_ascii_lowercase);
        Some(Arc::new(ServerName(name)))
    }
}

/// Certificates by the DNS names in them.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// Lower-case; wildcards as written, `*.example.org`.
    by_name: HashMap<String, Arc<CertifiedKey>>,
    /// For callers that ask for no name or an unknown one: the first.
    default: Option<Arc<CertifiedKey>>,
}

impl Certificates {
    fn read(files: &[CertFiles], metrics: &Metrics) -> Result<Self, Error> {
        let mut certificates = Self::default();
        for pair in files {
            let identity = Identity::load(pair)?;
            let name = format!("listener {}", pair.cert.display());
            metrics.certificate(&name, unix_seconds(identity.not_after));
            certificates.add(&identity, pair)?;
        }
        Ok(certificates)
    }

    fn add(&mut self, identity: &Identity, files: &CertFiles) -> Result<(), Error> {
        let unusable = |cause: String| Error::Unreadable {
            path: files.cert.clone(),
            cause,
        };
        let key = identity
            .certified()
            .map_err(|cause| unusable(cause.to_string()))?;
        let (_, leaf) = X509Certificate::from_der(&identity.chain[0])
            .map_err(|cause| unusable(cause.to_string()))?;
        if let Ok(Some(names)) = leaf.subject_alternative_name() {
            for name in &names.value.general_names {
                if let GeneralName::DNSName(name) = name {
                    self.by_name
                        .entry(name.to_ascii_lowercase())
                        .or_insert_with(|| key.clone());
                }
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
