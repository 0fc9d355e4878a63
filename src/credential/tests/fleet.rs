//! A fleet simulated on the real scheduling code: 1,000 replicas that hold 50 credentials each,
//! a token server that is away for ten minutes, and all replicas restarted at once.
//!
//! Only the token server is made up: every credential is kept by [`keep_fresh`] itself, on a clock
//! that jumps from one timer to the next. The figures are in docs/lifecycle.md; to get them again:
//! `cargo test --release --lib fleet -- --ignored --nocapture`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::credential::fakes::metrics;
use crate::credential::renewal::keep_fresh;
use crate::credential::{Credential, FetchError, Issued, Lifetime, Source};

const HOUR: Duration = Duration::from_hours(1);
const OUTAGE: Duration = Duration::from_mins(10);

/// The token server of the whole fleet.
struct Server {
    begun: Instant,
    /// Calls by the second.
    calls: Mutex<Vec<u32>>,
    /// Away from when on, for [`OUTAGE`].
    away: Duration,
}

struct Client {
    server: Arc<Server>,
    lifetime: Duration,
    /// Of its first token, which was issued before the simulation begins.
    age: Mutex<Option<Duration>>,
}

#[async_trait]
impl Source for Client {
    async fn fetch(&self) -> Result<Issued, FetchError> {
        let asked = Instant::now();
        let at = asked - self.server.begun;
        {
            let mut calls = self.server.calls.lock();
            let second = usize::try_from(at.as_secs()).unwrap();
            if calls.len() <= second {
                calls.resize(second + 1, 0);
            }
            calls[second] += 1;
        }
        sleep(Duration::from_millis(fastrand::u64(20..200))).await;
        if at >= self.server.away && at < self.server.away + OUTAGE {
            return Err(FetchError::Temporary {
                cause: "connection refused".into(),
                retry_after: None,
            });
        }
        let age = self.age.lock().take().unwrap_or_default();
        Ok(Issued {
            values: vec![HeaderValue::from_static("Bearer t")],
            lifetime: Some(Lifetime {
                total: self.lifetime,
                end: asked + self.lifetime - age,
            }),
        })
    }

    async fn changed(&self) {
        std::future::pending::<()>().await;
    }
}

/// What came of it. Rates are calls per second, averaged over as many seconds as bring 200 calls
/// in steady state (ten for 50,000 credentials of an hour): over fewer, chance decides the peak.
#[derive(Debug)]
struct Figures {
    /// What renewing at 70 % of the lifetimes comes to.
    steady: f64,
    before: f64,
    while_away: f64,
    after_outage: f64,
    /// The first minute after the restart aside, in which everybody needs a token.
    after_restart: f64,
    /// The same, when everything has been renewed fourteen times since.
    later: f64,
    /// Looks at a credential that found it unusable, the first minute after a start aside.
    without: usize,
}

impl Figures {
    #[expect(clippy::print_stdout, reason = "what the simulation is run for")]
    fn print(&self, what: &str) {
        let times = |rate: f64| format!("{rate:7.1}/s {:5.2}", rate / self.steady);
        println!("{what}");
        println!("  steady mean           {}", times(self.steady));
        println!("  highest before        {}", times(self.before));
        println!("  during the outage     {}", times(self.while_away));
        println!("  after the outage      {}", times(self.after_outage));
        println!("  after the restart     {}", times(self.after_restart));
        println!("  14 renewals later     {}", times(self.later));
        println!("  without a valid token {}", self.without);
    }
}

/// A fleet that has run for long, an outage at a quarter of `day`, and a restart of everything in
/// the same second at half of it.
async fn simulate(replicas: usize, lifetimes: &[Duration], day: Duration) -> Figures {
    let begun = Instant::now();
    let (away, restart) = (day / 4, day / 2);
    let server = Arc::new(Server {
        begun,
        calls: Mutex::new(Vec::new()),
        away,
    });
    let start = |aged: bool| {
        let mut keeping = JoinSet::new();
        let mut credentials = Vec::new();
        for lifetime in lifetimes {
            for _ in 0..replicas {
                let credential = Arc::new(Credential::new(true));
                let age = aged.then(|| lifetime.mul_f64(0.7 * fastrand::f64()));
                let client = Client {
                    server: server.clone(),
                    lifetime: *lifetime,
                    age: Mutex::new(age),
                };
                keeping.spawn(keep_fresh(
                    credential.clone(),
                    Arc::new(client),
                    String::new(),
                    metrics(),
                    Duration::from_secs(10),
                ));
                credentials.push(credential);
            }
        }
        (keeping, credentials)
    };
    let unusable = |credentials: &[Arc<Credential>]| {
        credentials.iter().filter(|c| c.current().is_err()).count()
    };

    let (keeping, credentials) = start(true);
    let mut without = 0;
    sleep_until(begun + away).await;
    while begun.elapsed() < away + OUTAGE * 3 {
        without += unusable(&credentials);
        sleep(Duration::from_secs(20)).await;
    }
    sleep_until(begun + restart).await;
    without += unusable(&credentials);
    drop(keeping);
    let (_keeping, credentials) = start(false);
    let started = restart + Duration::from_mins(1);
    sleep_until(begun + started).await;
    while begun.elapsed() < day {
        without += unusable(&credentials);
        sleep(OUTAGE).await;
    }

    let calls = server.calls.lock();
    let each = lifetimes
        .iter()
        .map(|lifetime| 1.0 / (0.7 * lifetime.as_secs_f64()));
    let steady = each.sum::<f64>() * f64::from(u32::try_from(replicas).unwrap());
    let window = (1_u32..1000).find(|window| f64::from(*window) * steady >= 200.0);
    let window = window.unwrap_or(1000);
    let peak = |from: Duration, to: Duration| {
        let at = |at: Duration| usize::try_from(at.as_secs()).unwrap().min(calls.len());
        let sums = calls[at(from).min(at(to))..at(to)]
            .windows(window as usize)
            .map(|calls| calls.iter().sum::<u32>());
        f64::from(sums.max().unwrap_or_default()) / f64::from(window)
    };
    let longest = lifetimes.iter().max().copied().unwrap_or_default();
    Figures {
        steady,
        before: peak(OUTAGE, away),
        while_away: peak(away, away + OUTAGE),
        after_outage: peak(away + OUTAGE, restart),
        after_restart: peak(started, day),
        later: peak(restart + longest.mul_f64(14.5 * 0.7), day),
        without,
    }
}

/// From an hour to a day, so that most are a few hours: what fifty vendors would have.
fn mixed() -> Vec<Duration> {
    let nth = |n: u32| HOUR.mul_f64(24_f64.powf(f64::from(n) / 49.0));
    (0..50).map(nth).collect()
}

#[tokio::test(start_paused = true)]
async fn a_fleet_comes_back_from_an_outage_without_a_rush_and_never_without_a_token() {
    let figures = simulate(100, &[HOUR; 50], HOUR * 4).await;
    figures.print("5,000 credentials of an hour");
    assert_eq!(figures.without, 0);
    assert!(figures.after_outage < 3.0 * figures.steady);
}

#[tokio::test(start_paused = true)]
#[ignore = "a day of 50,000 credentials, twice: minutes"]
async fn a_thousand_replicas_of_fifty_credentials_for_a_day() {
    let day = HOUR * 24;
    let alike = simulate(1000, &[HOUR; 50], day).await;
    alike.print("50 credentials of an hour each");
    let mixed = simulate(1000, &mixed(), day).await;
    mixed.print("50 credentials of an hour to a day");
    for figures in [&alike, &mixed] {
        assert_eq!(figures.without, 0);
        assert!(figures.after_outage < 3.0 * figures.steady);
    }
    // Tokens of one lifetime that were issued in one second are renewed in waves, which the
    // window of 65 to 75 % flattens only with time.
    assert!(mixed.after_restart < 3.0 * mixed.steady);
    assert!(alike.later < 3.0 * alike.steady);
}
