//! What the answer of an attempt says: about the endpoint, to those who watch it, and to those who might repeat the request.

use super::{
    call::{Call, grpc_status},
    head::BodyLength,
    headers::Known,
    pipeline::Stop,
    retry::{self, Failure},
    trace,
};
use crate::{
    config::{Report, RetryPolicy},
    pool::{ClusterState, Host, Outcome},
    telemetry::{ResponseFlags, requests::RequestGroup},
};

/// The answer whose head has come, as those look at it who might repeat the request.
pub(super) fn of_answer(call: &Call<'_>, policy: Option<&RetryPolicy>) -> Failure {
    let (status, headers) = (call.response.status, &call.response.headers);
    Failure::Response {
        status,
        grpc: grpc_status(headers.known(Known::GrpcStatus)),
        header: policy.is_some_and(|policy| retry::has_retriable_header(policy, status, headers)),
        rate_limited: headers.get("x-envoy-ratelimited").is_some(),
    }
}

/// Takes up what an answer says about the endpoint's health: that it has not seen the request, which is told, or wants no more
/// of them.
pub(super) fn note_health(call: &Call<'_>, cluster: &ClusterState, host: &Host) -> bool {
    let headers = &call.response.headers;
    let not_sent = headers.known(Known::NotSent).is_some();
    if not_sent {
        host.note_failure();
    }
    if !cluster.config().checks.is_empty()
        && headers.get("x-envoy-immediate-health-check-fail").is_some()
        && let Some(care) = &cluster.config().care
    {
        care.report(Report::Unwell { cluster: cluster.config().id, address: host.address() });
    }
    not_sent
}

/// Tells outlier detection what the endpoint answered; of gRPC, what its status says.
pub(super) fn note_answer(call: &Call<'_>, cluster: &ClusterState, host: &Host, answer: Failure) {
    let Failure::Response { status, grpc, .. } = answer else { return };
    let outcome = grpc.filter(|_| call.request.is_grpc()).map_or(Outcome::Status(status), Outcome::grpc);
    match tells_at_end(call) {
        true => cluster.note_for_outliers(host, outcome),
        false if call.request.is_grpc() && grpc.is_none() && status < 500 => {
            // An answer of gRPC without a status is none.
            cluster.note_for_outliers(host, outcome);
            host.count_answer(false);
        }
        false => cluster.note(host, outcome),
    }
}

/// Whether only the end of the answer tells whether the endpoint has served a call.
pub(super) fn tells_at_end(call: &Call<'_>) -> bool {
    call.request.is_grpc() && call.response.status < 500 && call.response.body != BodyLength::Empty
}

/// Counts a call whose answer has ended, or broke off, by the status in its trailers.
pub(super) fn count_call(host: &Host, result: &Result<(), Stop>, status: Option<u16>) {
    match result {
        Ok(()) => host.count_answer(matches!(status.map(Outcome::grpc), Some(Outcome::Status(..=499)))),
        Err(Stop::Abort(..)) => host.count_answer(false),
        Err(_) => {}
    }
}

/// Tells outlier detection of an answer that broke off on the endpoint's side: to a client that is no better than none.
pub(super) fn note_broken(cluster: &ClusterState, host: &Host, result: &Result<(), Stop>) {
    const THEIRS: [ResponseFlags; 3] = [
        ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
        ResponseFlags::UPSTREAM_REMOTE_RESET,
        ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
    ];
    if let Err(Stop::Abort(flags, _)) = result
        && THEIRS.into_iter().any(|theirs| flags.contains(theirs))
    {
        cluster.note_for_outliers(host, Outcome::Failed);
    }
}

/// A retry would have been more than the cluster allows.
pub(super) fn note_overflow(call: &mut Call<'_>) {
    call.tally.flags |= ResponseFlags::UPSTREAM_OVERFLOW;
    call.tally.groups().for_each(RequestGroup::count_overflow);
}

/// The answer of an attempt is left for another attempt.
pub(super) fn give_up(call: &mut Call<'_>) {
    if call.tally.trace.is_some() {
        let whole = call.response.body == BodyLength::Empty;
        let ended = if whole { trace::Ended::Whole } else { trace::Ended::Canceled(ResponseFlags::none()) };
        trace::on_attempt_ended(call, ended, None);
    }
}
