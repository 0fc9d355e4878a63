//! Any text as proxy.yaml: every mistake has a place, and what is accepted can be used.

use std::path::Path;

use countersign::config::{Config, Secrets};
use countersign::metrics::Metrics;
use countersign::request::path::Target;
use countersign::request::vendor::Vendor;

/// `data` is the file.
///
/// # Panics
/// When a mistake points outside of the file, or what was accepted cannot be prepared.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let path = Path::new("no-such-directory/proxy.yaml");
    match Config::parse(text, path, Secrets::FormOnly) {
        Ok(config) => {
            let metrics = Metrics::new();
            for vendor in &config.vendors {
                let ready = Vendor::new(vendor, None, metrics.vendor(&vendor.name));
                let path = format!("{}/x", ready.prefix);
                let target = Target {
                    path: &path,
                    query: None,
                    encoded_slash: false,
                };
                let sent = ready.upstream_path(target, ready.prefix.len());
                assert!(sent.starts_with('/'), "{sent}");
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            // YAML ends lines at a lone CR as well.
            let lines = text.split(['\n', '\r']).count();
            for mistake in mistakes {
                assert!(mistake.line <= lines + 1, "{mistake} in {lines} lines");
                assert!(!mistake.message.is_empty());
            }
        }
    }
}
