//! A caller's certificate, which a connection shows once and goes on with.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use arc_swap::ArcSwap;
use rustls::pki_types::CertificateDer;

use crate::tls::San;

/// Who vouches for callers' certificates, as the configuration has it now.
pub trait Authorities: fmt::Debug + Send + Sync {
    /// Counts their changes.
    fn generation(&self) -> u64;

    /// Who vouches for a chain, leaf first, now.
    fn verify(&self, chain: &[CertificateDer<'static>]) -> Standing;
}

/// Whether somebody vouches for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// By [`Authorities::generation`].
    pub generation: u64,
    /// Who does, by [`crate::tls::Roots::authorities`].
    pub authority: Option<[u8; 8]>,
}

/// A client certificate that was verified in its connection's handshake.
#[derive(Debug)]
pub struct Certificate {
    /// Its subject alternative names of the types that callers may have.
    pub names: Vec<San>,
    /// The end of its validity.
    until: SystemTime,
    chain: Vec<CertificateDer<'static>>,
    authorities: Arc<dyn Authorities>,
    standing: ArcSwap<Standing>,
}

impl Certificate {
    /// One with these names, valid `until` then. `chain` has it first.
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

    /// Who vouches for it now; `None`: nobody, or it has ended. It is verified again only when the
    /// authorities have changed since it was last asked for.
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

    /// The end of its validity.
    pub(crate) fn until(&self) -> SystemTime {
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
    pub(crate) struct Fickle {
        generation: AtomicU64,
        asked: AtomicU64,
    }

    impl Authorities for Fickle {
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
        let authorities = Arc::new(Fickle::default());
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
