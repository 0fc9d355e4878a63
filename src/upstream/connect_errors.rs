//! The errors of attempts to connect to a vendor, reported once for all the addresses: the most
//! telling cause first. A refused connection to `::1` must not hide that a certificate was refused
//! before.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use pingora::{Error, ErrorType};

use crate::wording::describe;

/// The errors of one request, since its last connection.
#[derive(Debug, Default)]
pub struct ConnectErrors(Vec<(Weight, String)>);

/// Causes of a failed connect, the least telling first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// Connection refused, or no route: what a second address often says.
    Nobody,
    TimedOut,
    Other,
    /// An outbound proxy's refusal.
    Proxy,
    /// A connection that ended before the response.
    Broken,
    Tls,
    Certificate,
    /// No addresses.
    Name,
}

/// Longest text of one cause, characters.
const LONGEST: usize = 300;

impl ConnectErrors {
    /// Adds the error of a failed connect to `address`.
    pub(super) fn add(&mut self, address: SocketAddr, error: &Error) {
        let (weight, said) = described(error);
        self.push(weight, &format!("{address}: {said}"));
    }

    /// Adds that a connection to `address` ended before the response, and why.
    pub(super) fn add_broken(&mut self, address: SocketAddr, cause: &str) {
        let said = format!("{address}: the connection ended before the response: {cause}");
        self.push(Weight::Broken, &said);
    }

    /// Adds why there is no address to connect to.
    pub fn add_name(&mut self, said: &str) {
        self.push(Weight::Name, said);
    }

    /// Clears the errors: a connection was made.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Tells whether there are no errors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn push(&mut self, weight: Weight, said: &str) {
        let said: String = said.chars().take(LONGEST).collect();
        if self.0.iter().all(|(_, known)| *known != said) {
            self.0.push((weight, said));
        }
    }
}

/// All causes, the most telling first, others in their order.
impl fmt::Display for ConnectErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut causes: Vec<_> = self.0.iter().collect();
        causes.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        for (nth, (_, said)) in causes.into_iter().enumerate() {
            if nth > 0 {
                f.write_str("; ")?;
            }
            f.write_str(said)?;
        }
        Ok(())
    }
}

/// The reason why no request reaches a vendor, until one does.
#[derive(Debug, Default)]
pub(super) struct ConnectTrouble(ArcSwapOption<String>);

impl ConnectTrouble {
    pub(super) fn begin(&self, why: String) {
        self.0.store(Some(Arc::new(why)));
    }

    pub(super) fn end(&self) {
        // Nothing is written where nothing changes: all requests share it.
        if self.0.load().is_some() {
            self.0.store(None);
        }
    }

    pub(super) fn why(&self) -> Option<Arc<String>> {
        self.0.load_full()
    }
}

/// Describes the error of a failed connect, without the names of its peer and of variants.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "pingora's list of error types is open"
)]
fn described(error: &Error) -> (Weight, String) {
    use ErrorType::{
        ConnectNoRoute, ConnectProxyFailure, ConnectRefused, ConnectTimedout, HandshakeError,
        InvalidCert, TLSHandshakeFailure, TLSHandshakeTimedout,
    };

    match error.etype() {
        ConnectRefused => (Weight::Nobody, "connection refused".to_owned()),
        ConnectNoRoute => (Weight::Nobody, "no route to it".to_owned()),
        ConnectTimedout => {
            let said = "no connection within timeouts.connect".to_owned();
            (Weight::TimedOut, said)
        }
        TLSHandshakeTimedout => {
            let said = "no TLS handshake within timeouts.connect".to_owned();
            (Weight::TimedOut, said)
        }
        ConnectProxyFailure => (Weight::Proxy, innermost(error)),
        TLSHandshakeFailure | InvalidCert | HandshakeError => {
            let said = describe(&innermost(error));
            let weight = if said.contains("certificate") {
                Weight::Certificate
            } else {
                Weight::Tls
            };
            (weight, format!("TLS: {said}"))
        }
        _ => (Weight::Other, innermost(error)),
    }
}

/// Returns the text of the last error in a chain of causes. pingora passes some of them on as text,
/// and puts the local address in the place of a cause.
fn innermost(error: &Error) -> String {
    let mut said = error.etype().as_str().to_owned();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(context) = &error.context {
            context.as_str().clone_into(&mut said);
        }
        next = error.cause.as_ref().and_then(|cause| cause.downcast_ref());
        if let (Some(cause), None) = (&error.cause, next) {
            let cause = cause.to_string();
            if !cause.starts_with("local address ") {
                said = cause;
            }
        }
    }
    let said = said.rsplit("cause: ").next().unwrap_or_default();
    let said = said.split(", SNI: ").next().unwrap_or_default();
    let said = said.split(" (os error ").next().unwrap_or_default();
    said.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: SocketAddr = SocketAddr::new(
        std::net::IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)),
        443,
    );
    const SECOND: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), 443);

    fn handshake() -> Error {
        let said = "TLS connect() failed:  TLSHandshakeFailure context: tls connect error cause: invalid peer certificate: Other(OtherError(CaUsedAsEndEntity)), SNI: a.test";
        let local = "local address 192.0.2.2:4711";
        *Error::because(ErrorType::TLSHandshakeFailure, said, local)
    }

    #[test]
    fn the_most_telling_cause_comes_first_in_plain_words() {
        let mut connect_errors = ConnectErrors::default();
        assert!(connect_errors.is_empty());
        connect_errors.add(FIRST, &handshake());
        for _ in 0..2 {
            connect_errors.add(SECOND, &Error::new(ErrorType::ConnectRefused));
        }
        let told = "192.0.2.1:443: TLS: invalid peer certificate: it is a CA's certificate, not a server's; [::1]:443: connection refused";
        assert_eq!(connect_errors.to_string(), told);

        let mut connect_errors = ConnectErrors::default();
        connect_errors.add(SECOND, &Error::new(ErrorType::ConnectRefused));
        let cause = std::io::Error::from_raw_os_error(101);
        connect_errors.add(SECOND, &Error::because(ErrorType::ConnectError, "x", cause));
        connect_errors.add(FIRST, &handshake());
        let told = connect_errors.to_string();
        assert!(told.starts_with("192.0.2.1:443: TLS: "), "{told}");
        assert!(
            told.ends_with("; [::1]:443: Network is unreachable; [::1]:443: connection refused"),
            "{told}"
        );
        connect_errors.clear();
        assert!(connect_errors.is_empty());
    }

    #[test]
    fn what_is_told_is_bounded() {
        let mut connect_errors = ConnectErrors::default();
        let long = "é".repeat(10_000);
        connect_errors.add(FIRST, &Error::explain(ErrorType::ConnectProxyFailure, long));
        assert_eq!(connect_errors.to_string().chars().count(), LONGEST);
    }
}
