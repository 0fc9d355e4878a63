//! The expiry of all certificates that are presented or served, for the gauge and the page.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::unix_seconds;
use crate::config::PresentedCertificate;
use crate::content_digest;
use crate::metrics::Metrics;
use crate::tls::Identity;

/// The certificates in the gauge: for each place in proxy.yaml, the digest of the files it was read
/// from.
#[derive(Debug, Default)]
pub(super) struct CertificateExpiry(Mutex<HashMap<String, [u8; 32]>>);

impl CertificateExpiry {
    /// Updates the gauge to exactly `presented`, as the files are now.
    pub(super) fn set(&self, presented: &[PresentedCertificate], metrics: &Metrics) {
        let places: HashSet<&str> = presented
            .iter()
            .map(|certificate| certificate.place.as_str())
            .collect();
        self.0.lock().retain(|place, _| {
            let stays = places.contains(place.as_str());
            if !stays {
                metrics.remove_certificate(place);
            }
            stays
        });
        for certificate in presented {
            self.update(certificate, metrics);
        }
    }

    /// Updates those of `presented` that are read when they are used, because no reload reports
    /// them. `reloaded`: the files that a reload reads.
    pub(super) fn refresh(
        &self,
        presented: &[PresentedCertificate],
        reloaded: &[PathBuf],
        metrics: &Metrics,
    ) {
        let reloaded: HashSet<&Path> = reloaded.iter().map(PathBuf::as_path).collect();
        for certificate in presented {
            if !reloaded.contains(certificate.files.cert.as_path()) {
                self.update(certificate, metrics);
            }
        }
    }

    /// Updates one certificate. Files that cannot be used change nothing: the previous certificate
    /// stays in use.
    fn update(&self, certificate: &PresentedCertificate, metrics: &Metrics) {
        let digest = content_digest::of_files([&certificate.files.cert, &certificate.files.key]);
        if self.0.lock().get(&certificate.place) == Some(&digest) {
            return;
        }
        if let Ok(identity) = Identity::load(&certificate.files) {
            metrics.set_certificate(&certificate.place, unix_seconds(identity.not_after));
            self.0.lock().insert(certificate.place.clone(), digest);
        }
    }
}
