//! Certificates for the mock vendors: a CA for the servers, a CA for the certificate logins, and
//! one that is not trusted by anybody.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

/// PEM files that a client of the mock vendors needs.
pub struct Files {
    /// The CA of the mock servers' own certificates.
    pub ca: PathBuf,
    /// The CA that signed the next two certificates.
    pub client_ca: PathBuf,
    /// The certificate of the certificate login, subject `CN=demo-sectigo`.
    pub sectigo: CertFiles,
    /// The certificate of the token server's certificate login, subject `CN=demo-venafi`.
    pub venafi: CertFiles,
    /// Subject `CN=demo-venafi` as well, but signed by a CA that no mock vendor approves.
    pub foreign: CertFiles,
}

/// A certificate chain and its private key, each in a PEM file.
pub struct CertFiles {
    /// The chain, leaf first.
    pub cert: PathBuf,
    /// The leaf's private key.
    pub key: PathBuf,
}

/// A client's certificate. The handshake has proven that the client has its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCert {
    /// The subject, as `CN=…`.
    pub subject: String,
    /// The serial number, lower-case hex.
    pub serial: String,
    /// `true` when the client CA signed it.
    pub approved: bool,
}

/// TLS settings of a mock server: client certificates are requested but not required, HTTP/1.1
/// only.
#[derive(Clone)]
pub(crate) struct Tls {
    pub(crate) acceptor: TlsAcceptor,
    approve: Arc<dyn ClientCertVerifier>,
}

impl Tls {
    /// Describes the certificate that the client presented, if any.
    pub(crate) fn client_cert(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<ClientCert> {
        let (leaf, intermediates) = chain?.split_first()?;
        let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
        Some(ClientCert {
            subject: parsed.subject().to_string(),
            serial: hex::encode(parsed.raw_serial()),
            approved: self
                .approve
                .verify_client_cert(leaf, intermediates, UnixTime::now())
                .is_ok(),
        })
    }
}

/// Generates all certificates and writes those that clients need to `dir`. Only the owner may read
/// the keys.
pub(crate) fn generate(
    dir: &Path,
) -> Result<(Files, Tls), Box<dyn std::error::Error + Send + Sync>> {
    let servers = authority("Countersign demo: servers")?;
    let clients = authority("Countersign demo: clients")?;
    let strangers = authority("Countersign demo: nobody trusts this")?;
    let file = |name: &str, pem: String| -> io::Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, pem)?;
        Ok(path)
    };
    let client = |name: &str, subject: &str, issuer: &Authority| {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name = name_of(subject);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let pem = params.signed_by(&key, issuer)?.pem();
        let files = CertFiles {
            cert: file(&format!("{name}.pem"), pem)?,
            key: dir.join(format!("{name}.key")),
        };
        super::write_private(&files.key, &key.serialize_pem())?;
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(files)
    };
    let files = Files {
        ca: file("ca.pem", servers.pem())?,
        client_ca: file("client-ca.pem", clients.pem())?,
        sectigo: client("sectigo-client", "demo-sectigo", &clients)?,
        venafi: client("venafi-client", "demo-venafi", &clients)?,
        foreign: client("foreign-client", "demo-venafi", &strangers)?,
    };

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.distinguished_name = name_of("localhost");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = params.signed_by(&key, &servers)?;

    let provider = Arc::new(default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.der().clone())?;
    let approve =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(Arc::new(AcceptAnyClient(approve.clone())))
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
        )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let tls = Tls {
        acceptor: TlsAcceptor::from(Arc::new(config)),
        approve,
    };
    Ok((files, tls))
}

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority(name: &str) -> Result<Authority, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = name_of(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate()?)
}

fn name_of(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

/// Accepts every client certificate in the handshake, as the vendors' servers do: they refuse an
/// unknown one with an HTTP status and a message, not with a TLS alert.
#[derive(Debug)]
struct AcceptAnyClient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for AcceptAnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[rustls::DistinguishedName] {
        // With a hint, clients would not present a certificate of another CA at all.
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}
