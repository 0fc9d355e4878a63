//! One request, from its head to its log line: the caller's side and the vendor's, driven together.

mod attempt;

use std::future::poll_fn;
use std::task::Poll;

use tokio::time::Instant;

use self::attempt::{Attempt, Outcome, Parts};
use super::Proxy;
use super::context::Context;
use super::deadlines::{Deadlines, Limit, Waits};
use super::failure::Failure;
use super::kept_body::KeptBody;
use super::phase::admit::{Admission, Admitted, admit};
use super::phase::local_reply::{is_untrusted, local_reply, logged_in};
use super::phase::report::{log_failure, log_request};
use super::phase::retry::{FailedAttempt, Retries, should_retry, should_retry_connect};
use crate::alarm::Alarm;
use crate::downstream::request::{CallerEvent, Lost, Peer, Request};
use crate::downstream::session::Downstream;
use crate::error::{Error, Fault};
use crate::upstream::Connected;
use crate::upstream::addresses::Picked;
use crate::upstream::http2::AttemptOptions;

/// Serves one request. The caller's connection is ready for the next one afterwards, or is to be
/// closed.
pub(crate) async fn serve(
    proxy: &Proxy,
    request: Request,
    peer: &Peer,
    downstream: &mut Downstream<'_>,
    alarm: &mut Alarm,
) {
    let mut ctx = Context::begin(proxy, request, peer);
    if proxy.draining.load(std::sync::atomic::Ordering::Acquire) {
        downstream.close_afterwards();
    }
    let answered = match admit(&mut ctx, downstream).await {
        Ok(Admission::Forward(admitted)) => forward(&mut ctx, downstream, alarm, admitted).await,
        Ok(Admission::LoggedIn(status, body)) => logged_in(&ctx, downstream, status, body),
        Err(refusal) => local_reply(&mut ctx, downstream, refusal),
    };
    if answered.is_ok() {
        finish(&ctx, downstream, alarm).await;
    }
    log_request(&mut ctx, downstream);
}

/// Forwards an admitted request. Its permits are released afterwards.
///
/// # Errors
/// [`Lost`] if the caller has left.
async fn forward(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
    alarm: &mut Alarm,
    mut admitted: Box<Admitted>,
) -> Result<(), Lost> {
    match attempts(ctx, downstream, alarm, &mut admitted).await {
        Ok(()) => Ok(()),
        Err(failure) => fail(ctx, downstream, &mut admitted, &failure),
    }
}

/// Makes attempts until the vendor's response has been passed on.
async fn attempts(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
    alarm: &mut Alarm,
    admitted: &mut Admitted,
) -> Result<(), Failure> {
    let mut retries = Retries::default();
    let mut kept = KeptBody::new(downstream.is_body_done());
    loop {
        ctx.attempts += 1;
        let since = Instant::now();
        let Some((picked, connected)) = connect(ctx, admitted, &mut retries).await? else {
            continue;
        };
        let parts = Parts {
            ctx: &mut *ctx,
            downstream: &mut *downstream,
            alarm: &mut *alarm,
            admitted: &mut *admitted,
            retries: &mut retries,
            kept: &mut kept,
        };
        let mut attempt = Attempt::new(parts, connected.session, since);
        let outcome = attempt.run().await;
        let session = attempt.into_session();
        let failure = match outcome {
            Ok(outcome) => {
                admitted.route.upstream.release(&picked, session);
                match outcome {
                    Outcome::Complete => return Ok(()),
                    Outcome::Replay(newer) => {
                        retries.rejected = admitted.held.replace(newer);
                        continue;
                    }
                }
            }
            Err(failure) => failure,
        };
        let Failure::Vendor(broken) = &failure else {
            return Err(failure);
        };
        let failed = FailedAttempt {
            broken,
            picked: &picked,
            reused: connected.reused,
            has_sent: session.has_sent(),
        };
        if !should_retry(ctx, downstream, admitted, &mut retries, &kept, &failed) {
            return Err(failure);
        }
    }
}

/// Returns a connection for one attempt, and the address that it leads to. `None`: it failed, and
/// another may be tried.
async fn connect(
    ctx: &mut Context<'_>,
    admitted: &Admitted,
    retries: &mut Retries,
) -> Result<Option<(Picked, Connected)>, Failure> {
    if let Some(limit) = admitted.deadlines.is_over() {
        return Err(Failure::TimedOut(limit));
    }
    let (vendor, upstream) = (&admitted.route.vendor, &admitted.route.upstream);
    let wait = vendor.timeouts.connect;
    let Some(picked) = upstream.pick(retries.tried, wait).await else {
        ctx.connect_errors.add_name(&upstream.unresolved(wait));
        return Err(Failure::Refused(Error::UpstreamUnreachable));
    };
    let options = AttemptOptions {
        kind: admitted.kind,
        fresh: retries.refusals > 0,
        http1: ctx.request.head.version < http::Version::HTTP_11,
        connect_within: admitted.deadlines.left(),
    };
    // Boxed: a new connection needs more room than all the rest.
    match Box::pin(upstream.connect(&picked, options)).await {
        Ok(connected) => {
            note_connected(ctx, admitted, &picked, connected.reused);
            Ok(Some((picked, connected)))
        }
        Err(error) => {
            if should_retry_connect(ctx, admitted, retries, &picked, &error) {
                return Ok(None);
            }
            let failure = match admitted.deadlines.is_over() {
                Some(limit) => Failure::TimedOut(limit),
                None if is_timeout(&error) => Failure::Refused(Error::UpstreamTimeout),
                None => Failure::Refused(Error::UpstreamUnreachable),
            };
            Err(failure)
        }
    }
}

fn is_timeout(error: &pingora::Error) -> bool {
    use pingora::ErrorType::{ConnectTimedout, TLSHandshakeTimedout};

    matches!(error.etype(), ConnectTimedout | TLSHandshakeTimedout)
}

fn note_connected(ctx: &mut Context<'_>, admitted: &Admitted, picked: &Picked, reused: bool) {
    ctx.reused = reused;
    ctx.connect_errors.clear();
    let (vendor, upstream) = (&admitted.route.vendor, &admitted.route.upstream);
    if reused {
        vendor.metrics.reused.inc();
        return;
    }
    vendor.metrics.connected.inc();
    upstream.note_connected();
    if picked.mark_reachable() {
        tracing::info!(
            vendor = %vendor.name,
            "an address of the upstream can be reached again"
        );
    }
}

/// Ends a request that failed: tells the breaker, the log and the caller.
fn fail(
    ctx: &mut Context<'_>,
    downstream: &mut Downstream<'_>,
    admitted: &mut Admitted,
    failure: &Failure,
) -> Result<(), Lost> {
    let refusal = failure.refusal();
    if let Some(permit) = admitted.permit.take() {
        // `timeouts.total` may also end an upload that was slow on the caller's side. And who has
        // closed its side of the connection may have left.
        let vendors_time = match failure {
            Failure::TimedOut(limit) => {
                let sent = *limit != Limit::Total || downstream.is_body_done();
                sent && !downstream.has_finished_sending()
            }
            Failure::Refused(_) | Failure::Caller(_) | Failure::Vendor(_) => true,
        };
        match refusal {
            Some(Error::UpstreamUnreachable) => permit.failed(Fault::Unreachable),
            Some(Error::UpstreamTimeout) if vendors_time => permit.failed(Fault::TimedOut),
            Some(_) | None => {}
        }
    }
    log_failure(ctx, failure, refusal);
    match refusal {
        Some(refusal) if downstream.status().is_none() => local_reply(ctx, downstream, refusal),
        Some(refusal) => {
            if let Failure::Refused(_) = failure {
                ctx.refusal = Some(refusal);
            }
            downstream.abort();
            Ok(())
        }
        None => {
            downstream.abort();
            Err(Lost::Gone)
        }
    }
}

/// Writes what is left of a response, and reads the rest of the body for a short time. Closing on
/// unread bytes would reset the connection, which could cost the caller the response. Over HTTP/2 it
/// would reset the stream; clients that wait for its window to open before they read a response
/// (httpx does) would wait for ever.
async fn finish(ctx: &Context<'_>, downstream: &mut Downstream<'_>, alarm: &mut Alarm) {
    let mut deadlines = Deadlines::of_local_reply();
    let untrusted = ctx.refusal.is_some_and(is_untrusted);
    let mut is_read = untrusted || downstream.is_body_done();
    if !is_read {
        deadlines.response_ends();
    }
    poll_fn(|cx| {
        let mut progress = false;
        let drained = downstream.poll_drain(cx, &mut progress);
        if progress {
            deadlines.caller_took();
        }
        if let Poll::Ready(Err(_)) = drained {
            return Poll::Ready(());
        }
        // Each event may leave another behind it, and is paid for with the task's budget.
        while !is_read {
            match downstream.poll_event(cx) {
                Poll::Ready(CallerEvent::Piece(_)) => {}
                Poll::Ready(CallerEvent::End | CallerEvent::HalfClosed | CallerEvent::Lost(_)) => {
                    is_read = true;
                }
                Poll::Pending => break,
            }
        }
        if is_read && drained.is_ready() {
            return Poll::Ready(());
        }
        let waits = Waits {
            caller: drained.is_pending(),
            ..Waits::default()
        };
        deadlines.poll(waits, alarm, cx).map(drop)
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Futures are moved whole, and a task keeps the room of the largest one it has had: this is the
    /// memory of each request in flight.
    #[test]
    fn the_future_of_a_request_stays_small() {
        fn size<'a, 'd: 'a, F>(
            _: impl FnOnce(&'a Proxy, Request, &'a Peer, &'a mut Downstream<'d>, &'a mut Alarm) -> F,
        ) -> usize {
            size_of::<F>()
        }
        let size = size(serve);
        assert!(size <= 4096, "{size}");
    }
}
