//! The ends of all certificates that are presented or served, as the gauge and the page show them.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

use super::unix_seconds;
use crate::config::PresentedCertificate;
use crate::content_digest;
use crate::metrics::Metrics;
use crate::tls::Identity;

/// What the gauge shows: by place in proxy.yaml, the digest of the files it was read from.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<HashMap<String, [u8; 32]>>);

impl Ends {
    /// Shows exactly `presented`, as the files are now.
    pub(super) fn show(&self, presented: &[PresentedCertificate], metrics: &Metrics) {
        let places: HashSet<&str> = presented.iter().map(|one| one.place.as_str()).collect();
        self.0.lock().retain(|place, _| {
            let stays = places.contains(place.as_str());
            if !stays {
                metrics.forget_certificate(place);
            }
            stays
        });
        for one in presented {
            self.look(one, metrics);
        }
    }

    /// Looks again at those of `presented` that are read when they are used: no reload tells of
    /// them. `reloaded`: the files that a reload reads.
    pub(super) fn follow(
        &self,
        presented: &[PresentedCertificate],
        reloaded: &[PathBuf],
        metrics: &Metrics,
    ) {
        let reloaded: HashSet<&Path> = reloaded.iter().map(PathBuf::as_path).collect();
        for one in presented {
            if !reloaded.contains(one.files.cert.as_path()) {
                self.look(one, metrics);
            }
        }
    }

    /// Files that cannot be used change nothing: the certificate before them goes on.
    fn look(&self, one: &PresentedCertificate, metrics: &Metrics) {
        let digest = content_digest::of_files([&one.files.cert, &one.files.key]);
        if self.0.lock().get(&one.place) == Some(&digest) {
            return;
        }
        if let Ok(identity) = Identity::load(&one.files) {
            metrics.certificate(&one.place, unix_seconds(identity.not_after));
            self.0.lock().insert(one.place.clone(), digest);
        }
    }
}
