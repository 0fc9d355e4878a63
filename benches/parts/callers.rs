//! Identifying the caller. The cost must not grow with the number of callers.

use std::collections::HashSet;
use std::hint::black_box;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use countersign::config::{self, ApiKey};
use countersign::request::caller::token::Mint;
use countersign::request::caller::{Callers, Identified, Presented};
use countersign::tls::sha256;
use criterion::{BenchmarkId, Criterion};
use http::{HeaderMap, HeaderValue};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("callers");
    for count in [1, 100, 10_000, 100_000] {
        let callers = known(count);
        let key = key(count / 2);
        let basic = STANDARD.encode(format!("me:{key}"));
        for (slot, name, value) in [
            ("key field", "x-countersign-key", key.clone()),
            ("bearer", "authorization", format!("Bearer {key}")),
            ("basic", "authorization", format!("Basic {basic}")),
        ] {
            let mut headers = super::heads::request();
            headers.remove("x-countersign-key");
            headers.insert(name, HeaderValue::from_str(&value).expect("ASCII"));
            group.bench_function(BenchmarkId::new(slot, count), |bencher| {
                bencher
                    .iter(|| identify(&callers, black_box(&headers)).expect("the caller is known"));
            });
        }
    }
    let callers = known(1);
    let mut headers = super::heads::request();
    headers.insert("x-countersign-key", HeaderValue::from_static("a guess"));
    group.bench_function("unknown key", |bencher| {
        bencher.iter(|| identify(&callers, black_box(&headers)).expect_err("the key is unknown"));
    });
}

fn identify(
    callers: &Callers,
    headers: &HeaderMap,
) -> Result<Arc<countersign::request::caller::Caller>, countersign::error::Error> {
    let identified = callers.identify(Presented {
        headers,
        certificate: None,
        authority: "127.0.0.1:8080",
        known_host: false,
    });
    match identified {
        Identified::Found(found) => found?.caller(),
        Identified::Unverified(_) => panic!("no caller has a signed token"),
    }
}

fn known(count: usize) -> Callers {
    let callers = (0..count)
        .map(|nth| config::Caller {
            name: format!("caller-{nth}"),
            api_key: Some(ApiKey::Sha256(sha256(&[key(nth).as_bytes()]))),
            certificate: None,
            jwt: None,
            allow: Vec::new(),
            rate: None,
        })
        .collect();
    let mint = Arc::new(Mint::new(None));
    Callers::new(
        &config::Callers::Known(callers),
        None,
        &mint,
        HashSet::new(),
        |_| panic!("no caller has a signed token"),
    )
    .expect("the digests are configured")
}

fn key(nth: usize) -> String {
    format!("csk_0123456789abcdefghijklmnopqrstuv{nth:08}")
}
