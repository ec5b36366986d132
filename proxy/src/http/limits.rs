//! The time limits of a request while one endpoint works on it: which of them ends next, and which has passed.

use super::reply::Reply;
use crate::{
    config::Priority,
    worker::{Timer, earlier},
};
use std::{
    task::{Context, Poll},
    time::{Duration, Instant},
};

/// How often the end of a route's limit is put off for a slow client: it has ten times the limit altogether.
const MOST_PUT_OFF: u8 = 9;

/// The limits of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// From the end of the request to the end of the response.
    pub(super) route: Option<Duration>,
    /// From the end of the request, or the start of an attempt after that, to the response's head.
    pub(super) per_try: Option<Duration>,
    /// Without anything moving in an attempt.
    pub(super) per_try_idle: Option<Duration>,
    /// Without anything moving; zero is none.
    pub(super) idle: Duration,
    /// When `route` ends; known once the request has ended.
    pub(super) deadline: Option<Instant>,
    /// How often it was put off for a client that had not taken what was there of the response.
    pub(super) put_off: u8,
    /// When the whole request must have come.
    pub(super) request: Option<Instant>,
    /// When the stream has lasted too long, whatever it does.
    pub(super) stream: Option<Instant>,
    /// How long the request says that an attempt may last, instead of its cluster; zero is no limit.
    pub(super) told_attempt: Option<Duration>,
    /// When this attempt has, by its cluster's limit.
    pub(super) attempt: Option<Instant>,
    /// The status of the answer when `route` or the last attempt's limit passes.
    pub(super) on_timeout: u16,
    /// The endpoint is told the limit in `x-envoy-expected-rq-timeout-ms`.
    pub(super) tell: bool,
    /// The endpoint is told the limit in `grpc-timeout`.
    pub(super) tell_grpc: bool,
    /// Whose circuit breakers count.
    pub(super) priority: Priority,
}

/// How far an attempt has come, as its limits see it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Progress {
    /// When the request had come whole, or this attempt began after that: from then on limits of the route and of attempts count.
    pub(super) whole: Option<Instant>,
    /// The endpoint takes nothing of what has come of the request: it is waited for as for its answer.
    pub(super) blocked: bool,
    /// When something moved last.
    pub(super) last: Instant,
    /// The client has still something to send that it owes.
    pub(super) owes: bool,
    /// The response's head has come.
    pub(super) answered: bool,
    /// The client has not taken what has come of the response: the endpoint is not waited for.
    pub(super) slow_client: bool,
}

/// The limit that has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    Route,
    Request,
    Stream,
    Attempt,
    PerTry,
    PerTryIdle,
    Idle,
}

impl Limits {
    pub(super) fn idle_deadline(&self, last: Instant) -> Option<Instant> {
        (!self.idle.is_zero()).then(|| last + self.idle)
    }

    /// The answer when a limit of the route's passes.
    pub(super) fn timeout(&self, reply: Reply) -> Reply {
        Reply { code: self.on_timeout, ..reply }
    }

    /// The limit of the route counts from here on, if it does not yet.
    pub(super) fn begin_route(&mut self, whole: Option<Instant>) {
        if let (Some(since), None) = (whole, self.deadline) {
            self.deadline = self.route.map(|limit| since + limit);
        }
    }

    /// Waits for the first limit that passes, or for `log_at`, which is `None` in the answer.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        timer: &mut Timer,
        progress: Progress,
        log_at: Option<Instant>,
    ) -> Poll<Option<Passed>> {
        let Progress { whole, blocked, last, owes, answered, slow_client } = progress;
        self.begin_route(whole);
        // What the client was waited for does not count, within bounds: it holds the endpoint.
        if slow_client
            && self.put_off < MOST_PUT_OFF
            && let (Some(deadline), Some(limit)) = (self.deadline, self.route)
        {
            let now = Instant::now();
            if deadline <= now {
                self.put_off += 1;
                self.deadline = Some(now + limit);
            }
        }
        let waits = whole.or(blocked.then_some(last));
        let passes = [
            (Passed::Route, self.deadline.or(waits.zip(self.route).map(|(since, limit)| since + limit))),
            (Passed::Request, self.request.filter(|_| owes)),
            (Passed::Stream, self.stream),
            (Passed::Attempt, self.attempt),
            (Passed::PerTry, waits.zip(self.per_try).filter(|_| !answered).map(|(since, limit)| since + limit)),
            (Passed::PerTryIdle, waits.and(self.per_try_idle).filter(|_| !slow_client).map(|limit| last + limit)),
            (Passed::Idle, self.idle_deadline(last)),
        ];
        let next = passes.iter().fold(log_at, |next, (_, at)| earlier(next, *at));
        if timer.poll(cx, next).is_pending() {
            return Poll::Pending;
        }
        let now = Instant::now();
        let over = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
        if over(&log_at) {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(passes.iter().find(|(_, at)| over(at)).map_or(Passed::Idle, |(passed, _)| *passed)))
    }
}
