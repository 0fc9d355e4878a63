//! Machines that sleep, and clocks that are set: the real binary, with other clocks in their place.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::time::sleep;

use super::{Ledger, Setup};
use crate::support::eventually;
use crate::support::script::{Asked, Reply};

/// What the proxy's clocks are ahead of this machine's.
struct Clocks {
    dir: TempDir,
    /// The token server is.
    down: Arc<AtomicBool>,
}

impl Clocks {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/clocks.c");
        // Rust needs a C compiler of this name to link, too.
        let compiled = Command::new("cc")
            .args(["-O1", "-shared", "-fPIC", "-o"])
            .arg(dir.path().join("clocks.so"))
            .arg(source)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&compiled.stderr);
        assert!(compiled.status.success(), "{said}");
        std::fs::write(dir.path().join("ahead"), [0; 16]).unwrap();
        Self {
            dir,
            down: Arc::default(),
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// From now on `CLOCK_BOOTTIME` and the wall clock are so many seconds ahead.
    fn set(&self, boot: i64, wall: i64) {
        let bytes = [boot.to_ne_bytes(), wall.to_ne_bytes()].concat();
        let mut options = std::fs::OpenOptions::new();
        let file = options.write(true).open(self.path("ahead")).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
    }

    /// A proxy on these clocks whose vendor `v` gets tokens of an hour.
    async fn start(&self) -> Setup {
        let down = self.down.clone();
        let script = move |asked: Asked, ledger: Arc<Ledger>| {
            let down = down.load(Ordering::Acquire);
            async move {
                if down {
                    Reply::whole("503 Down", "", "")
                } else {
                    ledger.grant(&asked, 3600)
                }
            }
        };
        let api = |_, _| async { Reply::whole("200 OK", "", "done") };
        let (library, ahead) = (self.path("clocks.so"), self.path("ahead"));
        let environment = [("LD_PRELOAD", library.as_str()), ("CLOCKS_AHEAD", &ahead)];
        let setup = Setup::start_in(&["v"], "", script, api, &environment).await;
        eventually("fresh", || (state(&setup) == "fresh").then_some(()));
        assert_eq!(sent(&setup).await, Some(1));
        // The pause between two attempts.
        sleep(Duration::from_secs(1)).await;
        setup
    }
}

fn state(setup: &Setup) -> String {
    setup.status("v")["state"].as_str().unwrap().to_owned()
}

/// The number of the token that a request of now is sent with; `None`: it is refused.
async fn sent(setup: &Setup) -> Option<usize> {
    let before = setup.api.asked().len();
    let (status, reason) = setup.call("v").await;
    if status != 200 {
        assert_eq!((status, reason.as_str()), (503, "credential_unavailable"));
        assert_eq!(setup.api.asked().len(), before);
        return None;
    }
    let token = setup.api.asked().pop().unwrap().bearer.unwrap();
    Some(token.strip_prefix("v-").unwrap().parse().unwrap())
}

/// Seconds from this machine's time to the time in this field of `/status`.
fn seconds_to(setup: &Setup, field: &str) -> i64 {
    let status = setup.status("v");
    let at = humantime::parse_rfc3339(status[field].as_str().unwrap()).unwrap();
    match at.duration_since(SystemTime::now()) {
        Ok(ahead) => ahead.as_secs().cast_signed(),
        Err(past) => -past.duration().as_secs().cast_signed(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_suspend_the_first_request_already_has_a_new_token() {
    let clocks = Clocks::new();
    let setup = clocks.start().await;
    let lasts = |wanted: i64| {
        let (status, gauge) = (
            seconds_to(&setup, "expires_at"),
            setup.gauge("credential_expiry_timestamp_seconds", "v")
                - SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap()
                    .as_secs()
                    .cast_signed(),
        );
        for found in [status, gauge] {
            assert!((wanted - 20..=wanted).contains(&found), "{wanted}: {found}");
        }
    };
    lasts(3600);

    // Less than the token lasts: it goes on, and its end and renewal stay where they are.
    let renewal = seconds_to(&setup, "refresh_at");
    clocks.set(1000, 1000);
    assert_eq!(sent(&setup).await, Some(1));
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(sent(&setup).await, Some(1));
    lasts(3600);
    let moved = renewal - seconds_to(&setup, "refresh_at");
    assert!((0..=20).contains(&moved), "{moved}");

    // Past its renewal, not past its end.
    clocks.set(3000, 3000);
    eventually("renewed", || {
        (setup.token_calls("v").len() == 2).then_some(())
    });
    eventually("fresh", || (state(&setup) == "fresh").then_some(()));
    assert_eq!(sent(&setup).await, Some(2));
    sleep(Duration::from_secs(1)).await;

    // Past its end, and a request comes before anybody has looked at the clocks.
    clocks.set(3000 + 7200, 3000 + 7200);
    let first = sent(&setup).await;
    assert!(first.is_none_or(|token| token == 3), "{first:?}");
    eventually("renewed", || {
        (setup.token_calls("v").len() == 3).then_some(())
    });
    eventually("fresh", || (state(&setup) == "fresh").then_some(()));
    assert_eq!(sent(&setup).await, Some(3));
    lasts(3000 + 7200 + 3600);

    // The same with a token server that is down: none, rather than one past its end.
    sleep(Duration::from_secs(1)).await;
    clocks.down.store(true, Ordering::Release);
    clocks.set(20_000, 20_000);
    for _ in 0..10 {
        assert_eq!(sent(&setup).await, None);
    }
    assert_eq!(state(&setup), "expired");
    clocks.down.store(false, Ordering::Release);
    eventually("fresh", || (state(&setup) == "fresh").then_some(()));
    assert_eq!(sent(&setup).await, Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_is_set_costs_no_good_token() {
    let clocks = Clocks::new();
    let setup = clocks.start().await;
    // A correction, a step back, and one forward that the token outlives: its end moves along.
    for wall in [2, -3600, 1200 - 3600] {
        clocks.set(0, wall);
        sleep(Duration::from_millis(1500)).await;
        assert_eq!(sent(&setup).await, Some(1), "{wall}");
        assert_eq!(state(&setup), "fresh");
        let ends = seconds_to(&setup, "expires_at");
        let wanted = 3600 + if wall == 2 { 0 } else { wall };
        assert!((wanted - 20..=wanted + 3).contains(&ends), "{wall}: {ends}");
    }
    assert_eq!(setup.token_calls("v").len(), 1);

    // Past the token's end, as after a pause of a virtual machine: a new one is asked for at once.
    clocks.set(0, 7200);
    eventually("renewed", || {
        (setup.token_calls("v").len() == 2).then_some(())
    });
    eventually("fresh", || (state(&setup) == "fresh").then_some(()));
    assert_eq!(sent(&setup).await, Some(2));

    // Nothing better is to be had: the clock may have been wrong before.
    sleep(Duration::from_secs(1)).await;
    clocks.down.store(true, Ordering::Release);
    clocks.set(0, 20_000);
    eventually("tried", || {
        (setup.token_calls("v").len() >= 3).then_some(())
    });
    let mut served = None;
    for _ in 0..100 {
        served = sent(&setup).await;
        if served.is_some() {
            break;
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(served, Some(2));
    assert_eq!(state(&setup), "refreshing");
}
