//! Checks of request heads, the removal of headers, and the placement of the credential.

use std::hint::black_box;

use countersign::downstream::raw_head::{check_raw_head, request_id};
use countersign::request::headers::{
    StrippedHeaders, authority, check_fields, stripped_from_response,
};
use countersign::request::path::Target;
use countersign::request::placement::Placement;
use criterion::{BatchSize, Criterion, Throughput};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("heads");
    let raw = raw_head();
    group.throughput(Throughput::Bytes(raw.len() as u64));
    group.bench_function("check_raw_head", |bencher| {
        bencher.iter(|| check_raw_head(black_box(&raw)).expect("the head is valid"));
    });
    let long = [
        &raw[..raw.len() - 2],
        b"X-Long: ",
        &[b'x'; 8000],
        b"\r\n\r\n",
    ]
    .concat();
    group.throughput(Throughput::Bytes(long.len() as u64));
    group.bench_function("check_raw_head, 8 KiB", |bencher| {
        bencher.iter(|| check_raw_head(black_box(&long)).expect("the head is valid"));
    });
    drop(group);

    let mut group = criterion.benchmark_group("heads");
    let request = request();
    group.bench_function("check_fields", |bencher| {
        bencher.iter(|| check_fields(black_box(&request)).expect("the head is valid"));
    });
    group.bench_function("authority", |bencher| {
        bencher.iter(|| authority(black_box(&request), None).expect("Host is present"));
    });
    group.bench_function("request_id", |bencher| {
        bencher.iter(|| request_id(black_box(&request)));
    });
    group.bench_function("Target::parse", |bencher| {
        bencher.iter(|| Target::parse(black_box(b"/acme/v1/certificates/4711?format=pem")));
    });
    for (name, fields) in [("1 vendor", 1), ("100 vendors", 100)] {
        let stripped = StrippedHeaders::new((0..fields).map(|nth| {
            HeaderName::from_bytes(format!("x-acme-{nth}-key").as_bytes()).expect("a field name")
        }));
        group.bench_function(
            format!("StrippedHeaders::in_request, fields of {name}"),
            |bencher| {
                bencher.iter(|| stripped.in_request(black_box(&request), false, false));
            },
        );
    }
    let response = response();
    group.bench_function("stripped_from_response", |bencher| {
        bencher.iter(|| stripped_from_response(black_box(&response), false, false));
    });
    drop(group);

    placements(criterion);
}

fn placements(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("placement");
    for (name, auth) in [
        (
            "Authorization",
            "bearer: { token: { value: 0123456789abcdef0123456789abcdef } }",
        ),
        (
            "three headers",
            "headers: { login: { value: countersign }, password: { value: 0123456789abcdef }, customerUri: acme }",
        ),
        ("query", "query: { api_key: { value: 0123456789abcdef } }"),
    ] {
        let configured = super::vendor(&format!(
            "    upstream: https://api.acme.example\n    auth: {{ {auth} }}\n"
        ));
        let placement = Placement::of(configured.auth.as_ref().expect("auth is configured"));
        let held = super::credentials::credential(&configured)
            .current()
            .expect("a fixed credential is always present");
        group.bench_function(name, |bencher| {
            let target = b"/certificates?format=pem&page=2";
            let plain = RequestHeader::build("GET", target, None).expect("a valid target");
            bencher.iter_batched(
                || plain.clone(),
                |mut request| {
                    let applied = placement.apply(black_box(&held), &mut request);
                    applied.expect("held values are valid");
                    request
                },
                BatchSize::SmallInput,
            );
        });
    }
}

/// Returns the headers of a small client.
pub(crate) fn request() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for line in raw_head().split(|byte| *byte == b'\n').skip(1) {
        let mut parts = line.trim_ascii().splitn(2, |byte| *byte == b':');
        if let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            headers.append(
                HeaderName::from_bytes(name).expect("a field name"),
                HeaderValue::from_bytes(value.trim_ascii()).expect("a field value"),
            );
        }
    }
    headers
}

fn raw_head() -> Vec<u8> {
    b"GET /acme/v1/certificates/4711?format=pem HTTP/1.1\r\n\
      Host: 127.0.0.1:8080\r\n\
      User-Agent: python-requests/2.32.3\r\n\
      Accept-Encoding: gzip, deflate\r\n\
      Accept: */*\r\n\
      Connection: keep-alive\r\n\
      X-Countersign-Key: csk_0123456789abcdefghijklmnopqrstuv00000000\r\n\r\n"
        .to_vec()
}

/// Returns the headers of a vendor's response.
fn response() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("date", "Tue, 03 Jun 2025 10:00:00 GMT"),
        ("content-type", "application/json"),
        ("content-length", "128"),
        ("connection", "keep-alive"),
        ("keep-alive", "timeout=60"),
        ("cache-control", "no-store"),
        ("strict-transport-security", "max-age=31536000"),
        ("set-cookie", "session=0123456789abcdef; Secure; HttpOnly"),
    ] {
        headers.append(name, HeaderValue::from_static(value));
    }
    headers
}
