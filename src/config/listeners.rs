//! The listeners: `listeners:` and `admin:`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use ipnet::IpNet;

use super::callers::Callers;
use super::file;
use super::reader::Reader;
use super::report::KeyPath;
use crate::tls::CertFiles;

/// One listener for callers.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Address and port; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The certificates of a TLS listener, chosen by SNI; the first when none matches. `None`:
    /// plaintext.
    pub tls: Option<Vec<CertFiles>>,
    /// Issuers of callers' certificates, which are requested then.
    pub client_ca: Option<PathBuf>,
    /// `true` if plaintext callers may speak HTTP/2 with prior knowledge (RFC 9113 §3.3).
    pub h2c: bool,
    /// Load balancers whose connections begin with a PROXY protocol header.
    pub proxied_by: Vec<ipnet::IpNet>,
    /// Most concurrent connections; `None`: as many as open files and memory permit.
    pub max_connections: Option<usize>,
}

/// The admin listener.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Address and port; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// The condition for `/readyz` to return 200.
    pub ready_when: ReadyWhen,
    /// SHA-256 of the key for POSTs from other addresses than loopback.
    pub key: Option<[u8; 32]>,
}

/// The condition under which a started proxy is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadyWhen {
    /// Every vendor's first attempt has finished, with or without success, or 30 s have passed.
    Settled,
    /// Every vendor has had a usable credential.
    All,
    /// One vendor has had a usable credential.
    Any,
}

/// Reads `listeners:`. Without `callers`, each must be on loopback.
pub(super) fn listeners(
    written: Option<&file::List<file::Listener>>,
    callers: &Callers,
    reader: &mut Reader<'_>,
) -> Vec<Listener> {
    let at = KeyPath::default().key("listeners");
    let mut listeners: Vec<Listener> = Vec::new();
    if written.is_none() {
        listeners.push(Listener {
            bind: loopback(8080),
            tls: None,
            client_ca: None,
            h2c: false,
            proxied_by: Vec::new(),
            max_connections: None,
        });
    }
    for (nth, entry) in written.into_iter().flatten().enumerate() {
        let at = at.index(nth);
        let Some(entry) = entry else { continue };
        let tls = entry
            .tls
            .as_ref()
            .map(|tls| certificates(tls, &at.key("tls"), reader));
        let client_ca = entry.tls.as_ref().and_then(|tls| {
            let path = tls.client_ca.as_ref()?;
            Some(reader.roots(path, &at.key("tls").key("client_ca")))
        });
        let h2c = entry.h2c == Some(true);
        if h2c && tls.is_some() {
            reader.report.error(
                &at.key("h2c"),
                "a TLS listener negotiates HTTP/2 in the handshake",
                "leave `h2c` out",
            );
        }
        let proxied_by = entry
            .proxy_protocol
            .as_ref()
            .map(|written| networks(written, &at.key("proxy_protocol"), reader))
            .unwrap_or_default();
        let Some(bind) = entry.bind.as_ref().and_then(|bind| bind.parse().ok()) else {
            continue;
        };
        let at = at.key("bind");
        if matches!(callers, Callers::Loopback) && !is_loopback(bind) {
            reader.report.error(
                &at,
                "a listener beyond loopback needs `callers:`",
                "name who may call (`countersign caller new NAME` makes a key), bind to \
                 127.0.0.1, or write `callers: anyone`",
            );
        }
        if bind.port() != 0 && listeners.iter().any(|listener| listener.bind == bind) {
            reader
                .report
                .error(&at, "another listener has this address", "");
        }
        listeners.push(Listener {
            bind,
            tls,
            client_ca,
            h2c,
            proxied_by,
            max_connections: entry.max_connections,
        });
    }
    if let Callers::Known(callers) = callers
        && listeners
            .iter()
            .all(|listener| listener.client_ca.is_none())
    {
        for caller in callers.iter().filter(|caller| caller.certificate.is_some()) {
            let at = KeyPath::default().key("callers").key(&caller.name);
            reader.report.warn(
                &at.key("certificate"),
                "no listener asks for certificates",
                "give one `tls: { …, client_ca: FILE }`",
            );
        }
    }
    listeners
}

/// Reads `admin:`. Its address must not be a data listener's.
pub(super) fn admin(
    written: Option<&file::Admin>,
    listeners: &[Listener],
    reader: &mut Reader<'_>,
) -> Admin {
    let at = KeyPath::default().key("admin");
    let bind = written
        .and_then(|admin| admin.bind.as_ref()?.parse().ok())
        .unwrap_or(loopback(9090));
    if bind.port() != 0 && listeners.iter().any(|listener| listener.bind == bind) {
        reader.report.error(
            &at.key("bind"),
            "a data listener has the admin listener's address",
            "probes and metrics are never served to callers: give it another port",
        );
    }
    let ready_when = match written.and_then(|admin| admin.ready_when) {
        None | Some(file::ReadyWhen::Settled) => ReadyWhen::Settled,
        Some(file::ReadyWhen::All) => ReadyWhen::All,
        Some(file::ReadyWhen::Any) => ReadyWhen::Any,
    };
    let key = written
        .and_then(|admin| admin.key.as_ref()?.sha256.as_ref())
        .and_then(|digits| reader.digest(digits, &at.key("key").key("sha256")));
    Admin {
        bind,
        ready_when,
        key,
    }
}

/// Reads `trusted:` of `proxy_protocol:`; a bare address is a network of one.
fn networks(written: &file::ProxyProtocol, at: &KeyPath, reader: &mut Reader<'_>) -> Vec<IpNet> {
    let at = at.key("trusted");
    let Some(trusted) = &written.trusted else {
        reader.report.missing_key(
            &at,
            "the load balancers' networks, for example [ 10.0.0.0/8 ]",
        );
        return Vec::new();
    };
    let mut networks = Vec::new();
    for (nth, network) in trusted.iter().enumerate() {
        let Some(network) = network else { continue };
        let parsed = network
            .parse::<IpNet>()
            .or_else(|_| network.parse::<IpAddr>().map(IpNet::from));
        match parsed {
            Ok(network) => networks.push(network.trunc()),
            Err(_) => reader.report.error(
                &at.index(nth),
                "is not a network",
                "networks are written 10.0.0.0/8 or 2001:db8::/32",
            ),
        }
    }
    networks
}

fn certificates(
    written: &file::ListenerTls,
    at: &KeyPath,
    reader: &mut Reader<'_>,
) -> Vec<CertFiles> {
    let one = written.cert.is_some() || written.key.is_some();
    if let Some(several) = &written.certificates {
        if one {
            reader.report.error_at_key(
                &at.key("certificates"),
                "stands beside `cert` and `key`",
                "list every certificate under `certificates`",
            );
        }
        let at = at.key("certificates");
        return several
            .iter()
            .enumerate()
            .filter_map(|(nth, files)| reader.cert_files(files.as_ref()?, &at.index(nth)))
            .collect();
    }
    for (name, file) in [("cert", &written.cert), ("key", &written.key)] {
        if file.is_none() {
            reader.report.missing_key(&at.key(name), "a PEM file");
        }
    }
    let files = file::CertFiles {
        cert: written.cert.clone(),
        key: written.key.clone(),
    };
    reader.cert_files(&files, at).into_iter().collect()
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// 0.0.0.0 and :: are all addresses of the host, so they are not loopback.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}
