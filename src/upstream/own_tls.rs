//! TLS of our own, where pingora's connector does not suffice.

use std::io;
use std::sync::Arc;

use pingora::{Error, ErrorType, Result};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::Vendor;
use crate::http1::output::Io;
use crate::late_client_auth::{self, LateClientAuth};
use crate::tls::{self, Identity, Roots};

/// TLS settings for one vendor, for HTTP/1.1 alone.
#[derive(Clone)]
pub(super) enum OwnTls {
    /// The vendor requests the certificate late.
    Late(Arc<LateClientAuth>),
    /// The vendor's own certificate is pinned, or ours is of a form that rustls refuses: pingora
    /// builds its settings from the parts each time, and takes neither.
    Usual(TlsConnector),
}

impl std::fmt::Debug for OwnTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Late(_) => "Late",
            Self::Usual(_) => "Usual",
        })
    }
}

impl OwnTls {
    /// Returns the settings for `vendor`; `None` where pingora's suffice.
    pub(super) fn of(vendor: &Vendor) -> Result<Option<Self>, tls::Error> {
        if !vendor.upstream.tls {
            return Ok(None);
        }
        let identity = vendor
            .client_cert
            .as_ref()
            .map(Identity::load)
            .transpose()?;
        let own = vendor.ca.as_deref().map(Roots::load).transpose()?;
        let is_odd = identity
            .as_ref()
            .is_some_and(|identity| !identity.is_ordinary());
        let is_pinned = own
            .as_ref()
            .is_some_and(|roots| roots.pins(&vendor.upstream.host));
        if !(vendor.late_client_auth || is_odd || is_pinned) {
            return Ok(None);
        }
        let roots = own.unwrap_or_else(Roots::system);
        if vendor.late_client_auth {
            let late = LateClientAuth::new(&roots, identity.as_ref())?;
            return Ok(Some(Self::Late(Arc::new(late))));
        }
        let mut config = roots.client_config(identity.as_ref()).map_err(|_| {
            tls::Error::Settings("TLS with this CA and client certificate cannot be set up")
        })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Self::Usual(TlsConnector::from(Arc::new(config)))))
    }

    /// Speaks TLS on `stream` and verifies that `host` is at the other end.
    ///
    /// # Errors
    /// Fails if another server is there, or if TLS fails.
    pub(super) async fn handshake(&self, host: &str, stream: TcpStream) -> Result<Box<dyn Io>> {
        match self {
            Self::Late(late) => match late.handshake(host, stream).await {
                Ok(stream) => Ok(Box::new(stream)),
                Err(cause) => Error::e_explain(kind(&cause), cause.to_string()),
            },
            Self::Usual(connector) => {
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|_| Error::explain(ErrorType::InvalidCert, "no name to verify"))?;
                match connector.connect(name, stream).await {
                    Ok(stream) => Ok(Box::new(stream)),
                    Err(cause) => {
                        let (kind, said) = refused(&cause);
                        Error::e_explain(kind, said)
                    }
                }
            }
        }
    }
}

/// Returns the error of a failed rustls connect.
fn refused(cause: &io::Error) -> (ErrorType, String) {
    let inner = cause.get_ref();
    let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let kind = match inner {
        Some(rustls::Error::InvalidCertificate(_)) => ErrorType::InvalidCert,
        Some(_) | None => ErrorType::TLSHandshakeFailure,
    };
    let said = inner.map_or_else(|| cause.to_string(), ToString::to_string);
    (kind, said)
}

fn kind(cause: &late_client_auth::Error) -> ErrorType {
    use late_client_auth::Error as Late;

    match cause {
        Late::Unverified(_) => ErrorType::InvalidCert,
        Late::Handshake(_) => ErrorType::TLSHandshakeFailure,
        Late::TimedOut(_) => ErrorType::ConnectTimedout,
        Late::Unreachable(_) | Late::Tunnel(_) => ErrorType::ConnectError,
    }
}
