//! The ends of certificates: each one that anybody is shown is watched, wherever it stands.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};

use crate::support::{Proxy, eventually, run, signal, write_secret};

const DAY: Duration = Duration::from_hours(24);

/// A certificate that ends at `end`, and its key.
fn put(dir: &Path, name: &str, end: SystemTime) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([format!("{name}.test")]).unwrap();
    params.not_before = (SystemTime::now() - 400 * DAY).into();
    params.not_after = end.into();
    let certificate = params.self_signed(&key).unwrap();
    write_secret(&dir.join(format!("{name}.key")), &key.serialize_pem());
    // Together they must fit at every moment: a reload between the two is refused and tried again.
    std::fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// The gauge's series.
fn gauge(proxy: &Proxy) -> BTreeMap<String, u64> {
    let text = proxy.admin("/metrics").1;
    let series = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("countersign_certificate_expiry_timestamp_seconds{name=\"")?;
        let (name, value) = rest.split_once("\"} ")?;
        Some((name.to_owned(), value.parse().unwrap()))
    });
    series.collect()
}

const PLACES: [&str; 8] = [
    "listeners[1].tls",
    "listeners[2].tls.certificates[0]",
    "listeners[2].tls.certificates[1]",
    "vendors.mutual.client_cert",
    "vendors.oauth.client_cert",
    "vendors.oauth.auth.client_credentials.client_cert",
    "vendors.consent.auth.authorization_code.client_cert",
    "vendors.grant.auth.vedauth.certificate",
];

fn yaml() -> String {
    let file = |nth: usize| format!("{{ cert: c{nth}.crt, key: c{nth}.key }}");
    let token = "token_url: 'https://127.0.0.1:1/t', client_id: us, client_auth: tls";
    format!(
        "admin: {{ bind: 127.0.0.1:0 }}
drain: {{ delay: 0s }}
listeners:
  - bind: 127.0.0.1:0
  - {{ bind: 127.0.0.1:0, tls: {} }}
  - {{ bind: 127.0.0.1:0, tls: {{ certificates: [ {}, {} ] }} }}
vendors:
  mutual: {{ upstream: 'https://127.0.0.1:1', client_cert: {} }}
  oauth:
    upstream: https://127.0.0.1:1
    client_cert: {}
    auth: {{ client_credentials: {{ {token}, client_cert: {} }} }}
  consent:
    upstream: https://127.0.0.1:1
    auth: {{ authorization_code: {{ authorize_url: 'https://127.0.0.1:1/a', redirect_uri: 'http://127.0.0.1:1/', {token}, client_cert: {} }} }}
  grant:
    upstream: https://127.0.0.1:1
    auth: {{ vedauth: {{ client_id: us, certificate: {} }} }}
",
        file(0), file(1), file(2), file(3), file(4), file(5), file(6), file(7)
    )
}

#[test]
fn every_certificate_that_is_shown_is_in_the_gauge_and_on_the_page_by_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let now = SystemTime::now();
    let end = |nth: usize| now + DAY * (20 + u32::try_from(nth).unwrap());
    for nth in 0..PLACES.len() {
        put(dir, &format!("c{nth}"), end(nth));
    }
    let mut wanted: BTreeMap<String, u64> = PLACES
        .iter()
        .enumerate()
        .map(|(nth, place)| ((*place).to_owned(), seconds(end(nth))))
        .collect();
    let proxy = Proxy::launch(dir, &yaml(), &[]);
    assert_eq!(gauge(&proxy), wanted);
    let page = proxy.admin("/").1;
    for place in PLACES {
        assert!(
            page.contains(&format!("<code>{place}</code>")),
            "{place}: {page}"
        );
    }

    // What logs in makes no reload, and everything else does; each is followed.
    for nth in [0, 3, 7] {
        let renewed = now + DAY * 300;
        put(dir, &format!("c{nth}"), renewed);
        wanted.insert(PLACES[nth].to_owned(), seconds(renewed));
    }
    eventually("the renewed ones are shown", || {
        (gauge(&proxy) == wanted).then_some(())
    });

    // A broken file changes nothing.
    std::fs::write(dir.join("c7.key"), "broken").unwrap();
    std::fs::write(dir.join("c5.crt"), "broken").unwrap();
    let without: String = yaml().split("  grant:").next().unwrap().to_owned();
    std::fs::write(dir.join("proxy.yaml"), &without).unwrap();
    signal(proxy.id(), "HUP");
    eventually("refused", || {
        proxy.admin("/status").1.contains("c5.crt").then_some(())
    });
    assert_eq!(gauge(&proxy), wanted);

    put(dir, "c5", end(5));
    signal(proxy.id(), "HUP");
    wanted.remove(PLACES[7]);
    eventually("forgotten with its vendor", || {
        (gauge(&proxy) == wanted).then_some(())
    });
}

#[test]
fn check_refuses_what_has_expired_and_warns_of_what_soon_will_and_serve_starts() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let now = SystemTime::now();
    for nth in 0..PLACES.len() {
        put(dir, &format!("c{nth}"), now + 30 * DAY);
    }
    std::fs::write(dir.join("proxy.yaml"), yaml()).unwrap();
    let fine = run(dir, &["check"]);
    assert_eq!((fine.code, fine.stderr.as_str()), (Some(0), ""));

    for (nth, place) in PLACES.iter().enumerate() {
        put(dir, &format!("c{nth}"), now + 5 * DAY + DAY / 2);
        let soon = run(dir, &["check"]);
        assert_eq!(soon.code, Some(0), "{soon:?}");
        let said = format!("{place}.cert: c{nth}.crt expires on 2");
        let warned = soon.stderr.lines().find(|line| line.contains(&said));
        let warned = warned.unwrap_or_else(|| panic!("{place}: {soon:?}"));
        assert!(warned.starts_with("warning: proxy.yaml:"), "{warned}");
        assert!(
            warned.contains(", 5 days from now; put a renewed one"),
            "{warned}"
        );

        put(dir, &format!("c{nth}"), now - DAY);
        let late = run(dir, &["check"]);
        assert_eq!(late.code, Some(2), "{late:?}");
        let said = format!("{place}.cert: c{nth}.crt expired on 2");
        let refused = late.stderr.lines().find(|line| line.contains(&said));
        assert!(
            refused.is_some_and(|line| line.starts_with("proxy.yaml:")),
            "{late:?}"
        );
        assert!(late.stderr.contains("1 error in proxy.yaml"), "{late:?}");
        put(dir, &format!("c{nth}"), now + 30 * DAY);
    }

    // One vendor's certificate does not affect the other vendors.
    put(dir, "c7", now - DAY);
    let proxy = Proxy::launch(dir, &yaml(), &[]);
    let said = proxy.stderr();
    assert!(
        said.contains("warning: ") && said.contains("c7.crt expired on 2"),
        "{said}"
    );
    assert_eq!(gauge(&proxy)[PLACES[7]], seconds(now - DAY));
    assert!(proxy.admin("/").1.contains("has expired"));
}
