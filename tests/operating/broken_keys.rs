//! Keys that are broken, in every way and in every place: named as what they are, and never shown.

use std::fmt::Write as _;
use std::path::Path;

use aho_corasick::AhoCorasick;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use openssl::pkcs12::Pkcs12;
use openssl::pkey::PKey;
use openssl::symm::Cipher;
use openssl::x509::X509;
use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;

use crate::support::{Proxy, countersign, eventually, signal, write_secret};

/// Finds any eight bytes in a row of a secret, however they are written.
struct Canary(AhoCorasick);

impl Canary {
    fn of(secrets: &[&[u8]]) -> Self {
        let pieces = secrets.iter().flat_map(|secret| secret.windows(8));
        let needles: Vec<Vec<u8>> = pieces.flat_map(spellings).collect();
        assert!(needles.len() > 500, "{}", needles.len());
        Self(AhoCorasick::new(needles).unwrap())
    }

    fn absent_from(&self, place: &str, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        assert!(!text.is_empty(), "{place} said nothing");
        if let Some(found) = self.0.find(text) {
            // What stands before it says who said it; the secret itself is not repeated.
            let before = String::from_utf8_lossy(&text[..found.start()]);
            let line = before.lines().last().unwrap_or_default();
            panic!(
                "{place}: a piece of a key behind: {}",
                &line[..line.len().min(200)]
            );
        }
    }
}

/// The ways in which `piece` may be written.
fn spellings(piece: &[u8]) -> Vec<Vec<u8>> {
    let list = |separator: &str, show: &dyn Fn(u8) -> String| {
        let all: Vec<_> = piece.iter().map(|byte| show(*byte)).collect();
        all.join(separator)
    };
    let decimal = |byte: u8| byte.to_string();
    let (lower, upper) = (|byte| format!("{byte:02x}"), |byte| format!("{byte:02X}"));
    let mut all = vec![
        list("", &lower),
        list("", &upper),
        list(":", &lower),
        list(":", &upper),
        list(" ", &lower),
        list(", ", &lower),
        list(", ", &decimal),
        list(",", &decimal),
        list(",\n", &decimal),
        list(", ", &|byte| format!("{byte:#x}")),
        list(", ", &|byte| format!("{byte:#04x}")),
        list("", &|byte| format!("%{byte:02X}")),
        list("", &|byte| format!("\\x{byte:02x}")),
        list("", &|byte| format!("\\u{byte:04x}")),
        list("\\0", &|byte| char::from(byte).to_string()),
        piece.escape_ascii().to_string(),
        piece
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .escape_debug()
            .to_string(),
        piece
            .iter()
            .map(|byte| char::from(*byte))
            .collect::<String>()
            .escape_default()
            .to_string(),
    ];
    // Wherever it stands in what was encoded; the characters that hold bits of neighbours left out.
    for (before, characters) in [(0, 0..10), (1, 2..12), (2, 3..13)] {
        let padded = [&b"\0\0"[..before], piece].concat();
        all.push(STANDARD.encode(&padded)[characters.clone()].to_owned());
        all.push(URL_SAFE.encode(&padded)[characters].to_owned());
    }
    let mut all: Vec<Vec<u8>> = all.into_iter().map(String::into_bytes).collect();
    all.push(piece.to_vec());
    all.push(piece.iter().flat_map(|byte| [*byte, 0]).collect());
    all
}

#[test]
fn a_secret_is_found_however_it_is_written() {
    let secret: Vec<u8> = (0..48_u8).map(|n| n.wrapping_mul(37) ^ 0xa5).collect();
    let canary = Canary::of(&[&secret, b"MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEH"]);
    let around = [b"before", &secret[20..28], b"after"].concat();
    let found = |text: &[u8]| canary.0.is_match(text);
    for shift in 0..3 {
        assert!(found(STANDARD.encode(&around[shift..]).as_bytes()));
    }
    assert!(found(&around));
    assert!(found(format!("{around:?}").as_bytes()));
    assert!(found(format!("{around:02x?}").as_bytes()));
    assert!(found(
        format!("{around:#?}").replace([' ', '\n'], "").as_bytes()
    ));
    assert!(found(hex::encode_upper(&around).as_bytes()));
    assert!(found(around.escape_ascii().to_string().as_bytes()));
    // As the PEM parser words it: a line as numbers.
    assert!(found(
        format!("illegal section start: {:?}", b"-- MIGHAgEAMBMGByqG").as_bytes()
    ));
    assert!(!found(b"illegal section start") && !found(&secret[..7]));
}

/// A key, its certificate, and the bytes of the key that must not be shown.
struct Pair {
    key: String,
    certificate: String,
    der: Vec<u8>,
    scalar: Vec<u8>,
    /// The part of the PEM that says the scalar.
    text: String,
    jwk: String,
}

impl Pair {
    fn new() -> Self {
        let pair = KeyPair::generate().unwrap();
        let params = CertificateParams::new(["client.test".to_owned()]).unwrap();
        let certificate = params.self_signed(&pair).unwrap().pem();
        let der = pair.serialize_der();
        // An OCTET STRING of 32 bytes (RFC 5915 §3).
        let at = der.windows(2).position(|two| two == [4, 32]).unwrap() + 2;
        let scalar = der[at..at + 32].to_vec();
        let body = STANDARD.encode(&der);
        let text = body[at * 4 / 3 + 2..(at + 32) * 4 / 3].to_owned();
        let public = pair.public_key_raw();
        let url = |bytes: &[u8]| URL_SAFE.encode(bytes).trim_end_matches('=').to_owned();
        let jwk = format!(
            r#"{{"keys":[{{"kty":"EC","crv":"P-256","kid":"k","x":"{}","y":"{}","d":"{}"}}]}}"#,
            url(&public[1..33]),
            url(&public[33..65]),
            url(&scalar)
        );
        Self {
            key: pair.serialize_pem(),
            certificate,
            der,
            scalar,
            text,
            jwk,
        }
    }

    fn canary(&self) -> Canary {
        Canary::of(&[&self.scalar, self.text.as_bytes()])
    }

    /// What may become of the key's file: a name, the content, and what must be said of it;
    /// nothing: it works.
    #[allow(clippy::too_many_lines, reason = "one of each kind")]
    fn broken(&self) -> Vec<(&'static str, Vec<u8>, &'static str)> {
        let pem = &self.key;
        let flat = pem.replace('\n', "");
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let with = |other: &str| {
            let changed = format!("{}{other}{}", &body[56..60], &body[61..64]);
            pem.replacen(&body[56..64], &changed, 1)
        };
        // Still base64, and another number.
        let flipped = with(if body[60..61] == *"A" { "B" } else { "A" });
        let (head, tail) = ("-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----");
        let half = &pem[..pem.len() / 2 + 20];
        let utf16 = pem.encode_utf16().flat_map(u16::to_le_bytes);
        let utf16 = [vec![0xff, 0xfe], utf16.collect()].concat();
        let text = |text: String| text.into_bytes();
        let locked = PKey::private_key_from_der(&self.der).unwrap();
        let cipher = Cipher::aes_256_cbc();
        let modern = locked.private_key_to_pem_pkcs8_passphrase(cipher, b"pass");
        let legacy = locked.ec_key().unwrap();
        let legacy = legacy.private_key_to_pem_passphrase(cipher, b"pass");
        let in_der = locked.private_key_to_pkcs8_passphrase(cipher, b"pass");
        let certificate = X509::from_pem(self.certificate.as_bytes()).unwrap();
        let pfx = Pkcs12::builder()
            .cert(&certificate)
            .pkey(&locked)
            .build2("pass");
        let pfx = pfx.unwrap().to_der().unwrap();
        vec![
            ("encrypted", modern.unwrap(), "encrypted private key"),
            ("traditional", legacy.unwrap(), "encrypted private key"),
            (
                "encrypted-der",
                in_der.unwrap(),
                "encrypted private key in DER",
            ),
            ("pfx-text", text(STANDARD.encode(&pfx)), "PFX (PKCS#12)"),
            ("pfx", pfx, "PFX (PKCS#12)"),
            ("flat", text(flat), "without its line breaks"),
            (
                "blanks",
                text(pem.replace('\n', " ")),
                "without its line breaks",
            ),
            (
                "escaped",
                text(pem.replace('\n', "\\n")),
                "line breaks are written as",
            ),
            ("damaged", text(with("*")), "damaged"),
            ("cut", text(half.to_owned()), "cut off"),
            ("endless", text(pem.replace(tail, "")), "cut off"),
            (
                "bad-end",
                text(pem.replace(tail, "-----END PRIVATE KEY----")),
                "cut off",
            ),
            (
                "other-end",
                text(pem.replace(tail, "-----END EC PRIVATE KEY-----")),
                "cut off",
            ),
            (
                "bad-head",
                text(pem.replace(head, "-----BEGIN PRIVATE KEY----")),
                "damaged BEGIN line",
            ),
            (
                "headless",
                text(pem.replace(head, "")),
                "damaged BEGIN line",
            ),
            ("quoted", text(format!("\"{pem}\"")), "damaged BEGIN line"),
            (
                "bare",
                text(body.clone()),
                "without the BEGIN and END lines",
            ),
            ("der", self.der.clone(), "DER, not PEM"),
            (
                "half-der",
                self.der[..self.der.len() / 2].to_vec(),
                "DER, not PEM",
            ),
            ("twice", text(STANDARD.encode(pem)), "base64 once more"),
            (
                "hex",
                text(hex::encode(&self.der)),
                "does not hold a private key",
            ),
            ("utf16", utf16, "UTF-16"),
            ("jwk", text(self.jwk.clone()), "JSON Web Key"),
            ("flipped", text(flipped), "damaged or of a kind"),
            (
                "as-certificate",
                text(pem.replace("PRIVATE KEY", "CERTIFICATE")),
                "no private key",
            ),
            (
                "as-public",
                text(pem.replace("PRIVATE KEY", "PUBLIC KEY")),
                "public key",
            ),
            (
                "as-openssh",
                text(pem.replace("PRIVATE KEY", "OPENSSH PRIVATE KEY")),
                "SSH key",
            ),
            (
                "as-encrypted",
                text(pem.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY")),
                "encrypted private key",
            ),
            ("exchanged", text(self.certificate.clone()), "exchanged"),
            ("empty", Vec::new(), "empty"),
            ("bom", text(format!("\u{feff}{pem}")), ""),
            (
                "wrong-label",
                text(pem.replace("PRIVATE KEY", "RSA PRIVATE KEY")),
                "",
            ),
            ("crlf", text(pem.replace('\n', "\r\n")), ""),
            ("doubled", text(format!("{pem}{pem}")), ""),
            (
                "among",
                text(format!(
                    "Bag Attributes\n    friendlyName: x\n{}{pem}",
                    self.certificate
                )),
                "",
            ),
            ("indented", text(pem.replace('\n', "\n  ")), ""),
        ]
    }
}

/// A configuration in which every kind of place names files of `name`, `{name}.crt` and
/// `{name}.key`.
fn vendors(name: &str) -> String {
    let pair = format!("{{ cert: {name}.crt, key: {name}.key }}");
    let times = "timeouts: { token_wait: 1s }";
    let token = "token_url: 'https://127.0.0.1:1/t', client_id: us";
    let mut text = String::new();
    for (kind, stanza) in [
        ("client", format!("client_cert: {pair}")),
        (
            "tls",
            format!(
                "auth: {{ client_credentials: {{ {token}, client_auth: tls, client_cert: {pair} }} }}"
            ),
        ),
        (
            "jwt",
            format!(
                "auth: {{ client_credentials: {{ {token}, client_auth: private_key_jwt, private_key: {{ file: {name}.key }}, algorithm: ES256 }} }}"
            ),
        ),
        (
            "ved",
            format!("auth: {{ vedauth: {{ client_id: us, certificate: {pair} }} }}"),
        ),
        (
            "late",
            format!(
                "tls: {{ late_client_auth: true }}\n    client_cert: {pair}\n    auth: {{ vedauth: {{ client_id: us, certificate: {pair} }} }}"
            ),
        ),
    ] {
        writeln!(
            text,
            "  {kind}-{name}:\n    upstream: https://127.0.0.1:1\n    {times}\n    {stanza}"
        )
        .unwrap();
    }
    text
}

fn yaml<'a>(names: impl Iterator<Item = &'a str> + Clone, issuers: bool) -> String {
    let mut text = String::from(
        "admin: { bind: 127.0.0.1:0 }\ndrain: { delay: 0s }\nlisteners:\n  - bind: 127.0.0.1:0\n  - bind: 127.0.0.1:0\n    tls:\n      certificates:\n",
    );
    for name in names.clone() {
        writeln!(text, "        - {{ cert: {name}.crt, key: {name}.key }}").unwrap();
    }
    if issuers {
        text.push_str("      client_ca: ca.pem\ncallers:\n");
        text.push_str(
            "  pods: { jwt: { issuer: 'https://i', audience: a, jwks_file: jwks.json } }\n",
        );
        text.push_str("  other: { jwt: { issuer: 'https://j', audience: a, jwks_url: 'https://127.0.0.1:1/', ca: ca.pem } }\n");
    }
    text.push_str("vendors:\n");
    if issuers {
        text.push_str("  trusting: { upstream: 'https://127.0.0.1:1', ca: ca.pem }\n");
    }
    text.extend(names.map(vendors));
    text
}

/// Whether `line` says something of this very file.
fn names_file(line: &str, file: &str) -> bool {
    line.split(' ')
        .any(|word| word == file || word.ends_with(&format!("/{file}")))
}

fn put(dir: &Path, name: &str, content: impl AsRef<[u8]>) {
    let path = dir.join(name);
    write_secret(&path, "");
    std::fs::write(path, content).unwrap();
}

/// What a command says on both its outputs, at trace level.
fn said(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut command = countersign();
    command
        .args(arguments)
        .current_dir(dir)
        .env("RUST_LOG", "trace");
    command.envs(environment.iter().copied());
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn a_broken_key_is_named_as_what_it_is_and_never_shown_when_it_breaks_while_running() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pair = Pair::new();
    let canary = pair.canary();
    let broken = pair.broken();
    let names = broken.iter().map(|(name, ..)| *name);
    for name in names.clone() {
        put(dir, &format!("{name}.key"), &pair.key);
        put(dir, &format!("{name}.crt"), &pair.certificate);
    }
    put(dir, "ca.pem", &pair.certificate);
    put(dir, "jwks.json", &pair.jwk);
    let mut proxy = Proxy::launch(dir, &yaml(names, true), &[("RUST_LOG", "trace")]);

    for (name, content, _) in &broken {
        put(dir, &format!("{name}.key"), content);
    }
    put(dir, "ca.pem", &broken[0].1);
    put(dir, "jwks.json", &pair.key);
    signal(proxy.id(), "HUP");

    let status = || -> Value { serde_json::from_str(&proxy.admin("/status").1).unwrap() };
    let reload = eventually("refused", || {
        status()["config"]["last_error"]
            .as_str()
            .map(ToOwned::to_owned)
    });
    for (name, _, what) in broken.iter().filter(|(_, _, what)| !what.is_empty()) {
        let told = reload
            .lines()
            .filter(|line| names_file(line, &format!("{name}.key")));
        let told: Vec<_> = told.collect();
        // In the listener and with five vendors; two name it twice or as a secret.
        assert!(told.len() >= 5, "{name}: {told:#?}");
        assert!(
            told.iter().all(|line| line.contains(what)),
            "{name}: {told:#?}"
        );
        for kind in ["tls", "jwt", "ved", "late"] {
            let vendor = format!("{kind}-{name}");
            eventually(
                &format!("what is wrong with the key is told of {vendor}"),
                || {
                    let status = status();
                    let all = status["vendors"].as_array().unwrap();
                    let one = all.iter().find(|one| one["name"] == *vendor).unwrap();
                    one["last_error"]
                        .as_str()
                        .filter(|error| error.contains(what))
                        .map(drop)
                },
            );
        }
    }
    for name in broken.iter().filter(|(_, _, what)| what.is_empty()) {
        let file = format!("{}.key", name.0);
        assert!(
            !reload.lines().any(|line| names_file(line, &file)),
            "{reload}"
        );
    }
    for place in ["/status", "/metrics", "/", "/readyz"] {
        canary.absent_from(place, proxy.admin(place).1);
    }
    let admin = format!("http://{}", proxy.admin);
    canary.absent_from("status", said(dir, &["status", "--admin", &admin], &[]));
    canary.absent_from(
        "status --json",
        said(dir, &["status", "--json", "--admin", &admin], &[]),
    );
    for target in ["/tls-flat/x", "/client-cut/x", "/late-der/x", "/trusting/x"] {
        let answer = proxy.raw(format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ));
        canary.absent_from(target, answer);
    }
    signal(proxy.id(), "TERM");
    assert_eq!(proxy.ended(), Some(0));
    canary.absent_from("stdout", proxy.stdout());
    canary.absent_from("stderr", proxy.stderr());
}

#[test]
fn a_broken_key_is_named_and_never_shown_by_any_command_that_meets_it_first() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pair = Pair::new();
    let canary = pair.canary();
    let broken = pair.broken();
    let names = broken.iter().map(|(name, ..)| *name);
    for (name, content, _) in &broken {
        put(dir, &format!("{name}.key"), content);
        put(dir, &format!("{name}.crt"), &pair.certificate);
    }
    std::fs::write(dir.join("proxy.yaml"), yaml(names.clone(), false)).unwrap();
    let commands: [&[&str]; 5] = [
        &["check"],
        &["serve"],
        &["probe"],
        &["explain", "GET", "/tls-flat/x"],
        &["authorize", "tls-flat"],
    ];
    for arguments in commands {
        let text = said(dir, arguments, &[]);
        canary.absent_from(arguments[0], &text);
        // It does not look at secrets.
        if arguments[0] == "explain" {
            continue;
        }
        for (name, _, what) in &broken {
            let told = text
                .lines()
                .filter(|line| names_file(line, &format!("{name}.key")));
            assert!(
                told.clone()
                    .all(|line| !what.is_empty() && line.contains(what)),
                "{text}"
            );
            assert_eq!(
                told.count() > 4,
                !what.is_empty(),
                "{arguments:?} {name}: {text}"
            );
        }
    }

    // The same where certificates belong: of the pair, and of whom to trust.
    put(dir, "jwks.json", &pair.key);
    for (name, content, _) in &broken {
        put(dir, &format!("{name}.crt"), content);
        put(dir, &format!("{name}.ca"), content);
    }
    let mut text = yaml(names.clone(), false);
    for name in names.clone() {
        writeln!(
            text,
            "  ca-{name}: {{ upstream: 'https://127.0.0.1:1', ca: {name}.ca }}"
        )
        .unwrap();
    }
    std::fs::write(dir.join("proxy.yaml"), text).unwrap();
    for arguments in commands {
        let text = said(dir, arguments, &[]);
        canary.absent_from(arguments[0], &text);
        if arguments[0] == "check" {
            for (file, what) in [
                ("der.crt", "is DER, not PEM; `openssl x509 "),
                (
                    "pfx.crt",
                    "is a PFX (PKCS#12) file, not PEM; `openssl pkcs12 ",
                ),
                (
                    "damaged.crt",
                    "holds a private key and no certificate; are ",
                ),
                (
                    "as-certificate.crt",
                    "holds a private key under the label CERTIFICATE",
                ),
                ("encrypted.ca", "holds a private key and no certificate"),
                ("utf16.ca", "is UTF-16 text; save it as "),
            ] {
                let mut told = text.lines().filter(|line| names_file(line, file));
                assert!(
                    told.any(|line| line.contains(&format!("{file} {what}"))),
                    "{file}: {text}"
                );
            }
        }
        let looks = arguments[0] != "explain";
        assert_eq!(text.contains("ca-flat.ca: flat.ca "), looks, "{text}");
        // "exchanged" is a certificate here, and "among" holds one.
        assert!(
            !text.contains("among.ca: ") && !text.contains("exchanged.ca: "),
            "{text}"
        );
    }
}

#[test]
fn a_key_in_the_configuration_or_the_environment_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pair = Pair::new();
    let canary = pair.canary();
    let broken = pair.broken();
    // An environment variable holds no NUL.
    let broken = broken
        .iter()
        .filter(|(_, content, _)| !content.contains(&0));
    let texts: Vec<_> = broken
        .filter_map(|(name, content, what)| {
            let text = std::str::from_utf8(content).ok()?;
            Some((name.replace('-', "_"), text.to_owned(), *what))
        })
        .collect();
    let mut vendors = String::from("vendors:\n");
    let mut environment = Vec::new();
    for (name, text, _) in &texts {
        // Double quotes as JSON has them: YAML reads the same.
        let quoted = serde_json::to_string(text).unwrap();
        for (kind, key) in [
            ("value", quoted.clone()),
            ("env", format!("KEY_{name}")),
            ("file", quoted.clone()),
        ] {
            writeln!(vendors, "  {kind}-{name}:\n    upstream: https://a.test\n    auth: {{ client_credentials: {{ token_url: 'https://127.0.0.1:1/t', client_id: us, client_auth: private_key_jwt, private_key: {{ {kind}: {key} }}, algorithm: ES256 }} }}").unwrap();
        }
        // Where the names of files belong.
        writeln!(vendors, "  names-{name}:\n    upstream: https://a.test\n    ca: {quoted}\n    client_cert: {{ cert: {quoted}, key: {quoted} }}\n    auth: {{ vedauth: {{ client_id: us, certificate: {{ cert: {quoted}, key: {quoted} }} }} }}").unwrap();
        writeln!(vendors, "  urls-{name}:\n    upstream: {quoted}\n    proxy: {quoted}\n    prefix: {quoted}\n    auth: {{ client_credentials: {{ token_url: {quoted}, client_id: {quoted}, algorithm: {quoted}, client_secret: {quoted} }} }}").unwrap();
        environment.push((format!("KEY_{name}"), text.clone()));
    }
    std::fs::write(dir.join("proxy.yaml"), vendors).unwrap();
    let environment: Vec<_> = environment
        .iter()
        .map(|(name, text)| (name.as_str(), text.as_str()))
        .collect();
    for arguments in [
        &["check"][..],
        &["check", "--without-secrets"],
        &["serve"],
        &["explain", "GET", "/x"],
    ] {
        let text = said(dir, arguments, &environment);
        canary.absent_from(arguments[0], &text);
        assert!(
            text.contains("names-flat.ca: is the content of a file"),
            "{text}"
        );
    }
    let text = said(dir, &["check"], &environment);
    for (name, _, what) in texts.iter().filter(|(name, ..)| name != "empty") {
        for kind in ["value", "env"] {
            let told = text.lines().filter(|line| {
                line.contains(&format!("vendors.{kind}-{name}.auth"))
                    && !line.starts_with("warning")
            });
            assert!(
                told.clone()
                    .all(|line| !what.is_empty() && line.contains(what)),
                "{name}: {text}"
            );
            assert_eq!(told.count() > 0, !what.is_empty(), "{name}: {text}");
        }
    }
}

#[test]
fn a_key_among_the_stores_files_is_never_shown() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let pair = Pair::new();
    let canary = pair.canary();
    let yaml = |store: &str| {
        format!(
            "store: {{ {store}, encryption_key: {{ value: '{}' }} }}\nvendors:\n  v:\n    upstream: https://a.test\n    auth: {{ authorization_code: {{ authorize_url: 'https://127.0.0.1:1/a', token_url: 'https://127.0.0.1:1/t', client_id: us, redirect_uri: 'http://127.0.0.1:1/' }} }}\n",
            "00".repeat(32)
        )
    };
    for (name, content, what) in pair.broken() {
        if what.is_empty() {
            continue;
        }
        put(dir, "ca.pem", &content);
        std::fs::write(
            dir.join("proxy.yaml"),
            yaml("redis: { url: { value: 'rediss://127.0.0.1:1' }, ca: ca.pem }"),
        )
        .unwrap();
        canary.absent_from(name, said(dir, &["probe"], &[]));

        std::fs::write(dir.join("proxy.yaml"), yaml("kubernetes: { secret: s }")).unwrap();
        for data in ["certificate-authority", "client-key"] {
            let encoded = STANDARD.encode(&content);
            let (ca, key) = match data {
                "client-key" => (STANDARD.encode(&pair.certificate), encoded),
                _ => (encoded, STANDARD.encode(&pair.key)),
            };
            let certificate = STANDARD.encode(&pair.certificate);
            let kubeconfig = format!(
                "current-context: c\ncontexts: [ {{ name: c, context: {{ cluster: c, user: u }} }} ]\nclusters: [ {{ name: c, cluster: {{ server: 'https://127.0.0.1:1', certificate-authority-data: {ca} }} }} ]\nusers: [ {{ name: u, user: {{ client-certificate-data: {certificate}, client-key-data: '{key}' }} }} ]\n"
            );
            put(dir, "kubeconfig", kubeconfig);
            let text = said(
                dir,
                &["probe"],
                &[
                    ("KUBECONFIG", "kubeconfig"),
                    ("KUBERNETES_SERVICE_HOST", ""),
                ],
            );
            canary.absent_from(name, &text);
            assert!(text.contains("FAILED"), "{name} {data}: {text}");
        }
    }
}
