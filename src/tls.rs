//! Certificates and keys: read from PEM files, checked before anything uses them, digested.
//!
//! Everything that speaks TLS starts here: listeners, upstream peers and token requests.

pub(crate) mod pem;
pub(crate) mod pinned;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rustls::client::{WantsClientCert, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore};
use sha2::{Digest, Sha256};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use zeroize::Zeroizing;

pub use self::pem::Fault;
use self::pinned::IssuedOrPinned;

/// A certificate chain and its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CertFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
}

/// A subject alternative name with its type (RFC 5280 §4.2.1.6). Names of different types are never
/// the same.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum San {
    /// `uniformResourceIdentifier`, byte for byte.
    Uri(String),
    /// `dNSName`, lower-case.
    Dns(String),
    /// `rfc822Name`, its host lower-case.
    Email(String),
}

impl San {
    /// Returns a DNS name; case is ignored (RFC 4343).
    #[must_use]
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }

    /// Returns an e-mail address; case counts only before the `@` (RFC 5280 §7.5).
    #[must_use]
    pub fn email(address: &str) -> Self {
        Self::Email(match address.rsplit_once('@') {
            Some((local, host)) => format!("{local}@{}", host.to_ascii_lowercase()),
            None => address.to_owned(),
        })
    }
}

/// A certificate or key file that cannot be used. It contains no text of a parser, which would hold
/// the bytes in question.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("{path} cannot be read: {cause}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        cause: std::io::Error,
    },
    /// Readable, but not what it should be.
    #[error("{path} {fault}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The defect of the file.
        fault: Fault,
    },
    /// Readable, but unusable as a pair: another key's certificate, an unknown key type.
    #[error("{cert} with {key}: {cause}")]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
        /// The defect of the pair.
        cause: &'static str,
    },
    /// A listener's settings that TLS rejects.
    #[error("{0}")]
    Settings(&'static str),
    /// Accepted by rustls, but not by OpenSSL: a key too short by now, say.
    #[error("OpenSSL, which late_client_auth needs, cannot use it: {0}")]
    OpenSsl(String),
}

/// A certificate chain with its private key, proven to belong together.
pub struct Identity {
    /// The chain, leaf first, DER.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key, DER.
    pub key: PrivateKeyDer<'static>,
    /// SHA-256 of the leaf.
    pub leaf_sha256: [u8; 32],
    /// The leaf's start of validity.
    pub not_before: SystemTime,
    /// The leaf's end of validity.
    pub not_after: SystemTime,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("leaf_sha256", &hex::encode(self.leaf_sha256))
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Reads and checks a certificate chain and its key.
    ///
    /// # Errors
    /// Fails if a file is unreadable or not PEM, or the key is not the leaf's.
    pub fn load(files: &CertFiles) -> Result<Self, Error> {
        let chain = certificates(&files.cert)?;
        let (key, signer) = signing_key(&files.key)?;
        let leaf_sha256 = sha256(&[&chain[0]]);
        let leaf = parsed(&chain[0]).map_err(|fault| unusable(&files.cert, fault))?;
        // A key whose public half is unknown cannot be compared.
        let public = signer.public_key();
        if public.is_some_and(|public| *public != *leaf.public_key().raw) {
            return Err(Error::Mismatch {
                cert: files.cert.clone(),
                key: files.key.clone(),
                cause: "the key is not the one of the certificate; the certificate that comes \
                        first must be its own, not an issuer's",
            });
        }
        let (not_before, not_after) = (start_of(&leaf), end_of(&leaf));
        Ok(Self {
            chain,
            key,
            leaf_sha256,
            not_before,
            not_after,
        })
    }

    /// Tells whether rustls accepts the certificate with its key. It refuses version 1 and unknown
    /// critical extensions, which are for the peer to judge.
    pub(crate) fn is_ordinary(&self) -> bool {
        CertifiedKey::from_der(self.chain.clone(), self.key.clone_key(), &provider()).is_ok()
    }

    /// Returns the form for rustls listeners and clients.
    ///
    /// Nothing of the certificate is checked: it is only presented, and the peer judges a version 1
    /// or an unknown extension.
    ///
    /// # Errors
    /// Fails if the key is of an unknown type; never after [`Identity::load`].
    pub fn certified(&self) -> Result<Arc<CertifiedKey>, rustls::Error> {
        let key = provider()
            .key_provider
            .load_private_key(self.key.clone_key())?;
        Ok(Arc::new(CertifiedKey::new(self.chain.clone(), key)))
    }
}

/// The certificates that are trusted as issuers of a server's certificate.
#[derive(Clone)]
pub struct Roots {
    /// DER.
    pub certificates: Vec<CertificateDer<'static>>,
    /// SHA-256 over the sorted certificates.
    pub sha256: [u8; 32],
    /// Read from a file of the configuration, so the server's own certificate may be among them.
    /// System roots pin nothing, and a copy of all of them for each vendor would be large.
    pinned: bool,
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Roots")
            .field("certificates", &self.certificates.len())
            .finish_non_exhaustive()
    }
}

impl Roots {
    /// Reads a PEM bundle.
    ///
    /// # Errors
    /// Fails if the file is unreadable or holds no certificate that can be an issuer.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let mut found = pem_certificates(path)?;
        // Bundles may hold unusable certificates.
        let first = parsed(&found[0]).err();
        found.retain(|certificate| parsed(certificate).is_ok());
        if let (true, Some(fault)) = (found.is_empty(), first) {
            return Err(unusable(path, fault));
        }
        let roots = Self::of(found);
        roots.store().map_err(|_| unusable(path, pem::NO_ISSUER))?;
        Ok(roots)
    }

    /// Returns the operating system's roots, `SSL_CERT_FILE` and `SSL_CERT_DIR` included. May be
    /// empty on a bare container image; then nothing verifies.
    #[must_use]
    pub fn system() -> Self {
        Self {
            pinned: false,
            ..Self::of(rustls_native_certs::load_native_certs().certs)
        }
    }

    pub(crate) fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut sorted: Vec<&[u8]> = certificates.iter().map(AsRef::as_ref).collect();
        sorted.sort_unstable();
        let sha256 = sha256(&sorted);
        Self {
            certificates,
            sha256,
            pinned: true,
        }
    }

    /// Returns those that a server itself may present.
    pub(crate) fn pinnable(&self) -> &[CertificateDer<'static>] {
        if self.pinned { &self.certificates } else { &[] }
    }

    /// Returns the form for rustls.
    ///
    /// # Errors
    /// Fails if no certificate can be an issuer.
    pub fn store(&self) -> Result<RootCertStore, rustls::Error> {
        let mut store = RootCertStore::empty();
        let (added, _) = store.add_parsable_certificates(self.certificates.iter().cloned());
        if added == 0 {
            return Err(rustls::Error::General("no trusted issuer is known".into()));
        }
        Ok(store)
    }

    /// Returns those that can be issuers, as PEM: for libraries that read nothing else.
    #[must_use]
    pub(crate) fn pem(&self) -> Vec<u8> {
        let usable =
            |der: &&CertificateDer<'static>| RootCertStore::empty().add((*der).clone()).is_ok();
        let mut text = String::new();
        for der in self.certificates.iter().filter(usable) {
            text.push_str("-----BEGIN CERTIFICATE-----\n");
            text.push_str(&STANDARD.encode(der));
            text.push_str("\n-----END CERTIFICATE-----\n");
        }
        text.into_bytes()
    }

    /// Returns each certificate that can be an issuer by itself, under a digest of its name and
    /// key: a certificate that was renewed with both is the same authority.
    #[must_use]
    pub fn authorities(&self) -> Vec<([u8; 8], Self)> {
        let each = self.certificates.iter().filter_map(|certificate| {
            let alone = Self::of(vec![certificate.clone()]);
            let store = alone.store().ok()?;
            let anchor = store.roots.first()?;
            let digest = sha256(&[&anchor.subject, &anchor.subject_public_key_info]);
            let mut authority = [0; 8];
            authority.copy_from_slice(&digest[..8]);
            Some((authority, alone))
        });
        each.collect()
    }

    /// Returns a verifier of clients' certificates; a client may have none.
    ///
    /// # Errors
    /// Fails if there is no usable root.
    pub fn client_verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
        WebPkiClientVerifier::builder_with_provider(Arc::new(self.store()?), Arc::new(provider()))
            .allow_unauthenticated()
            .build()
            .map_err(|_| rustls::Error::General("no trusted issuer is known".into()))
    }

    /// Returns a client's TLS settings: this trust, and the identity presented when the server
    /// requests one. TLS 1.2 and 1.3, names always verified.
    ///
    /// # Errors
    /// Fails if there is no usable root, or the identity's key cannot be used.
    pub fn client_config(
        &self,
        identity: Option<&Identity>,
    ) -> Result<ClientConfig, rustls::Error> {
        let Some(identity) = identity else {
            return self.anonymous();
        };
        let shown = SingleCertAndKey::from(identity.certified()?);
        Ok(self
            .config_builder()?
            .with_client_cert_resolver(Arc::new(shown)))
    }

    /// Settings without an identity are shared by equal trust: a thousand vendors would each hold a
    /// copy of the system's roots and of the memory for sessions, 40 KiB.
    fn anonymous(&self) -> Result<ClientConfig, rustls::Error> {
        let mut shared = ANONYMOUS.lock();
        if let Some(known) = shared.get(&self.sha256) {
            return Ok(known.clone());
        }
        let made = self.config_builder()?.with_no_client_auth();
        if shared.len() >= ANONYMOUS_AT_MOST {
            // Settings of files that have changed long since.
            shared.clear();
        }
        shared.insert(self.sha256, made.clone());
        Ok(made)
    }

    fn config_builder(
        &self,
    ) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(Arc::new(provider()));
        let builder = builder.with_safe_default_protocol_versions()?;
        Ok(builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(self.verifier()?)))
    }

    /// Returns a verifier of servers' certificates.
    fn verifier(&self) -> Result<IssuedOrPinned, rustls::Error> {
        let store = Arc::new(self.store()?);
        let issued = WebPkiServerVerifier::builder_with_provider(store, Arc::new(provider()))
            .build()
            .map_err(|_| rustls::Error::General("no trusted issuer is known".into()))?;
        Ok(IssuedOrPinned {
            issued,
            trusted: self.pinnable().to_vec(),
        })
    }

    /// Tells whether `host`, a name or an address, should present one of these certificates itself,
    /// in a form that only [`pinned`] accepts.
    #[must_use]
    pub(crate) fn pins(&self, host: &str) -> bool {
        let name = ServerName::try_from(host);
        name.is_ok_and(|name| self.verifier().is_ok_and(|verifier| verifier.pins(&name)))
    }
}

/// Settings by the roots' digest.
static ANONYMOUS: LazyLock<Mutex<HashMap<[u8; 32], ClientConfig>>> = LazyLock::new(Mutex::default);
const ANONYMOUS_AT_MOST: usize = 64;

/// Installs the process's cryptography. Must be called before any use of TLS: pingora would install
/// another provider, and libraries that find two cannot choose.
pub fn install_provider() {
    // Already installed by another part of the same process (tests): the same provider.
    let _ = provider().install_default();
}

/// Prepares the process's randomness before a handshake needs it. aws-lc also draws from the
/// processor's jitter, which takes it tens of milliseconds, once.
pub fn gather_randomness() {
    // A later user of randomness reports its absence.
    let _ = aws_lc_rs::rand::fill(&mut [0; 1]);
}

/// Returns the SHA-256 of the concatenation of `parts`.
#[must_use]
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn provider() -> rustls::crypto::CryptoProvider {
    rustls::crypto::aws_lc_rs::default_provider()
}

fn pem_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    pem::certificates(&read(path)?).map_err(|fault| unusable(path, fault))
}

/// Reads the certificates of a PEM file, each of which can be parsed.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = pem_certificates(path)?;
    for certificate in &found {
        parsed(certificate).map_err(|fault| unusable(path, fault))?;
    }
    Ok(found)
}

/// Returns why a file cannot be used as a certificate chain; `None`: it can.
pub(crate) fn certificate_fault(path: &Path) -> Option<Error> {
    certificates(path).err()
}

/// Returns why a file cannot be used as a private key; `None`: it can.
pub(crate) fn key_fault(path: &Path) -> Option<Error> {
    signing_key(path).err()
}

/// Reads the private key of a PEM file, and its signer.
fn signing_key(path: &Path) -> Result<(PrivateKeyDer<'static>, Arc<dyn SigningKey>), Error> {
    let key = pem::private_key(&read(path)?).map_err(|fault| unusable(path, fault))?;
    let signer = provider().key_provider.load_private_key(key.clone_key());
    let signer = signer.map_err(|_| unusable(path, pem::UNUSABLE_KEY))?;
    Ok((key, signer))
}

fn parsed<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Fault> {
    match X509Certificate::from_der(certificate) {
        Ok((_, parsed)) => Ok(parsed),
        Err(_) if PrivateKeyDer::try_from(certificate.as_ref()).is_ok() => {
            Err(pem::KEY_AS_CERTIFICATE)
        }
        Err(_) => Err(pem::NOT_X509),
    }
}

fn start_of(certificate: &X509Certificate<'_>) -> SystemTime {
    system_time(certificate.validity().not_before)
}

fn end_of(certificate: &X509Certificate<'_>) -> SystemTime {
    system_time(certificate.validity().not_after)
}

fn system_time(at: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(at.timestamp()).unwrap_or(0);
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    std::fs::read(path)
        .map(Zeroizing::new)
        .map_err(|cause| Error::Unreadable {
            path: path.to_owned(),
            cause,
        })
}

fn unusable(path: &Path, fault: Fault) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        fault,
    }
}

/// Returns the subject alternative names of a certificate, of the types that callers may have.
///
/// # Errors
/// Fails if it cannot be parsed, or holds the extension twice (RFC 5280 §4.2).
pub fn names(certificate: &CertificateDer<'_>) -> Result<Vec<San>, Fault> {
    let parsed = parsed(certificate)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| pem::NOT_X509)?;
    let names = names.iter().flat_map(|names| &names.value.general_names);
    Ok(names
        .filter_map(|name| match name {
            GeneralName::URI(name) => Some(San::Uri((*name).to_owned())),
            GeneralName::DNSName(name) => Some(San::dns(name)),
            GeneralName::RFC822Name(name) => Some(San::email(name)),
            GeneralName::OtherName(..)
            | GeneralName::X400Address(_)
            | GeneralName::DirectoryName(_)
            | GeneralName::EDIPartyName(_)
            | GeneralName::IPAddress(_)
            | GeneralName::RegisteredID(_) => None,
        })
        .collect())
}

/// Returns the end of a certificate's validity.
///
/// # Errors
/// Fails if it cannot be parsed.
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<SystemTime, Fault> {
    parsed(certificate).map(|parsed| end_of(&parsed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_who_trust_the_same_and_show_nothing_share_their_settings() {
        let dir = tempfile::tempdir().unwrap();
        let signed = |name: &str| {
            let signed = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
            let files = CertFiles {
                cert: dir.path().join(format!("{name}.crt")),
                key: dir.path().join(format!("{name}.key")),
            };
            std::fs::write(&files.cert, signed.cert.pem()).unwrap();
            std::fs::write(&files.key, signed.signing_key.serialize_pem()).unwrap();
            files
        };
        let (one, other) = (signed("one.test"), signed("other.test"));
        let identity = Identity::load(&one).unwrap();
        // Made with the settings, and shared by their copies.
        let made = |files: &CertFiles, identity: Option<&Identity>| {
            let roots = Roots::load(&files.cert).unwrap();
            roots.client_config(identity).unwrap().key_log
        };
        let same = |a: &Arc<dyn rustls::KeyLog>, b: &Arc<dyn rustls::KeyLog>| {
            std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
        };
        let anonymous = made(&one, None);
        assert!(same(&anonymous, &made(&one, None)));
        assert!(!same(&anonymous, &made(&other, None)));
        assert!(!same(&anonymous, &made(&one, Some(&identity))));
    }

    #[test]
    fn a_key_file_that_lost_its_line_breaks_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let signed = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let files = CertFiles {
            cert: dir.path().join("a.crt"),
            key: dir.path().join("a.key"),
        };
        std::fs::write(&files.cert, signed.cert.pem()).unwrap();
        let key = signed.signing_key.serialize_pem();
        std::fs::write(&files.key, &key).unwrap();
        assert_eq!(Identity::load(&files).unwrap().chain.len(), 1);

        for broken in [key.replace('\n', ""), key.replace('\n', " ")] {
            std::fs::write(&files.key, broken).unwrap();
            let said = Identity::load(&files).unwrap_err();
            let middle = &key[40..60];
            assert!(!format!("{said} {said:?}").contains(middle), "{said:?}");
        }
    }
}
