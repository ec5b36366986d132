//! What a route changes about the heads of requests and responses.

use super::{
    admit::port_start,
    call::Call,
    head::BodyLength,
    headers::{Headers, Known},
    target,
};
use crate::{
    config::{Forward, HeaderOp, HeaderOps, HeaderText, HostRewrite},
    pool::Host,
    route::{self, Selected},
    telemetry::{LogEntry, LogFormat},
};

/// Applies the changes of one level to the request: removals first; then all values are made of what is there, and whether headers
/// are there is seen, before one of them is set, and after those others are added.
pub(super) fn request(call: &mut Call<'_>, ops: &[HeaderOp]) {
    if needs_order(ops) {
        removals(&mut call.request.headers, ops);
        let valued = valued(call, ops, false);
        level(&mut call.request.headers, valued);
        call.request.headers.join_of_request();
    } else {
        request_in_order(call, ops);
    }
}

/// As [`request`], to the response.
pub(super) fn response(call: &mut Call<'_>, ops: &[HeaderOp]) {
    if needs_order(ops) {
        removals(&mut call.response.headers, ops);
        let valued = valued(call, ops, true);
        level(&mut call.response.headers, valued);
        call.response.headers.join_of_answer();
    } else {
        response_in_order(call, ops);
    }
}

/// Whether it makes a difference in which order the changes of a level are made: where there are several that are not removals.
fn needs_order(ops: &[HeaderOp]) -> bool {
    ops.iter().filter(|op| !matches!(op, HeaderOp::Remove(_))).count() > 1
}

fn removals(headers: &mut Headers, ops: &[HeaderOp]) {
    ops.iter().filter(|op| matches!(op, HeaderOp::Remove(_))).for_each(|op| headers.change(op, b""));
}

fn level(headers: &mut Headers, mut valued: Vec<(HeaderOp, Vec<u8>)>) {
    valued.retain(|(op, _)| match op {
        HeaderOp::AddIfAbsent(name, _) => headers.get(name).is_none(),
        HeaderOp::SetIfPresent(name, _) => headers.get(name).is_some(),
        HeaderOp::Set(..) | HeaderOp::Append(..) => true,
        HeaderOp::Remove(_) => false,
    });
    for (op, value) in &valued {
        if let HeaderOp::Set(name, _) | HeaderOp::SetIfPresent(name, _) = op {
            headers.set(name, value);
        }
    }
    for (op, value) in &valued {
        if let HeaderOp::Append(name, _) | HeaderOp::AddIfAbsent(name, _) = op {
            headers.push(name.as_bytes(), value);
        }
    }
}

/// Applies changes to the request, one after the other.
pub(super) fn request_in_order(call: &mut Call<'_>, ops: &[HeaderOp]) {
    for op in ops {
        match text(op) {
            None => call.request.headers.change(op, b""),
            Some(HeaderText::Literal(value)) => call.request.headers.change(op, value.as_bytes()),
            Some(HeaderText::Format { format, keep_empty }) => {
                let mut value = Vec::new();
                // Nothing is decided about the answer yet, whatever interim one the client was sent.
                format.write_header(&LogEntry { code_details: None, status: 0, ..call.entry() }, &mut value);
                if *keep_empty || !value.is_empty() {
                    call.request.headers.change(op, &value);
                }
            }
        }
    }
    call.request.headers.join_of_request();
}

/// Applies changes to the response, one after the other.
pub(super) fn response_in_order(call: &mut Call<'_>, ops: &[HeaderOp]) {
    for op in ops {
        match text(op) {
            None => call.response.headers.change(op, b""),
            Some(HeaderText::Literal(value)) => call.response.headers.change(op, value.as_bytes()),
            Some(HeaderText::Format { format, keep_empty }) => {
                let value = formatted(call, format);
                if *keep_empty || !value.is_empty() {
                    call.response.headers.change(op, &value);
                }
            }
        }
    }
    call.response.headers.join_of_answer();
}

/// Changes with the values that they have now, `answered` or not; those that would give an empty one are left out.
pub(super) fn valued(call: &Call<'_>, ops: &[HeaderOp], answered: bool) -> Vec<(HeaderOp, Vec<u8>)> {
    let valued = |op: &HeaderOp| {
        let mut value = Vec::new();
        match text(op) {
            None => {}
            Some(HeaderText::Literal(text)) => value.extend_from_slice(text.as_bytes()),
            Some(HeaderText::Format { format, keep_empty }) => {
                let entry = call.entry();
                let (code_details, status) = if answered { (entry.code_details, entry.status) } else { (None, 0) };
                format.write_header(&LogEntry { code_details, status, ..entry }, &mut value);
                if value.is_empty() && !keep_empty {
                    return None;
                }
            }
        }
        Some((op.clone(), value))
    };
    ops.iter().filter_map(valued).collect()
}

fn text(op: &HeaderOp) -> Option<&HeaderText> {
    match op {
        HeaderOp::Set(_, text)
        | HeaderOp::Append(_, text)
        | HeaderOp::AddIfAbsent(_, text)
        | HeaderOp::SetIfPresent(_, text) => Some(text),
        HeaderOp::Remove(_) => None,
    }
}

/// What a format makes of the request as it is now.
pub(super) fn formatted(call: &Call<'_>, format: &LogFormat) -> Vec<u8> {
    let mut value = Vec::new();
    format.write_header(&call.entry(), &mut value);
    value
}

/// The levels at which changes are written, in the order in which they are made after those of the target: what is made later
/// wins.
fn levels<'t>(call: &Call<'t>, selected: Selected<'t>) -> [&'t HeaderOps; 3] {
    let table = &call.manager.routes;
    let mut levels = [&selected.route.headers, &selected.host.headers, &table.headers];
    if table.options.most_specific_headers_win {
        levels.reverse();
    }
    levels
}

/// Makes the request what its route wants it to be for the endpoint. Whether its headers were changed.
pub(super) fn for_endpoint<'t>(call: &mut Call<'t>, selected: Selected<'t>, forward: &Forward) -> bool {
    let mut changed = false;
    if let Some(target) = selected.target {
        request(call, &target.headers.request);
        changed = !target.headers.request.is_empty();
        // Its own host takes the request's place without a trace, and before all that routes change.
        if let Some(host) = target.host.as_deref() {
            call.request.set_authority(host.as_bytes());
        }
    }
    for ops in levels(call, selected) {
        request(call, &ops.request);
        changed |= !ops.request.is_empty();
    }
    length_of_request(call);
    if let Some(port) = call.request.connect_port.take()
        && port_start(call.request.authority()).is_none()
    {
        let whole = [call.request.authority(), format!(":{port}").as_bytes()].concat();
        call.request.set_authority(&whole);
    }
    match forward.host.as_ref() {
        Some(HostRewrite::Literal(host)) => set_host(call, host.as_bytes(), forward.append_forwarded_host),
        Some(HostRewrite::Header(name)) => {
            let host = call.request.headers.get(name).filter(|host| !host.is_empty()).map(<[u8]>::to_vec);
            if let Some(host) = host {
                set_host(call, &host, forward.append_forwarded_host);
                call.request.no_authority = !is_authority(&host);
            }
        }
        Some(HostRewrite::Format(format)) => {
            let mut host = Vec::new();
            format.write_body(&call.entry(), &mut host);
            set_made_host(call, &host, forward.append_forwarded_host);
        }
        Some(HostRewrite::Path(rewrite)) => {
            let host = rewrite.apply(call.request.path_only());
            set_made_host(call, &host, forward.append_forwarded_host);
        }
        // Made when the endpoint is known.
        Some(HostRewrite::Endpoint) | None => {}
    }
    if let Some(rewrite) = &forward.path
        && let Some(path) = route::rewritten_path(rewrite, &selected.route.matches, call.request.path())
    {
        // As Envoy does: the endpoint and the log learn what was asked for.
        if !call.router.suppress_envoy_headers {
            let original = call.request.path().to_vec();
            call.request.headers.set("x-envoy-original-path", &original);
        }
        call.request.set_path(&path);
    }
    changed
}

/// Names the endpoint itself where the route wants that.
pub(super) fn for_attempt(call: &mut Call<'_>, forward: &Forward, host: &Host, first: bool) {
    if call.manager.edge.as_deref().is_some_and(|edge| edge.secure_as_endpoint) {
        call.request.secure = host.endpoint().tls.is_some();
    }
    if let (Some(HostRewrite::Endpoint), Some(name)) = (forward.host.as_ref(), &host.endpoint().hostname) {
        match first {
            true => set_host(call, name.as_bytes(), forward.append_forwarded_host),
            false => call.request.set_authority(name.as_bytes()),
        }
    }
}

/// Replaces the authority by one that was made of the request. What would be a second request in the head of the first is none.
fn set_made_host(call: &mut Call<'_>, host: &[u8], remember: bool) {
    if host.iter().all(u8::is_ascii_graphic) {
        set_host(call, host, remember);
        call.request.no_authority = !is_authority(host);
    }
}

/// Whether endpoints may be asked for that host: what a rewrite makes may hold commas, which a client's may not.
fn is_authority(host: &[u8]) -> bool {
    host.split(|byte| *byte == b',').all(|part| target::check_authority(part).is_ok())
}

/// Replaces the authority. The endpoint learns the one before, by Envoy's own header and on request by `x-forwarded-host`.
pub(super) fn set_host(call: &mut Call<'_>, host: &[u8], remember: bool) {
    if !call.router.suppress_envoy_headers {
        let old = call.request.authority().to_vec();
        call.request.headers.set("x-envoy-original-host", &old);
    }
    if remember {
        let old = call.request.authority().to_vec();
        let mut chain = call.request.headers.get("x-forwarded-host").unwrap_or_default().to_vec();
        let last = chain.split(|&b| b == b',').next_back().unwrap_or_default().trim_ascii();
        if !old.is_empty() && last != old {
            if !chain.is_empty() {
                chain.push(b',');
            }
            chain.extend_from_slice(&old);
            call.request.headers.set("x-forwarded-host", &chain);
        }
    }
    call.request.set_authority(host);
}

/// Makes the response what the route wants it to be for the client.
pub(super) fn for_client<'t>(call: &mut Call<'t>, selected: Selected<'t>) {
    if let Some(target) = selected.target {
        response(call, &target.headers.response);
    }
    for ops in levels(call, selected) {
        response(call, &ops.response);
    }
}

/// What is left without the length that was told ends by itself.
pub(super) fn length_of_answer(call: &mut Call<'_>) {
    if matches!(call.response.body, BodyLength::Exact(1..))
        && call.response.headers.known(Known::ContentLength).is_none()
    {
        call.response.body = BodyLength::Unknown;
    }
}

/// The same of the request.
fn length_of_request(call: &mut Call<'_>) {
    if matches!(call.request.body, BodyLength::Exact(_)) && call.request.headers.known(Known::ContentLength).is_none() {
        call.request.body = BodyLength::Unknown;
    }
}
