//! Loading the current credential, as every request does. A swap must cost readers nothing: the
//! same load is measured while another thread swaps as fast as it can, and for comparison with
//! locks.

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use arc_swap::ArcSwapOption;
use countersign::config;
use countersign::credential::{self, Credential, Held};
use countersign::metrics::Metrics;
use countersign::store;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

pub(crate) fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("credential");
    let one = token("one");
    group.bench_function("Credential::current", |bencher| {
        bencher.iter(|| black_box(&one).current());
    });
    // A credential is swapped only by its own task, at most once a second. So the following use its
    // content directly, with the reading of the clock that is part of the load.
    group.bench_function("the clock alone", |bencher| bencher.iter(Instant::now));
    let pair = [&one, &token("other")]
        .map(|one| one.current().expect("a fixed credential is always present"));
    let arc_swap = ArcSwapOption::new(Some(pair[0].clone()));
    idle_and_swapping(
        &mut group,
        "ArcSwap",
        || arc_swap.load_full(),
        |nth| arc_swap.store(Some(pair[nth % 2].clone())),
    );
    let rw_lock = RwLock::new(Some(pair[0].clone()));
    idle_and_swapping(
        &mut group,
        "RwLock",
        || rw_lock.read().clone(),
        |nth| *rw_lock.write() = Some(pair[nth % 2].clone()),
    );
    let mutex = Mutex::new(Some(pair[0].clone()));
    idle_and_swapping(
        &mut group,
        "Mutex",
        || mutex.lock().clone(),
        |nth| *mutex.lock() = Some(pair[nth % 2].clone()),
    );
}

fn idle_and_swapping(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    load: impl Fn() -> Option<Arc<Held>>,
    swap: impl Fn(usize) + Sync,
) {
    let current = || load().map(|held| (Instant::now(), held.generation()));
    group.bench_function(format!("{name}, idle"), |bencher| bencher.iter(current));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut nth = 0;
            while !stop.load(Ordering::Relaxed) {
                nth += 1;
                swap(nth);
            }
        });
        group.bench_function(format!("{name}, swapped continuously"), |bencher| {
            bencher.iter(current);
        });
        stop.store(true, Ordering::Relaxed);
    });
}

fn token(value: &str) -> Arc<Credential> {
    credential(&super::vendor(&format!(
        "    upstream: https://api.acme.example\n    auth: {{ bearer: {{ token: {{ value: {value}-0123456789abcdef }} }} }}\n"
    )))
}

/// Returns a credential that is used as configured and never changes.
pub(crate) fn credential(vendor: &config::Vendor) -> Arc<Credential> {
    let store = config::Store::File {
        dir: "unused".into(),
        encryption_key: None,
    };
    let store = store::open(&store);
    let _guard = RUNTIME.enter();
    let metrics = Metrics::new().fetch(&vendor.name);
    // The task that looks for changes is dropped.
    let (credential, _) =
        credential::start(vendor, &store, metrics, None).expect("the secret is configured");
    credential
}

static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("the runtime starts")
});
