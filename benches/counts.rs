//! Countersign and the yardstick with every allocation counted, for `counts.py`, which drives them
//! from outside: neither the client's nor the upstream's allocations are in the figures.
//!
//! ```text
//! counts countersign CONFIG
//! counts bare LISTEN UPSTREAM
//! ```
//!
//! Each line on stdin is answered with one on stderr, `counts ALLOCATIONS REALLOCATIONS BYTES`, all
//! since the start and of all threads. The end of stdin ends the process.

mod pass_through;

use std::alloc::System;
use std::io::Read;
use std::path::Path;

use self::pass_through::USAGE;
use countersign::config::{Config, Secrets};
use countersign::logs;
use countersign::server;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

// What C libraries take from malloc themselves is not seen here; `counts.py --sites` shows it.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    std::thread::spawn(report);
    match arguments.split_first() {
        Some((kind, rest)) if kind == "bare" => pass_through::run(rest),
        Some((kind, [config])) if kind == "countersign" => serve(Path::new(config)),
        _ => {
            eprintln!("usage: counts countersign CONFIG | counts bare {USAGE}");
            std::process::exit(2);
        }
    }
}

/// As `countersign serve` does.
fn serve(config: &Path) {
    logs::init(logs::LevelFilter::INFO);
    let config = Config::load(config, Secrets::Resolve).expect("the configuration is valid");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .enable_all()
        .build()
        .expect("the system gives threads");
    runtime.block_on(async {
        let _running = server::start(config).expect("the proxy starts");
        std::future::pending::<()>().await;
    });
}

/// Takes nothing from the heap itself, but for the text.
fn report() {
    let mut byte = [0];
    while let Ok(1) = std::io::stdin().read(&mut byte) {
        let now = ALLOCATOR.stats();
        eprintln!(
            "counts {} {} {}",
            now.allocations, now.reallocations, now.bytes_allocated
        );
    }
    std::process::exit(0);
}
