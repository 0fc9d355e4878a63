//! The same raw bytes go to two builds: the caller gets the same from both, and the vendor sees the
//! same.
//!
//! # Comparing two builds
//!
//! `COUNTERSIGN_OTHER` is the path of another binary, one built before a change. Without it this build
//! is compared with itself, which shows that the comparison finds nothing where there is nothing.
//!
//! ```sh
//! cargo build --locked --target-dir before   # in a tree without the change
//! export COUNTERSIGN_OTHER=…/before/debug/countersign
//! cargo test --test promises -- --nocapture differential::
//! ```
//!
//! * `COUNTERSIGN_SECONDS=600`: changes the cases at random for so long. nextest ends a test after three
//!   minutes, `cargo test` does not.
//! * `COUNTERSIGN_SEED=7`: the seed of the first change; each further one has the next seed. Every
//!   difference is printed with its own, so that this seed and no seconds show it again.
//! * `COUNTERSIGN_ONLY=text`: only cases with this in their names, unchanged, and prints what
//!   both do.
//!
//! A difference counts when it is there each time the case is run again, also with programs that have
//! just been started. Those that may be are in [`compare::PERMITTED`], each with its reason.

mod cases;
mod compare;
mod mutate;
mod program;
mod run;
mod seeds;
mod vendor;
mod wire;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use self::cases::{Act, Case, bytes, get};
use self::compare::{Raw, compare, normal};
use self::run::{Found, Other, Pair, again, token_server};

/// Workers, each with two programs. They wait most of the time.
const WORKERS: usize = 16;
/// Changed cases that are run in any event.
const CHANGED: usize = 50;
/// Differences of one kind that are looked at once more, and of all kinds.
const OF_ONE_KIND: usize = 3;
const OF_ALL_KINDS: usize = 40;

/// What is to be run.
struct Plan {
    seeds: Vec<Case>,
    seed: u64,
    changed: usize,
    until: Instant,
    next: AtomicUsize,
    shows: bool,
    other: Other,
    tokens: String,
    record: Mutex<Record>,
}

/// What came of it.
#[derive(Default)]
struct Record {
    ran: usize,
    /// Differences that were there once.
    once: Vec<String>,
    /// Differences by their kind.
    found: BTreeMap<String, Vec<Found>>,
    /// How often a permitted difference was there.
    permitted: BTreeMap<&'static str, usize>,
}

impl Plan {
    /// The next case.
    fn next(&self) -> Option<Case> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if let Some(case) = self.seeds.get(number) {
            return Some(case.clone());
        }
        let number = number - self.seeds.len();
        let goes_on = number < self.changed || Instant::now() < self.until;
        goes_on.then(|| mutate::mutated(&self.seeds, self.seed + number as u64))
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect(name))
}

/// Runs cases until there are none, once all have been started.
async fn work(plan: Arc<Plan>, started: Arc<Barrier>) {
    let mut pair = Pair::start(&plan.other, &plan.tokens).await;
    // Programs that start take time from those that are at work.
    started.wait().await;
    while let Some(case) = plan.next() {
        let (difference, permitted, raw) = pair.compare(&case).await;
        if plan.shows {
            println!("{}", shown(&case, &raw));
        }
        let found = match difference {
            None => None,
            Some(difference) => {
                let found = Found {
                    case: case.clone(),
                    difference,
                    raw,
                };
                let name = format!("{}: {}", case.name, found.difference);
                // A renewal cannot be had again so soon.
                let times = if case.renews { 0 } else { 3 };
                let again = again(&pair, found, times).await;
                if again.is_none() {
                    plan.record.lock().unwrap().once.push(name);
                }
                again
            }
        };
        let mut record = plan.record.lock().unwrap();
        record.ran += 1;
        for name in permitted {
            *record.permitted.entry(name).or_default() += 1;
        }
        if let Some(found) = found {
            let kind = found.difference.clone();
            record.found.entry(kind).or_default().push(found);
        }
        if let Some(said) = pair.ended() {
            panic!("a program has ended by itself, in {case}\n{said}");
        }
    }
}

/// The differences that programs which have just been started show, too, with nothing else going on.
async fn confirmed(plan: &Plan, found: BTreeMap<String, Vec<Found>>) -> Vec<(Found, usize)> {
    let mut confirmed = Vec::new();
    for (_, all) in found {
        let alike = all.len();
        for found in all.into_iter().take(OF_ONE_KIND) {
            if confirmed.len() >= OF_ALL_KINDS {
                return confirmed;
            }
            let name = format!("{}: {}", found.case.name, found.difference);
            let (times, pairs) = if found.case.renews { (1, 3) } else { (3, 1) };
            let mut still = Some(found);
            for _ in 0..pairs {
                let pair = Pair::start(&plan.other, &plan.tokens).await;
                if let Some(found) = still {
                    still = again(&pair, found, times).await;
                }
            }
            match still {
                Some(found) => confirmed.push((found, alike)),
                None => plan.record.lock().unwrap().once.push(name),
            }
        }
    }
    confirmed
}

fn report(found: &Found, alike: usize) -> String {
    let did = shown(&found.case, &found.raw);
    format!("=== {} ({alike} of this kind)\n{did}", found.difference)
}

/// A case, and what both did.
fn shown(case: &Case, raw: &[Raw; 2]) -> String {
    let [other, ours] = raw.each_ref().map(|raw| normal(case, raw));
    format!("{case}  the other:\n{other}  ours:\n{ours}")
}

#[tokio::test(flavor = "multi_thread")]
async fn two_builds_do_the_same_with_the_same_bytes() {
    let other = std::env::var_os("COUNTERSIGN_OTHER").filter(|path| !path.is_empty());
    let seconds = number("COUNTERSIGN_SECONDS").unwrap_or(0);
    let seed = number("COUNTERSIGN_SEED").unwrap_or(1);
    let only = std::env::var("COUNTERSIGN_ONLY").ok();
    let mut seeds = seeds::all();
    if let Some(only) = &only {
        seeds.retain(|case| case.name.contains(only));
    }
    println!(
        "{} cases, seed {seed}, {seconds} s, against {}",
        seeds.len(),
        other
            .as_deref()
            .map_or("itself".into(), |path| path.to_string_lossy())
    );
    let tokens = token_server().await;
    let plan = Arc::new(Plan {
        changed: if only.is_none() { CHANGED } else { 0 },
        shows: only.is_some(),
        seeds,
        seed,
        until: Instant::now() + Duration::from_secs(seconds),
        next: AtomicUsize::new(0),
        other,
        tokens: tokens.url("/token"),
        record: Mutex::default(),
    });
    let started = Arc::new(Barrier::new(WORKERS));
    let mut working: JoinSet<()> = (0..WORKERS)
        .map(|_| work(plan.clone(), started.clone()))
        .collect();
    while let Some(worked) = working.join_next().await {
        worked.unwrap();
    }
    let found = std::mem::take(&mut plan.record.lock().unwrap().found);
    let confirmed = confirmed(&plan, found).await;
    let record = plan.record.lock().unwrap();
    println!("{} cases ran", record.ran);
    for permitted in compare::PERMITTED {
        let times = record.permitted.get(permitted.name).unwrap_or(&0);
        println!("{times} times {}: {}", permitted.name, permitted.reason);
    }
    println!("{} differences did not come again", record.once.len());
    for once in record.once.iter().take(20) {
        println!("  {once}");
    }
    for (found, alike) in &confirmed {
        println!("{}", report(found, *alike));
    }
    assert!(confirmed.is_empty(), "{} differences", confirmed.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_difference_is_found() {
    let tokens = token_server().await;
    let pair = Pair::start(&None::<OsString>, &tokens.url("/token")).await;
    let case = |answer: &str| {
        let request = get("/v/x", "");
        Case::sending("planted", request).answered(vec![bytes(answer)])
    };
    let right = case("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    let (other, ours) = pair.run(&right).await;
    assert_eq!(compare(&right, &other, &ours), (None, vec![]));
    assert_eq!(ours.seen.len(), 1);
    for wrong in [
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 201 OK\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\nok",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ] {
        let (_, planted) = pair.run(&case(wrong)).await;
        assert!(compare(&right, &other, &planted).0.is_some(), "{wrong}");
    }
    // Chunks are the same however they are cut.
    let in_chunks = |acts: &[&str]| {
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        let mut answer = bytes(head);
        for piece in acts {
            answer.0.extend([Act::Pause(5), cases::send(piece)]);
        }
        Case::sending("chunks", get("/v/x", "")).answered(vec![answer])
    };
    let (one, _) = pair.run(&in_chunks(&["4\r\nokok\r\n0\r\n\r\n"])).await;
    let (two, _) = pair
        .run(&in_chunks(&["2\r\nok\r\n", "2\r\nok\r\n0\r\n\r\n"]))
        .await;
    assert_eq!(compare(&right, &one, &two).0, None);
    let (cut, _) = pair.run(&in_chunks(&["2\r\nok\r\n", "2\r\nok"])).await;
    assert!(compare(&right, &one, &cut).0.is_some());
}
