//! Checks that three things hold whatever a token server responds and whatever happens meanwhile.

use proptest::prelude::*;

use super::*;

/// A token with its lifetime in milliseconds, or a failure.
#[derive(Clone, Copy, Debug)]
enum Fetch {
    Good(u64),
    Down,
    Busy(u64),
    Refused,
    Reauthorize,
}

fn any_fetch() -> impl Strategy<Value = (u64, Fetch)> {
    let result = prop_oneof![
        4 => (1_u64..10_000).prop_map(Fetch::Good),
        2 => (10_000_u64..100_000_000).prop_map(Fetch::Good),
        4 => Just(Fetch::Down),
        1 => (0_u64..600).prop_map(Fetch::Busy),
        1 => Just(Fetch::Refused),
        1 => Just(Fetch::Reauthorize),
    ];
    // Milliseconds until it comes.
    (prop_oneof![Just(0), 0_u64..15_000], result)
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    Rejection,
    RefreshRequest,
    Change,
    Secret,
    CheckSecrets,
    Account(u8),
}

/// Draws an event and the milliseconds after it, from none to most of an hour.
fn any_event() -> impl Strategy<Value = (Event, u64)> {
    let event = prop_oneof![
        3 => Just(Event::Nothing),
        3 => Just(Event::Rejection),
        1 => Just(Event::RefreshRequest),
        1 => Just(Event::Change),
        1 => Just(Event::Secret),
        1 => Just(Event::CheckSecrets),
        1 => (0_u8..3).prop_map(Event::Account),
    ];
    (
        event,
        prop_oneof![0_u64..3_000, 0_u64..60_000, 0_u64..3_000_000],
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]
    #[test]
    fn no_token_outlives_its_end_no_two_attempts_share_a_second_and_every_fault_is_got_over(
        fetches in proptest::collection::vec(any_fetch(), 0..40),
        events in proptest::collection::vec(any_event(), 0..60),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(run_events(fetches, events));
    }
}

async fn run_events(fetches: Vec<(u64, Fetch)>, events: Vec<(Event, u64)>) {
    let script = script();
    for (nth, (delay, result)) in fetches.into_iter().enumerate() {
        let result = match result {
            Fetch::Good(millis) => Ok(Token {
                text: nth.to_string(),
                lifetime: Duration::from_millis(millis),
            }),
            Fetch::Down => Err(down()),
            Fetch::Busy(seconds) => Err(FetchError::Temporary {
                cause: "busy".into(),
                retry_after: Some(Duration::from_secs(seconds)),
            }),
            Fetch::Refused => Err(refused()),
            Fetch::Reauthorize => Err(FetchError::Reauthorize("consent".into())),
        };
        script.after(Duration::from_millis(delay), result);
    }
    let credential = Script::start(&script);

    for (event, millis) in events {
        match event {
            Event::Nothing => {}
            Event::Rejection => {
                if let Ok(held) = credential.current() {
                    held.reject();
                }
            }
            Event::RefreshRequest => credential.refresh_now(),
            Event::Change => script.change.notify_one(),
            Event::Secret => script.change_secret(),
            Event::CheckSecrets => credential.check_secrets_now(),
            Event::Account(0) => *script.account.lock() = None,
            Event::Account(n) => *script.account.lock() = Some([n; 32]),
        }
        let pause = Duration::from_millis(millis);
        for _ in 0..10 {
            sleep(pause / 10).await;
            if let Ok(held) = credential.current() {
                let end = script.expiries.lock()[text(&held)];
                assert!(Instant::now() < end, "{} is over", text(&held));
            }
        }
    }

    // The running attempt ends; from then on the server is healthy.
    while credential.renewal.borrow().attempting || !credential.renewal.borrow().settled {
        sleep(Duration::from_millis(100)).await;
    }
    script.steps.lock().clear();
    script.healthy.store(true, Ordering::Release);
    let (outcome, relaxed, next) = {
        let renewal = credential.renewal.borrow();
        (renewal.outcome, renewal.relaxed, renewal.next)
    };
    let now = Instant::now();
    let step = match (outcome, relaxed) {
        (Outcome::Temporary, true) => MINUTE * 14,
        // A `Retry-After` is honoured up to ten minutes.
        (Outcome::Temporary, false) => MINUTE * 10,
        (Outcome::Rejected, _) => MINUTE * 6,
        (Outcome::None | Outcome::Ok | Outcome::Reauthorize, _) => Duration::MAX,
    };
    if let Some(next) = next {
        assert!(next.saturating_duration_since(now) <= step, "{outcome:?}");
        assert!(!relaxed || credential.current().is_ok());
        sleep_until(next + Duration::from_millis(1)).await;
    } else {
        assert_eq!(outcome, Outcome::Reauthorize);
        credential.refresh_now();
        sleep(MIN_PAUSE + Duration::from_millis(1)).await;
    }
    assert!(credential.current().is_ok(), "{:?}", credential.status());
    let calls = script.calls.lock().clone();
    assert!(calls.windows(2).all(|two| two[1] - two[0] >= MIN_PAUSE));
}
