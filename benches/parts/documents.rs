//! Parsing and validating a large proxy.yaml.

use std::fmt::Write;
use std::hint::black_box;
use std::path::Path;

use countersign::config::{Config, Secrets};
use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput};

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("config");
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    for count in [1, 100, 1000] {
        let text = yaml(count);
        super::config(&text);
        group.throughput(Throughput::Elements(count));
        group.bench_function(BenchmarkId::new("vendors", count), |bencher| {
            let path = Path::new("proxy.yaml");
            bencher.iter(|| Config::parse(black_box(&text), path, Secrets::Resolve).is_ok());
        });
    }
}

fn yaml(count: u64) -> String {
    let mut text = "listeners: [ { bind: 127.0.0.1:0 } ]\n\
                    callers:\n  issuance: { api_key: { value: 0123456789abcdef0123456789abcdef }, allow: [ \"*\" ] }\n\
                    vendors:\n"
        .to_owned();
    for nth in 0..count {
        write!(
            text,
            "  acme-{nth}:\n    upstream: https://api-{nth}.acme.example/base\n    hosts: [ acme-{nth}.proxy.internal ]\n    auth:\n      client_credentials:\n        token_url: https://login.acme.example/oauth/token\n        client_id: countersign-{nth}\n        client_secret: {{ value: 0123456789abcdef }}\n    timeouts: {{ connect: 2s }}\n    limits: {{ in_flight: 64 }}\n    refuse: [ \"/base/oauth/**\", \"!GET /base/oauth/keys\" ]\n"
        )
        .expect("writing to a string cannot fail");
    }
    text
}
