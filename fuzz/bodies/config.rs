//! Parses any text as proxy.yaml: every error has a position, and every accepted file can be used.

use std::path::Path;

use countersign::config::{Config, Secrets};
use countersign::metrics::Metrics;
use countersign::request::path::Target;
use countersign::request::vendor::Vendor;

/// Runs one input: `data` is the file.
///
/// # Panics
/// When an error's position is outside of the file, or an accepted vendor cannot be prepared.
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
        Err(errors) => {
            assert!(!errors.is_empty());
            // YAML ends lines at a lone CR as well.
            let lines = text.split(['\n', '\r']).count();
            for error in errors {
                assert!(error.line <= lines + 1, "{error} in {lines} lines");
                assert!(!error.message.is_empty());
            }
        }
    }
}
