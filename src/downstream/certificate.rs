//! A caller's certificate, presented once per connection.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use crate::tls::San;

/// The authorities of callers' certificates, as currently configured.
pub trait Authorities: fmt::Debug + Send + Sync {
    /// Returns a number that grows with each change of the authorities.
    fn generation(&self) -> u64;

    /// Verifies a chain, leaf first, against the current authorities.
    fn verify(&self, chain: &[CertificateDer<'static>]) -> Standing;
}

/// The result of verifying a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The generation of the authorities.
    pub generation: u64,
    /// The authority that vouches for it, by [`crate::tls::Roots::authorities`].
    pub authority: Option<[u8; 8]>,
}

/// A client certificate that was verified in its connection's handshake.
#[derive(Debug)]
pub struct Certificate {
    /// Subject alternative names of the types that identify callers.
    pub names: Vec<San>,
    /// The end of its validity.
    until: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    authorities: Arc<dyn Authorities>,
    standing: ArcSwap<Standing>,
}

impl Certificate {
    /// Returns a certificate with these names, valid `until` then. `chain` begins with it.
    #[must_use]
    pub fn new(
        names: Vec<San>,
        until: SystemTime,
        chain: Vec<CertificateDer<'static>>,
        authorities: Arc<dyn Authorities>,
    ) -> Self {
        let standing = ArcSwap::from_pointee(authorities.verify(&chain));
        Self {
            names,
            until,
            chain,
            authorities,
            standing,
        }
    }

    /// Returns the authority that vouches for it now; `None`: none does, or it has expired. It is
    /// verified again only after the authorities have changed.
    #[must_use]
    pub fn authority(&self) -> Option<[u8; 8]> {
        if SystemTime::now() >= self.until {
            return None;
        }
        let known = self.standing.load();
        if known.generation == self.authorities.generation() {
            return known.authority;
        }
        let standing = self.authorities.verify(&self.chain);
        self.standing.store(Arc::new(standing));
        standing.authority
    }

    /// Returns the end of its validity.
    pub(crate) fn not_after(&self) -> SystemTime {
        self.until
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    /// Vouches in even generations, and counts how often it was asked.
    #[derive(Debug, Default)]
    pub(crate) struct FlippingAuthorities {
        generation: AtomicU64,
        asked: AtomicU64,
    }

    impl Authorities for FlippingAuthorities {
        fn generation(&self) -> u64 {
            self.generation.load(Ordering::Relaxed)
        }

        fn verify(&self, _: &[CertificateDer<'static>]) -> Standing {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let generation = self.generation();
            Standing {
                generation,
                authority: generation.is_multiple_of(2).then_some([1; 8]),
            }
        }
    }

    #[test]
    fn a_certificate_is_verified_again_when_the_authorities_change_and_only_then() {
        let authorities = Arc::new(FlippingAuthorities::default());
        let until = SystemTime::now() + Duration::from_mins(1);
        let certificate = Certificate::new(vec![], until, vec![], authorities.clone());
        for (generation, vouched) in [(0, true), (1, false), (2, true), (3, false)] {
            authorities.generation.store(generation, Ordering::Relaxed);
            for _ in 0..3 {
                assert_eq!(certificate.authority().is_some(), vouched, "{generation}");
            }
            assert_eq!(authorities.asked.load(Ordering::Relaxed), generation + 1);
        }
    }
}
