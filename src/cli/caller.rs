//! `countersign caller new`.

use std::io::Write;
use std::process::ExitCode;

use crate::tls::sha256;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use zeroize::Zeroizing;

/// Prints a new key, once, and the stanza for `callers:` with its digest.
pub(super) fn new(name: &str) -> ExitCode {
    let valid = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
    if !valid {
        return super::failed_or_done(Err(format!(
            "a caller's name consists of letters, digits, hyphens, dots and underscores, not \"{name}\""
        )));
    }
    let mut random = Zeroizing::new([0; 32]);
    if aws_lc_rs::rand::fill(&mut *random).is_err() {
        return super::failed_or_done(Err("the operating system returned no random bytes".into()));
    }
    // The prefix makes leaked keys recognisable to scanners of repositories.
    let key = Zeroizing::new(format!("csk_{}", URL_SAFE_NO_PAD.encode(*random)));
    let digest = hex::encode(sha256(&[key.as_bytes()]));
    let text = Zeroizing::new(format!(
        "# The key; it is shown only once:\n{}\n\n# For proxy.yaml:\ncallers:\n  {name}:\n    api_key: {{ sha256: \"{digest}\" }}\n    allow: []   # list the vendors it may use\n",
        *key
    ));
    super::failed_or_done(
        std::io::stdout()
            .write_all(text.as_bytes())
            .map_err(|cause| cause.to_string()),
    )
}
