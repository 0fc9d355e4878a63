//! One attempt: the request to the vendor and its response, both bodies at once.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderMap, Method, StatusCode};
use pingora::http::ResponseHeader;
use tokio::time::{Instant, sleep, timeout};

use crate::alarm::Alarm;
use crate::credential::Held;
use crate::downstream::request::{CallerEvent, Lost};
use crate::downstream::session::Downstream;
use crate::error::{Error, Fault};
use crate::request::context::Context;
use crate::request::deadlines::{Limit, Waits};
use crate::request::failure::Failure;
use crate::request::kept_body::KeptBody;
use crate::request::phase::admit::Admitted;
use crate::request::phase::echo::needles;
use crate::request::phase::local_reply::send_continue;
use crate::request::phase::request_head::{Sending, request_head};
use crate::request::phase::response_head::{
    complete, is_framed_plainly, sanitize, sanitize_trailers,
};
use crate::request::phase::retry::{Retries, newer_after_401};
use crate::request::redact::{EchoBlocked, Redactor};
use crate::upstream::session::{UpstreamSession, VendorEvent};

/// Time to wait for the first piece of a body over HTTP/2, so that its absence can be announced.
/// Most clients send it with the head.
const FIRST_PIECE: Duration = Duration::from_millis(5);
/// Pieces of a compressed body that are searched before the head is passed on, where they have come.
const EARLY_PIECES: usize = 8;

/// One attempt on one connection.
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Attempt<'a, 'd, 'c> {
    ctx: &'a mut Context<'c>,
    downstream: &'a mut Downstream<'d>,
    alarm: &'a mut Alarm,
    admitted: &'a mut Admitted,
    retries: &'a mut Retries,
    kept: &'a mut KeptBody,
    session: UpstreamSession,
    /// When the attempt began, its connection included.
    since: Instant,
    /// Masks our credential in the response's body.
    redactor: Option<Redactor>,
    response: Response,
    /// The connection speaks another protocol.
    upgraded: bool,
    /// The caller has closed its side of an upgraded connection.
    caller_is_done: bool,
    /// The caller has taken all of the response that has been passed on.
    caller_took: bool,
    /// The vendor's event was the last one taken: the caller goes first next time.
    vendor_was_last: bool,
}

/// How far the response has been passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Response {
    Awaited,
    Begun,
    Complete,
}

/// How an attempt ended that did not fail.
pub(super) enum Outcome {
    /// The response has been passed on.
    Complete,
    /// The vendor refused the credential; here is a newer one.
    Replay(Arc<Held>),
}

/// What happened.
enum Turn {
    Caller(CallerEvent),
    Vendor(VendorEvent),
    Limit(Limit),
    /// Nothing is left to do.
    Done,
}

/// What an attempt works with.
pub(super) struct Parts<'a, 'd, 'c> {
    pub(super) ctx: &'a mut Context<'c>,
    pub(super) downstream: &'a mut Downstream<'d>,
    pub(super) alarm: &'a mut Alarm,
    pub(super) admitted: &'a mut Admitted,
    pub(super) retries: &'a mut Retries,
    pub(super) kept: &'a mut KeptBody,
}

impl<'a, 'd, 'c> Attempt<'a, 'd, 'c> {
    /// Begins an attempt.
    pub(super) fn new(parts: Parts<'a, 'd, 'c>, session: UpstreamSession, since: Instant) -> Self {
        let Parts {
            ctx,
            downstream,
            alarm,
            admitted,
            retries,
            kept,
        } = parts;
        Self {
            ctx,
            downstream,
            alarm,
            admitted,
            retries,
            kept,
            session,
            since,
            redactor: None,
            response: Response::Awaited,
            upgraded: false,
            caller_is_done: false,
            caller_took: true,
            vendor_was_last: false,
        }
    }

    /// Returns the vendor's side, once the attempt is over.
    pub(super) fn into_session(self) -> UpstreamSession {
        self.session
    }

    /// Sends the request and passes the response on.
    ///
    /// # Errors
    /// [`Failure`]; nothing more can be passed on then.
    pub(super) async fn run(&mut self) -> Result<Outcome, Failure> {
        let outcome = self.drive().await;
        match &outcome {
            Ok(Outcome::Complete) | Err(Failure::Vendor(_)) => {}
            Ok(Outcome::Replay(_)) => self.skip_response(),
            Err(Failure::TimedOut(limit)) => {
                self.session
                    .cancel(matches!(limit, Limit::FirstByte | Limit::Idle));
            }
            Err(Failure::Refused(_) | Failure::Caller(_)) => self.session.cancel(false),
        }
        outcome
    }

    async fn drive(&mut self) -> Result<Outcome, Failure> {
        self.send_request().await?;
        loop {
            match poll_fn(|cx| self.poll_turn(cx)).await {
                // It has had its response, and need not finish its request.
                Turn::Caller(CallerEvent::Lost(_)) if self.is_answered() => {
                    return Ok(Outcome::Complete);
                }
                Turn::Caller(event) => self.on_caller(event)?,
                Turn::Vendor(event) => {
                    if let Some(outcome) = self.on_vendor(event).await? {
                        return Ok(outcome);
                    }
                }
                Turn::Limit(limit) => {
                    if self.on_limit(limit)? {
                        return Ok(Outcome::Complete);
                    }
                }
                Turn::Done => return Ok(Outcome::Complete),
            }
        }
    }

    /// Sends the head, and what is kept of the body.
    async fn send_request(&mut self) -> Result<(), Failure> {
        self.admitted.deadlines.attempt_begins();
        self.ctx.generation = self.admitted.held.as_ref().map(|held| held.generation());
        let to_http2 = self.session.is_http2();
        if !to_http2 {
            self.await_first_piece().await?;
        }
        let no_body = self.kept.is_complete() && self.kept.is_empty();
        let sending = Sending {
            http2: to_http2,
            no_body,
        };
        let head = request_head(self.ctx, self.admitted, sending);
        let head = head.map_err(|_| Failure::Refused(Error::Internal))?;
        let expects = self.ctx.request.head.headers.contains_key(EXPECT);
        if to_http2 && expects && std::mem::take(&mut self.admitted.expects_continue) {
            // The vendor's own 100 would be lost: h2 does not show it to pingora.
            if !self.downstream.is_body_done() {
                send_continue(self.downstream);
            }
        }
        self.session
            .send_head(head, no_body)
            .map_err(Failure::Vendor)?;
        for piece in self.kept.pieces() {
            self.session.send_piece(piece.clone());
        }
        if self.kept.is_complete() {
            if !no_body {
                self.session.send_end();
            }
            self.admitted.deadlines.response_awaited();
        }
        Ok(())
    }

    /// Waits a little for a body over HTTP/2 that may not exist: some clients end an empty one with
    /// a frame of its own.
    async fn await_first_piece(&mut self) -> Result<(), Failure> {
        let head = &self.ctx.request.head;
        let announced = head.headers.contains_key(http::header::CONTENT_LENGTH);
        if !self.ctx.request.is_http2()
            || announced
            || self.kept.is_complete()
            || !self.kept.is_empty()
            || !matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
        {
            return Ok(());
        }
        let first = poll_fn(|cx| self.downstream.poll_event(cx));
        match timeout(FIRST_PIECE, first).await {
            Ok(CallerEvent::Piece(piece)) => {
                self.check_length()?;
                self.kept.push(&piece);
            }
            Ok(CallerEvent::End | CallerEvent::HalfClosed) => self.kept.end(),
            Ok(CallerEvent::Lost(lost)) => return Err(Failure::Caller(lost)),
            Err(_) => {}
        }
        Ok(())
    }

    /// Waits for what happens next. What waits to be written goes out meanwhile.
    fn poll_turn(&mut self, cx: &mut TaskContext<'_>) -> Poll<Turn> {
        let (mut sent, mut answered) = (false, false);
        let vendor_took = self.session.poll_drain(cx, &mut sent).is_ready();
        self.caller_took = match self.downstream.poll_drain(cx, &mut answered) {
            Poll::Ready(Ok(())) => true,
            Poll::Ready(Err(lost)) => return Poll::Ready(Turn::Caller(CallerEvent::Lost(lost))),
            Poll::Pending => false,
        };
        if sent {
            self.admitted.deadlines.vendor_heard();
        }
        if answered {
            self.admitted.deadlines.caller_took();
        }
        if self.is_over(vendor_took) {
            return Poll::Ready(Turn::Done);
        }
        let reads_vendor = self.response != Response::Complete && !self.downstream.is_full();
        let holds_body = self.session.is_full();
        for vendors_turn in [!self.vendor_was_last, self.vendor_was_last] {
            if vendors_turn {
                if reads_vendor && let Poll::Ready(event) = self.session.poll_event(cx) {
                    self.vendor_was_last = true;
                    return Poll::Ready(Turn::Vendor(event));
                }
            } else if holds_body {
                if self.downstream.poll_leaving(cx).is_ready() {
                    return Poll::Ready(Turn::Caller(CallerEvent::Lost(Lost::Gone)));
                }
            } else if !self.caller_is_done
                && let Poll::Ready(event) = self.downstream.poll_event(cx)
            {
                self.vendor_was_last = false;
                return Poll::Ready(Turn::Caller(event));
            }
        }
        let waits = Waits {
            body: !holds_body && !self.kept.is_complete(),
            body_held: holds_body,
            vendor: !vendor_took || (self.response == Response::Begun && reads_vendor),
            caller: !self.caller_took,
        };
        let limit = self.admitted.deadlines.poll(waits, self.alarm, cx);
        limit.map(Turn::Limit)
    }

    /// Tells whether nothing is left to do: the response has gone out, and the request has been
    /// read to its end. Either end of an upgraded connection ends the whole.
    fn is_over(&self, vendor_took: bool) -> bool {
        if self.upgraded {
            return self.is_answered() || self.caller_is_done && vendor_took;
        }
        self.is_answered() && self.kept.is_complete() && vendor_took
    }

    /// Tells whether the caller has all of the response.
    fn is_answered(&self) -> bool {
        self.response == Response::Complete && self.caller_took
    }

    fn on_caller(&mut self, event: CallerEvent) -> Result<(), Failure> {
        match event {
            CallerEvent::Piece(piece) => {
                self.admitted.deadlines.body_came(piece.len());
                if !self.upgraded {
                    self.check_length()?;
                    if self.response == Response::Awaited {
                        self.kept.push(&piece);
                    }
                }
                self.session.send_piece(piece);
                self.in_time()
            }
            CallerEvent::End => {
                self.kept.end();
                self.session.send_end();
                self.admitted.deadlines.body_came(0);
                self.admitted.deadlines.response_awaited();
                Ok(())
            }
            CallerEvent::HalfClosed => {
                // What it has asked for is still answered. A tunnel has no such state.
                self.caller_is_done = self.upgraded;
                Ok(())
            }
            CallerEvent::Lost(lost) => Err(Failure::Caller(lost)),
        }
    }

    /// Checks `limits.body`.
    fn check_length(&self) -> Result<(), Failure> {
        let limit = self.admitted.route.vendor.limits.body;
        if limit > 0 && self.downstream.body_in() > limit {
            return Err(Failure::Refused(Error::BodyTooLarge));
        }
        Ok(())
    }

    async fn on_vendor(&mut self, event: VendorEvent) -> Result<Option<Outcome>, Failure> {
        self.admitted.deadlines.vendor_heard();
        match event {
            VendorEvent::Interim(head) => self.pass_interim(*head)?,
            VendorEvent::Head { head, ends } => return self.on_head(*head, ends).await,
            VendorEvent::Piece(piece) => {
                let piece = self.mask(Some(piece), false)?;
                self.downstream.send_piece(piece);
                self.note_whole_response();
                if let Some(pause) = self.redactor.as_ref().and_then(Redactor::pause) {
                    sleep(pause).await;
                }
                self.in_time()?;
            }
            VendorEvent::End(trailers) => self.pass_end(trailers)?,
            VendorEvent::Broken(broken) => return Err(Failure::Vendor(broken)),
        }
        Ok(None)
    }

    fn pass_interim(&mut self, mut head: ResponseHeader) -> Result<(), Failure> {
        let needles = needles(self.admitted.held.as_deref(), &self.admitted.route.vendor);
        sanitize(self.ctx, self.admitted, &mut head, needles.as_deref()).map_err(defect)?;
        self.downstream.send_interim(&head);
        if self.kept.is_complete() {
            self.admitted.deadlines.response_awaited();
        }
        // Interim responses may come without end.
        self.in_time()
    }

    /// Decides about the final response, or a 101, and passes its head on.
    async fn on_head(
        &mut self,
        mut head: ResponseHeader,
        ends: bool,
    ) -> Result<Option<Outcome>, Failure> {
        if !is_framed_plainly(self.ctx, &head) {
            return Err(Failure::Refused(Error::UpstreamUnreachable));
        }
        let route = self.admitted.route.clone();
        let vendor = &route.vendor;
        let needles = needles(self.admitted.held.as_deref(), vendor);
        sanitize(self.ctx, self.admitted, &mut head, needles.as_deref()).map_err(defect)?;
        if let Some(hold) = &vendor.hold {
            hold.note(head.status.as_u16(), &head.headers);
        }
        if let Some(permit) = self.admitted.permit.take() {
            match head.status.as_u16() {
                status @ (502..=504) => permit.failed(Fault::Status(status)),
                _ => permit.succeeded(),
            }
        }
        if head.status == StatusCode::UNAUTHORIZED {
            let newer = newer_after_401(self.ctx, self.admitted, self.retries, self.kept).await;
            if let Some(newer) = newer {
                vendor.metrics.replayed.inc();
                return Ok(Some(Outcome::Replay(newer)));
            }
            vendor.metrics.passed.inc();
        } else if let (Some(before), Some((_, credential))) =
            (&self.retries.rejected, &vendor.credential)
            && head.status.as_u16() < 500
            && credential.record_eviction(before)
        {
            vendor.metrics.lost.inc();
        }
        self.upgraded = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if let Some(needles) = needles.filter(|_| !self.upgraded) {
            self.redactor = Some(Redactor::new(needles, &head.headers));
        }
        complete(self.ctx, self.admitted, &mut head, self.since).map_err(defect)?;
        self.response = Response::Begun;
        self.admitted.deadlines.response_begins();
        self.pass_head(head, ends)?;
        Ok(None)
    }

    fn pass_head(&mut self, head: ResponseHeader, ends: bool) -> Result<(), Failure> {
        let early = self.read_early()?;
        if self.ctx.proxy.draining.load(Ordering::Acquire) {
            self.downstream.close_afterwards();
        }
        let sent = self.downstream.send_head(head, ends);
        sent.map_err(Failure::Caller)?;
        for event in early {
            match event {
                VendorEvent::Piece(piece) => {
                    self.downstream.send_piece(piece);
                    self.note_whole_response();
                }
                VendorEvent::End(trailers) => self.pass_end(trailers)?,
                VendorEvent::Broken(broken) => return Err(Failure::Vendor(broken)),
                VendorEvent::Interim(_) | VendorEvent::Head { .. } => {}
            }
        }
        if ends {
            self.response = Response::Complete;
            self.admitted.deadlines.response_ends();
        }
        Ok(())
    }

    /// Searches the beginning of a compressed body before the head is passed on, as far as it has
    /// come: what must not be passed on can still be answered by an error then.
    fn read_early(&mut self) -> Result<Vec<VendorEvent>, Failure> {
        let mut early = Vec::new();
        if !self.redactor.as_ref().is_some_and(Redactor::may_block) {
            return Ok(early);
        }
        let mut now = TaskContext::from_waker(std::task::Waker::noop());
        while early.len() < EARLY_PIECES {
            let Poll::Ready(event) = self.session.poll_event(&mut now) else {
                break;
            };
            if let VendorEvent::Piece(piece) = event {
                let piece = self.mask(Some(piece), false)?;
                early.push(VendorEvent::Piece(piece));
            } else {
                early.push(event);
                break;
            }
        }
        Ok(early)
    }

    /// Notes a response that is whole by its length: the vendor's own end may come late.
    fn note_whole_response(&mut self) {
        if self.downstream.has_whole_response() {
            self.response = Response::Complete;
            self.admitted.deadlines.response_ends();
        }
    }

    fn pass_end(&mut self, trailers: Option<HeaderMap>) -> Result<(), Failure> {
        let rest = self.mask(None, true)?;
        self.downstream.send_piece(rest);
        let trailers = trailers.map(|mut trailers| {
            let needles = self.redactor.as_ref().map(Redactor::needles);
            sanitize_trailers(self.admitted, &mut trailers, needles);
            trailers
        });
        if !self.upgraded {
            self.downstream.send_end(trailers);
        }
        self.response = Response::Complete;
        self.admitted.deadlines.response_ends();
        Ok(())
    }

    /// Masks our credential in the next piece of the body, and returns what may be sent, which may
    /// be nothing.
    fn mask(&mut self, mut piece: Option<Bytes>, end: bool) -> Result<Bytes, Failure> {
        let Some(redactor) = &mut self.redactor else {
            return Ok(piece.unwrap_or_default());
        };
        let vendor = &self.admitted.route.vendor;
        match redactor.pass(&mut piece, end) {
            Ok(0) => {}
            Ok(masked) => vendor.metrics.echoes.inc_by(masked),
            Err(why) => {
                if why != EchoBlocked::TooMuch {
                    vendor.metrics.echoes.inc();
                }
                tracing::warn!(
                    vendor = %vendor.name,
                    request_id = self.ctx.id(),
                    %why,
                    "the vendor's compressed response is broken off"
                );
                return Err(Failure::Refused(Error::CredentialEchoed));
            }
        }
        Ok(piece.unwrap_or_default())
    }

    /// Decides about a limit that was reached; `true`: the attempt is complete.
    fn on_limit(&mut self, limit: Limit) -> Result<bool, Failure> {
        match limit {
            // What is left of the caller's body is not waited for.
            Limit::Drain if self.response == Response::Complete => Ok(true),
            Limit::LookAtCaller | Limit::Drain => {
                self.admitted.deadlines.caller_looked_at();
                if self.downstream.has_left() {
                    return Err(Failure::Caller(Lost::Gone));
                }
                Ok(false)
            }
            Limit::Stall => Err(Failure::Caller(Lost::Gone)),
            Limit::Total | Limit::FirstByte | Limit::Idle | Limit::SlowBody | Limit::Removed => {
                Err(Failure::TimedOut(limit))
            }
        }
    }

    /// Checks the limits of the whole request, which a busy loop might not wait for.
    fn in_time(&self) -> Result<(), Failure> {
        match self.admitted.deadlines.is_over() {
            Some(limit) => Err(Failure::TimedOut(limit)),
            None => Ok(()),
        }
    }

    /// Reads the rest of a 401 that is not passed on, where it has come already, so that its
    /// connection can be used again.
    fn skip_response(&mut self) {
        match &mut self.session {
            UpstreamSession::Http1(http1) => http1.skip_response(),
            UpstreamSession::Http2(http2) => http2.cancel(false),
        }
    }
}

/// Names a failure to set a header that was checked before.
fn defect(_: Box<pingora::Error>) -> Failure {
    Failure::Refused(Error::Internal)
}
