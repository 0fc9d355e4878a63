//! Countersign and the yardstick with every allocation counted, for `counts.py`. It sends the
//! requests from another process, so the figures contain no allocations of the client or of the
//! upstream.
//!
//! ```text
//! counts countersign CONFIG
//! counts bare LISTEN UPSTREAM
//! ```
//!
//! For each line on stdin, prints the line `counts ALLOCATIONS REALLOCATIONS BYTES` to stderr, with
//! the totals of all threads since the start. Exits at the end of stdin.

mod pass_through;

use std::alloc::System;
use std::io::Read;
use std::path::Path;

use self::pass_through::USAGE;
use countersign::config::{Config, Secrets};
use countersign::logs;
use countersign::server;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};

// Does not count what C libraries allocate by malloc; `counts.py --sites` shows it.
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

/// Serves as `countersign serve` does.
fn serve(config: &Path) {
    logs::init(logs::LevelFilter::INFO);
    let config = Config::load(config, Secrets::Resolve).expect("the configuration is valid");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads)
        .enable_all()
        .build()
        .expect("the runtime starts");
    runtime.block_on(async {
        let _running = server::start(config).expect("the proxy starts");
        std::future::pending::<()>().await;
    });
}

/// Prints the counts for each line on stdin. Allocates nothing but the text.
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
