//! Certificates and private keys in PEM, and descriptions of files without any.
//!
//! No parser's text is passed on: its errors hold the bytes in question, which may be the key. A
//! [`Fault`] consists of fixed texts.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// The problem of a file, and the advice. Contains nothing of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Description or defect of the file: continues "the file … ".
    pub what: &'static str,
    /// The advice; empty where `what` contains it.
    pub cure: &'static str,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.what)?;
        if self.cure.is_empty() {
            return Ok(());
        }
        write!(f, "; {}", self.cure)
    }
}

/// The wanted content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Certificate,
    Key,
}

/// Reads all certificates in `bytes`, in their order; at least one.
///
/// Byte order marks, CR LF, indentation, other blocks and text between the blocks are skipped.
///
/// # Errors
/// Fails if there is none, or a block is damaged.
pub(crate) fn certificates(bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let text = unadorned(bytes);
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(fault(bytes, Wanted::Certificate)),
    }
}

/// Reads the first private key in `bytes`: PKCS#8, PKCS#1 or SEC1.
///
/// It skips what [`certificates`] skips.
///
/// # Errors
/// Fails if there is none, it is encrypted, or a block before it is damaged.
pub(crate) fn private_key(bytes: &[u8]) -> Result<PrivateKeyDer<'static>, Fault> {
    let text = unadorned(bytes);
    // A traditional encrypted key has the label of a plain one.
    if contains(&text, b"Proc-Type: 4,ENCRYPTED") {
        return Err(ENCRYPTED);
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| fault(bytes, Wanted::Key))?;
    // By its content rather than by its label, which some tools get wrong.
    PrivateKeyDer::try_from(key.secret_der())
        .map(|key| key.clone_key())
        .map_err(|_| UNUSABLE_KEY)
}

/// Returns the lines of `bytes` without byte order marks and surrounding white space.
pub(crate) fn unadorned(bytes: &[u8]) -> Zeroizing<Vec<u8>> {
    // Never grows, which would leave a copy of the key behind.
    let mut text = Zeroizing::new(Vec::with_capacity(bytes.len() + 1));
    for line in bytes.split(|byte| *byte == b'\n' || *byte == b'\r') {
        let line = line.strip_prefix(BOM).unwrap_or(line).trim_ascii();
        if !line.is_empty() {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
    }
    text
}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Describes `bytes` in which no usable `wanted` was found.
fn fault(bytes: &[u8], wanted: Wanted) -> Fault {
    let plain = bytes.strip_prefix(BOM).unwrap_or(bytes).trim_ascii();
    let is_key = wanted == Wanted::Key;
    if plain.is_empty() {
        EMPTY
    } else if is_utf16(bytes) {
        UTF16
    } else if contains(plain, b"-BEGIN ") || contains(plain, b"-----END ") {
        in_pem(plain, wanted)
    } else if let Some(fault) = in_binary(plain, wanted) {
        fault
    } else if let Some(fault) = in_base64(plain, wanted) {
        fault
    } else if plain.starts_with(b"{") && contains(plain, b"\"kty\"") {
        JWK
    } else if plain.starts_with(b"PuTTY-User-Key-File") {
        SSH
    } else if is_key {
        NO_KEY
    } else {
        NO_CERTIFICATE
    }
}

/// Describes the problem of text in which a PEM block begins.
fn in_pem(text: &[u8], wanted: Wanted) -> Fault {
    let is_key = wanted == Wanted::Key;
    let has = |label: &[u8]| contains(text, label);
    if has(b"-BEGIN ENCRYPTED PRIVATE KEY-") && is_key {
        return ENCRYPTED;
    }
    if has(b"-----\\n") || has(b"-----\\r\\n") {
        return ESCAPED;
    }
    let lines = || text.split(|byte| *byte == b'\n' || *byte == b'\r');
    let heads = || {
        lines()
            .map(<[u8]>::trim_ascii)
            .filter(|line| contains(line, b"-BEGIN "))
    };
    let begun = |line: &[u8]| after_label(line).is_some_and(|rest| rest.iter().any(|b| *b != b'-'));
    if heads().any(|line| contains(line, b"-END ") || begun(line)) {
        return ONE_LINE;
    }
    let whole = |line: &[u8]| line.starts_with(b"-----BEGIN ") && after_label(line) == Some(b"");
    if heads().next().is_none() || !heads().all(whole) {
        return HEADER;
    }
    let (has_key, has_certificate) = (has(b"PRIVATE KEY-"), has(b"-BEGIN CERTIFICATE-"));
    match wanted {
        Wanted::Key if has(b"-BEGIN OPENSSH PRIVATE KEY-") => SSH,
        Wanted::Key if !has_key && has_certificate => CERTIFICATE_FOR_KEY,
        Wanted::Key if !has_key && has(b"PUBLIC KEY-") => PUBLIC_KEY,
        Wanted::Key if !has_key => NO_KEY,
        Wanted::Certificate if has(b"-BEGIN PKCS7-") => PKCS7,
        Wanted::Certificate if !has_certificate && has(b"-BEGIN TRUSTED CERTIFICATE-") => TRUSTED,
        Wanted::Certificate if !has_certificate && has(b"CERTIFICATE REQUEST-") => REQUEST,
        Wanted::Certificate if !has_certificate && has_key => KEY_FOR_CERTIFICATE,
        Wanted::Certificate if !has_certificate => NO_CERTIFICATE,
        Wanted::Key | Wanted::Certificate if every_block_ends(text) => DAMAGED,
        Wanted::Key | Wanted::Certificate => CUT,
    }
}

/// Tells whether each BEGIN line is followed by the END line of the same label.
fn every_block_ends(text: &[u8]) -> bool {
    let mut open = None;
    for line in text.split(|byte| *byte == b'\n' || *byte == b'\r') {
        let line = line.trim_ascii();
        if let Some(label) = line.strip_prefix(b"-----BEGIN ") {
            if open.replace(label).is_some() {
                return false;
            }
        } else if let Some(label) = line.strip_prefix(b"-----END ")
            && open.take() != Some(label)
        {
            return false;
        }
    }
    open.is_none()
}

/// Returns what follows the five dashes at the end of a label; `None` without them.
fn after_label(line: &[u8]) -> Option<&[u8]> {
    let from = find(line, b"-BEGIN ")? + b"-BEGIN ".len();
    let label = &line[from..];
    let end = find(label, b"-----")?;
    Some(&label[end + 5..])
}

/// Recognises binary formats by their beginning.
fn in_binary(bytes: &[u8], wanted: Wanted) -> Option<Fault> {
    if bytes.starts_with(b"\xfe\xed\xfe\xed") || bytes.starts_with(b"\xce\xce\xce\xce") {
        return Some(JAVA);
    }
    let inside = sequence(bytes)?;
    // PFX: version 3, then the content (RFC 7292 §4).
    if inside.starts_with(b"\x02\x01\x03\x30") {
        return Some(PFX);
    }
    // SignedData (RFC 5652 §5.1).
    if inside.starts_with(b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02") {
        return Some(PKCS7);
    }
    // EncryptedPrivateKeyInfo by PBES1, PBES2 or PKCS#12's ciphers (RFC 5958 §3).
    let encrypted = sequence(inside).is_some_and(|algorithm| {
        [
            &b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x05"[..],
            b"\x06\x0a\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01",
        ]
        .iter()
        .any(|by_password| algorithm.starts_with(by_password))
    });
    Some(match wanted {
        Wanted::Key if encrypted => ENCRYPTED_DER,
        Wanted::Key => DER_KEY,
        Wanted::Certificate => DER_CERTIFICATE,
    })
}

/// Recognises base64 of a known format.
fn in_base64(text: &[u8], wanted: Wanted) -> Option<Fault> {
    let mut compact = Zeroizing::new(Vec::with_capacity(text.len()));
    compact.extend(text.iter().filter(|byte| !byte.is_ascii_whitespace()));
    let decoded = Zeroizing::new(STANDARD.decode(&*compact).ok()?);
    if contains(&decoded, b"-----BEGIN ") {
        return Some(TWICE);
    }
    match in_binary(&decoded, wanted)? {
        PFX => Some(PFX_BASE64),
        ENCRYPTED_DER => Some(ENCRYPTED),
        _ => Some(HEADLESS),
    }
}

/// Returns the content of the DER SEQUENCE at the start of `bytes` (X.690 §8.1).
fn sequence(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(b"\x30")?;
    let (first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(*first), rest),
        // BER of unknown length, as some PFX have.
        0x80 => return Some(rest),
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let length = length
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            (length, rest)
        }
        _ => return None,
    };
    // A truncated file is still recognised.
    (length >= 16 || rest.len() == length).then_some(rest)
}

fn is_utf16(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\xff\xfe")
        || bytes.starts_with(b"\xfe\xff")
        || contains(bytes, b"-\0-\0-\0")
        || contains(bytes, b"\0-\0-\0-")
}

fn contains(text: &[u8], what: &[u8]) -> bool {
    find(text, what).is_some()
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    memchr::memmem::find(text, what)
}

const EMPTY: Fault = Fault {
    what: "is empty",
    cure: "",
};
const UTF16: Fault = Fault {
    what: "is UTF-16 text",
    cure: "save it as ASCII or UTF-8: `iconv -f UTF-16 -t UTF-8 FILE`; PowerShell's `>` writes UTF-16",
};
const ENCRYPTED: Fault = Fault {
    what: "is an encrypted private key, which cannot be read without its password",
    cure: "`openssl pkey -in FILE -out PLAIN` asks for the password and writes it unencrypted",
};
const ENCRYPTED_DER: Fault = Fault {
    what: "is an encrypted private key in DER, not PEM",
    cure: "`openssl pkey -inform der -in FILE -out PLAIN` asks for the password and writes it unencrypted, as PEM",
};
const ESCAPED: Fault = Fault {
    what: "is PEM whose line breaks are written as `\\n`",
    cure: "write real line breaks: `printf '%b' \"$TEXT\"` makes them",
};
const ONE_LINE: Fault = Fault {
    what: "is PEM without its line breaks: everything is on one line",
    cure: "copy it again with its line breaks; the BEGIN and END lines stand alone",
};
const HEADER: Fault = Fault {
    what: "is PEM with a damaged BEGIN line",
    cure: "it reads `-----BEGIN …-----`, five dashes on either side, at the start of a line",
};
const CUT: Fault = Fault {
    what: "is PEM that is cut off: an END line is missing or does not fit its BEGIN line",
    cure: "copy it again, complete",
};
const DAMAGED: Fault = Fault {
    what: "is damaged PEM: the lines between BEGIN and END are not base64",
    cure: "copy it again",
};
const HEADLESS: Fault = Fault {
    what: "is base64 without the BEGIN and END lines of PEM",
    cure: "copy it again with them",
};
const TWICE: Fault = Fault {
    what: "is PEM that was encoded in base64 once more",
    cure: "`base64 -d FILE` gives the PEM; a Kubernetes Secret's `data` is base64, a mounted file is not",
};
const PFX: Fault = Fault {
    what: "is a PFX (PKCS#12) file, not PEM",
    cure: "`openssl pkcs12 -in FILE -clcerts -nokeys -out CERT` and `openssl pkcs12 -in FILE -nocerts -nodes -out KEY` split it",
};
const PFX_BASE64: Fault = Fault {
    what: "is a PFX (PKCS#12) file in base64, not PEM",
    cure: "`base64 -d` decodes it, `openssl pkcs12` splits it into certificate and key",
};
const PKCS7: Fault = Fault {
    what: "is PKCS#7 (.p7b), not PEM certificates",
    cure: "`openssl pkcs7 -print_certs -in FILE -out CERT` takes them out; `-inform der` reads a binary one",
};
const JAVA: Fault = Fault {
    what: "is a Java key store, not PEM",
    cure: "`keytool -importkeystore -deststoretype PKCS12` makes a PFX of it, which `openssl pkcs12` splits",
};
const JWK: Fault = Fault {
    what: "is a JSON Web Key, not PEM",
    cure: "convert it to a PEM file",
};
const SSH: Fault = Fault {
    what: "is an SSH key, not a PEM private key",
    cure: "`ssh-keygen -p -m PEM -f FILE` converts OpenSSH's; TLS usually needs a key of its own",
};
const DER_KEY: Fault = Fault {
    what: "is DER, not PEM",
    cure: "`openssl pkey -inform der -in FILE -out KEY` converts a private key",
};
const DER_CERTIFICATE: Fault = Fault {
    what: "is DER, not PEM",
    cure: "`openssl x509 -inform der -in FILE -out CERT` converts a certificate",
};
const CERTIFICATE_FOR_KEY: Fault = Fault {
    what: "holds a certificate and no private key",
    cure: "are certificate and key exchanged?",
};
const KEY_FOR_CERTIFICATE: Fault = Fault {
    what: "holds a private key and no certificate",
    cure: "are certificate and key exchanged?",
};
const PUBLIC_KEY: Fault = Fault {
    what: "holds a public key and no private key",
    cure: "name the file with the private one",
};
const REQUEST: Fault = Fault {
    what: "holds a certificate signing request and no certificate",
    cure: "the certificate is what the authority made of it",
};
const TRUSTED: Fault = Fault {
    what: "holds an OpenSSL TRUSTED CERTIFICATE and no plain one",
    cure: "`openssl x509 -in FILE -out CERT` converts it",
};
const NO_KEY: Fault = Fault {
    what: "does not hold a private key (PEM)",
    cure: "",
};
const NO_CERTIFICATE: Fault = Fault {
    what: "does not hold a certificate (PEM)",
    cure: "",
};
/// PEM by its form, with an unusable key.
pub(crate) const UNUSABLE_KEY: Fault = Fault {
    what: "holds a private key that is damaged or of a kind that is not supported",
    cure: "RSA of 2048 to 8192 bits, ECDSA on P-256, P-384 or P-521, and Ed25519 are",
};
/// PEM by its form, without a certificate inside.
pub(crate) const NOT_X509: Fault = Fault {
    what: "holds a damaged certificate, or something else under the label CERTIFICATE",
    cure: "copy it again",
};
/// PEM by its form, with a key inside.
pub(crate) const KEY_AS_CERTIFICATE: Fault = Fault {
    what: "holds a private key under the label CERTIFICATE",
    cure: "name the file with the certificate",
};
/// Certificates that cannot verify others.
pub(crate) const NO_ISSUER: Fault = Fault {
    what: "holds no certificate that can be trusted as an issuer",
    cure: "",
};
