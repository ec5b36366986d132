//! HTTP rules of VirtualServices.

use std::collections::BTreeMap;

use base64::Engine as _;
use leno_core::route::{
    Abort, Answer, Cors, Delegate, Fault, Forward, HttpAction, HttpMatch, HttpRule, Mirror, PathRewrite, Redirect,
    RedirectPath, RedirectPort, Retry, Rewrite, TextMatch, WeightedDestination,
};
use leno_core::{ObjectKey, Reason, re2};

use super::headers::{MAX_HEADER, header_changes};
use super::report::Report;
use super::virtual_service::{applies_to_sidecars, client_match, destination};
use crate::istio::virtual_service as istio;

/// The largest body of a fixed answer, in bytes, as in Istio.
const MAX_BODY: usize = 1 << 20;

/// The longest name of a query parameter that Envoy compares, in bytes.
const MAX_PARAMETER: usize = 1024;

/// What `retryOn` may name besides statuses: Envoy's conditions for HTTP and gRPC.
const RETRY_CONDITIONS: &[&str] = &[
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// What `retries` without `retryOn` means in Istio.
const DEFAULT_RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";

/// Converts one rule; `None` when it does not apply to sidecars, cannot be in force yet, or was refused.
pub(super) fn http_rule(
    report: &mut Report<'_>,
    rule: &istio::HttpRoute,
    gateways: &[String],
    field: &str,
) -> Option<HttpRule> {
    let istio::HttpRoute {
        name,
        matches,
        route,
        redirect,
        direct_response,
        delegate,
        rewrite,
        timeout,
        retries,
        fault,
        mirror,
        mirrors,
        mirror_percent,
        mirror_percent_snake_case,
        mirror_percentage,
        cors_policy,
        headers,
    } = rule;

    let mut applies = matches.is_empty() && applies_to_sidecars(gateways);
    let mut converted = Vec::new();
    for (index, entry) in matches.iter().enumerate() {
        let (entry, own) = http_match(report, entry, &format!("{field}.match[{index}]"));
        if applies_to_sidecars(if own.is_empty() { gateways } else { own }) {
            applies = true;
            converted.push(entry);
        }
    }
    let matches = (!matches.is_empty()).then_some(converted);

    let timeout = report.duration(timeout.clone(), &format!("{field}.timeout"));
    let retry = retries.as_ref().map(|retries| retry(report, retries, &format!("{field}.retries")));
    let rewrite = rewrite.as_ref().map(|rewrite| rewritten(report, rewrite, &format!("{field}.rewrite")));
    let headers = headers.as_ref().map(|headers| header_changes(report, headers, &format!("{field}.headers")));
    let fault = fault.as_ref().map(|fault| injected(report, fault, &format!("{field}.fault")));
    let cors = cors_policy.as_ref().map(|cors| browsers(report, cors, &format!("{field}.corsPolicy")));
    let percent = mirror_percent.or(*mirror_percent_snake_case);
    let mirrors = copies(report, mirror.as_ref(), mirrors, percent, mirror_percentage.as_ref(), field);

    let given = usize::from(!route.is_empty())
        + usize::from(redirect.is_some())
        + usize::from(direct_response.is_some())
        + usize::from(delegate.is_some());
    if given != 1 {
        let message = "a rule needs exactly one of route, redirect, directResponse and delegate";
        report.refuse(Reason::NotExactlyOne, field, message);
        return None;
    }
    if redirect.is_some() && rewrite.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "a rule that redirects does not forward, so it cannot rewrite");
    }
    if redirect.is_some() || direct_response.is_some() {
        let copied = mirror.is_some() || !mirrors.is_empty();
        let unused = [
            (timeout.is_some(), "timeout"),
            (retry.is_some(), "retries"),
            (copied, "mirror"),
            (rewrite.is_some() && redirect.is_none(), "rewrite"),
        ];
        for (_, name) in unused.iter().filter(|(given, _)| *given) {
            let message = "a rule that answers by itself forwards nothing, so that this has no effect; remove it";
            report.remark(Reason::NoEffect, &format!("{field}.{name}"), message);
        }
    }
    let action = if let Some(redirect) = redirect {
        HttpAction::Redirect(redirected(report, redirect, &format!("{field}.redirect")))
    } else if let Some(answer) = direct_response {
        HttpAction::Answer(fixed_answer(report, answer, &format!("{field}.directResponse")))
    } else if let Some(delegate) = delegate {
        let istio::Delegate { name, namespace } = delegate;
        let named = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let Some(name) = named(name) else {
            let message = "name the VirtualService whose rules are to be taken over";
            report.refuse(Reason::InvalidValue, &format!("{field}.delegate.name"), message);
            return None;
        };
        let key = ObjectKey::new(named(namespace).unwrap_or_else(|| report.namespace().to_owned()), name);
        let rewrite = rewrite.flatten();
        let defaults = Forward { destinations: Vec::new(), rewrite, timeout, retry, mirrors };
        HttpAction::Delegate(Box::new(Delegate { key, defaults }))
    } else {
        let destinations = destinations(report, route, &format!("{field}.route"))?;
        HttpAction::Forward(Box::new(Forward { destinations, rewrite: rewrite.flatten(), timeout, retry, mirrors }))
    };
    applies.then(|| HttpRule {
        name: name.clone().unwrap_or_default(),
        field: field.to_owned(),
        taken_from: None,
        matches,
        action,
        headers: headers.unwrap_or_default(),
        fault,
        cors,
    })
}

/// One match, and the gateways it is for.
fn http_match<'a>(
    report: &mut Report<'_>,
    entry: &'a istio::HttpMatchRequest,
    field: &str,
) -> (HttpMatch, &'a [String]) {
    let istio::HttpMatchRequest {
        name,
        uri,
        scheme,
        method,
        authority,
        headers,
        port,
        source_labels,
        gateways,
        query_params,
        ignore_uri_case,
        without_headers,
        source_namespace,
        stat_prefix,
    } = entry;
    let mut one = |text: &Option<istio::StringMatch>, name: &str| {
        // An empty match of a text that is always there asks nothing.
        text.as_ref()
            .map(|text| report.text(text, &format!("{field}.{name}")))
            .filter(|text| *text != TextMatch::Present)
    };
    // Every path has an empty prefix.
    let uri = uri.clone().filter(|uri| uri.kind() != Some(istio::StringMatchKind::Prefix("")));
    let (path, scheme) = (one(&uri, "uri"), one(scheme, "scheme"));
    let (method, authority) = (one(method, "method"), one(authority, "authority"));
    let mut all = |texts: &BTreeMap<String, istio::StringMatch>, name: &str, lower: bool| {
        let convert = |(key, text): (&String, &istio::StringMatch)| {
            // As in Istio: this is no regular expression, but stands for whatever may be there.
            let text = match text.kind() {
                Some(istio::StringMatchKind::Regex("*")) => TextMatch::Present,
                _ => report.text(text, &format!("{field}.{name}[{key}]")),
            };
            (if lower { key.to_ascii_lowercase() } else { key.clone() }, text)
        };
        texts.iter().map(convert).collect::<BTreeMap<_, _>>()
    };
    let headers = all(headers, "headers", true);
    let without_headers = all(without_headers, "withoutHeaders", true);
    let query = all(query_params, "queryParams", false);
    let named = headers.keys().map(|header| ("headers", header));
    for (name, header) in named.chain(without_headers.keys().map(|header| ("withoutHeaders", header))) {
        report.header_name(header.strip_prefix(':').unwrap_or(header), &format!("{field}.{name}[{header}]"));
    }
    if query.keys().any(|parameter| !(1..=MAX_PARAMETER).contains(&parameter.len())) {
        let message = format!("the name of a query parameter has from 1 to {MAX_PARAMETER} characters; correct it");
        report.refuse(Reason::InvalidValue, &format!("{field}.queryParams"), message);
    }
    let client = client_match(report, *port, source_labels, source_namespace.as_ref(), field);
    let converted = HttpMatch {
        name: name.clone().unwrap_or_default(),
        path,
        ignore_path_case: ignore_uri_case.unwrap_or_default(),
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query,
        client,
        stat_prefix: stat_prefix.clone().unwrap_or_default(),
    };
    (converted, gateways)
}

fn destinations(
    report: &mut Report<'_>,
    route: &[istio::HttpRouteDestination],
    field: &str,
) -> Option<Vec<WeightedDestination>> {
    let mut weights = Vec::new();
    let mut found = Vec::new();
    for (index, entry) in route.iter().enumerate() {
        let field = format!("{field}[{index}]");
        let istio::HttpRouteDestination { destination: to, weight, headers } = entry;
        weights.push(*weight);
        let headers = headers.as_ref().map(|headers| header_changes(report, headers, &format!("{field}.headers")));
        if let Some(destination) = destination(report, to, &format!("{field}.destination")) {
            found.push((destination, headers.unwrap_or_default()));
        }
    }
    let weights = report.weights(&weights, field);
    (found.len() == weights.len()).then(|| {
        let with_weight = |((destination, headers), weight)| WeightedDestination { destination, weight, headers };
        found.into_iter().zip(weights).map(with_weight).collect()
    })
}

fn rewritten(report: &mut Report<'_>, rewrite: &istio::HttpRewrite, field: &str) -> Option<Rewrite> {
    let istio::HttpRewrite { uri, authority, uri_regex_rewrite } = rewrite;
    let uri = uri.clone().filter(|uri| !uri.is_empty());
    if uri.is_some() && uri_regex_rewrite.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "only one of uri and uriRegexRewrite can be given");
    }
    let path = match (uri, uri_regex_rewrite) {
        (Some(uri), _) => {
            report.path(&uri, &format!("{field}.uri"));
            Some(PathRewrite::Prefix(uri))
        }
        (None, Some(istio::RegexRewrite { pattern, rewrite })) => {
            let pattern = pattern.clone().unwrap_or_default();
            if pattern.is_empty() {
                let message = "an empty expression matches everywhere; say what is to be replaced";
                report.refuse(Reason::InvalidRegex, &format!("{field}.uriRegexRewrite.match"), message);
            }
            report.regex(&pattern, &format!("{field}.uriRegexRewrite.match"));
            let rewrite = rewrite.clone().unwrap_or_default();
            if let Ok(compiled) = re2::compile(&pattern)
                && let Err(message) = substitutes(&rewrite, compiled.captures_len())
            {
                report.refuse(Reason::InvalidValue, &format!("{field}.uriRegexRewrite.rewrite"), message);
            }
            report.path(&rewrite, &format!("{field}.uriRegexRewrite.rewrite"));
            Some(PathRewrite::Regex(pattern, rewrite))
        }
        (None, None) => None,
    };
    let authority = authority.clone().filter(|authority| !authority.is_empty());
    report.authority(authority.as_deref(), &format!("{field}.authority"));
    (path.is_some() || authority.is_some()).then_some(Rewrite { path, authority })
}

/// Whether a substitution names only groups that there are (the whole match is the first of them), in RE2's syntax.
fn substitutes(text: &str, groups: usize) -> Result<(), String> {
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        if char != '\\' {
            continue;
        }
        match chars.next() {
            Some('\\') => {}
            Some(digit) if digit.to_digit(10).is_some_and(|group| (group as usize) < groups) => {}
            Some(digit) if digit.is_ascii_digit() => {
                return Err(format!(
                    "\\{digit} names a group that the expression does not have; it has {}",
                    groups - 1
                ));
            }
            _ => return Err("a backslash stands before a digit or another backslash; correct it".to_owned()),
        }
    }
    Ok(())
}

fn redirected(report: &mut Report<'_>, redirect: &istio::HttpRedirect, field: &str) -> Redirect {
    let istio::HttpRedirect { uri, authority, port, derive_port, scheme, redirect_code, prefix_rewrite } = redirect;
    let text = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (uri, prefix) = (text(uri), text(prefix_rewrite));
    if uri.is_some() && prefix.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "only one of uri and prefixRewrite can be given");
    }
    if port.is_some() && derive_port.is_some() {
        report.refuse(Reason::NotExactlyOne, field, "only one of port and derivePort can be given");
    }
    for (path, name) in [(&uri, "uri"), (&prefix, "prefixRewrite")] {
        report.path(path.as_deref().unwrap_or_default(), &format!("{field}.{name}"));
    }
    let authority = text(authority);
    report.authority(authority.as_deref(), &format!("{field}.authority"));
    // 0 is not said, as in Istio.
    let status = redirect_code.filter(|code| *code != 0).unwrap_or(301);
    let status = match u16::try_from(status) {
        Ok(status @ (301 | 302 | 303 | 307 | 308)) => status,
        _ => {
            let message = format!("{status} is no redirect; use 301, 302, 303, 307 or 308");
            report.refuse(Reason::InvalidValue, &format!("{field}.redirectCode"), message);
            301
        }
    };
    let scheme = text(scheme);
    let elsewhere = [&uri, &prefix, &authority, &scheme].into_iter().any(Option::is_some);
    if !elsewhere && port.is_none() && derive_port.is_none() {
        let message =
            "this leads back to where it comes from, for ever; give uri, prefixRewrite, authority, scheme or port";
        report.refuse(Reason::InvalidValue, field, message);
    }
    if scheme.as_deref().is_some_and(|scheme| !matches!(scheme, "http" | "https")) {
        report.refuse(Reason::InvalidValue, &format!("{field}.scheme"), "the scheme is http or https");
    }
    let port =
        report.port(*port, &format!("{field}.port")).map(RedirectPort::Number).or(derive_port.map(|from| match from {
            istio::RedirectPortSelection::FromProtocolDefault => RedirectPort::OfScheme,
            istio::RedirectPortSelection::FromRequestPort => RedirectPort::OfRequest,
        }));
    Redirect { status, scheme, authority, port, path: uri.map(RedirectPath::Full).or(prefix.map(RedirectPath::Prefix)) }
}

fn fixed_answer(report: &mut Report<'_>, answer: &istio::HttpDirectResponse, field: &str) -> Answer {
    let istio::HttpDirectResponse { status, body } = answer;
    let status = match u16::try_from(*status) {
        Ok(status @ 200..=599) => status,
        _ => {
            let message = format!("{status} is no status to answer with; use one from 200 to 599");
            report.refuse(Reason::InvalidValue, &format!("{field}.status"), message);
            500
        }
    };
    let body = match body {
        None => Vec::new(),
        Some(istio::HttpBody { string: Some(_), bytes: Some(_) }) => {
            let message = "only one of string and bytes can be given";
            report.refuse(Reason::NotExactlyOne, &format!("{field}.body"), message);
            Vec::new()
        }
        Some(istio::HttpBody { string, bytes: None }) => string.clone().unwrap_or_default().into_bytes(),
        Some(istio::HttpBody { string: None, bytes: Some(bytes) }) => {
            base64::engine::general_purpose::STANDARD.decode(bytes).unwrap_or_else(|error| {
                report.refuse(Reason::InvalidValue, &format!("{field}.body.bytes"), format!("not base64: {error}"));
                Vec::new()
            })
        }
    };
    if body.len() > MAX_BODY {
        report.refuse(Reason::InvalidValue, &format!("{field}.body"), "a body may have at most 1 MiB");
    }
    Answer { status, body }
}

fn retry(report: &mut Report<'_>, retries: &istio::HttpRetry, field: &str) -> Retry {
    let istio::HttpRetry {
        attempts,
        per_try_timeout,
        retry_on,
        retry_remote_localities,
        retry_ignore_previous_hosts,
        backoff,
    } = retries;
    let attempts = report.count(*attempts, &format!("{field}.attempts")).unwrap_or_default();
    let text = retry_on.as_deref().filter(|text| !text.trim().is_empty()).unwrap_or(DEFAULT_RETRY_ON);
    let (mut on, mut statuses) = (Vec::new(), Vec::new());
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        if RETRY_CONDITIONS.contains(&part) {
            on.push(part.to_owned());
        } else if let Some(status) = part.parse().ok().filter(|status| (100..=599).contains(status)) {
            statuses.push(status);
        } else {
            let message =
                format!("\"{part}\" is neither a status nor a condition; use for example connect-failure or 503");
            report.refuse(Reason::InvalidValue, &format!("{field}.retryOn"), message);
        }
    }
    Retry {
        attempts,
        per_try_timeout: report.duration(per_try_timeout.clone(), &format!("{field}.perTryTimeout")),
        on,
        statuses,
        remote_localities: retry_remote_localities.unwrap_or_default(),
        avoid_previous: *retry_ignore_previous_hosts,
        backoff: report.duration(backoff.clone(), &format!("{field}.backoff")),
    }
}

fn copies(
    report: &mut Report<'_>,
    mirror: Option<&istio::Destination>,
    mirrors: &[istio::HttpMirrorPolicy],
    percent: Option<u32>,
    percentage: Option<&istio::Percent>,
    field: &str,
) -> Vec<Mirror> {
    if mirror.is_some() && !mirrors.is_empty() {
        report.refuse(Reason::NotExactlyOne, field, "only one of mirror and mirrors can be given");
    }
    let mut copies = Vec::new();
    if let Some(to) = mirror {
        let share = match (percentage, percent) {
            (Some(istio::Percent { value }), _) => {
                report.share(value.unwrap_or_default(), &format!("{field}.mirrorPercentage.value"))
            }
            (None, Some(percent)) => report.share(f64::from(percent), &format!("{field}.mirrorPercent")),
            (None, None) => 1_000_000,
        };
        let destination = destination(report, to, &format!("{field}.mirror"));
        copies.extend(destination.map(|destination| Mirror { destination, share }));
    }
    for (index, entry) in mirrors.iter().enumerate() {
        let field = format!("{field}.mirrors[{index}]");
        let istio::HttpMirrorPolicy { destination: to, percentage } = entry;
        let share = match percentage {
            Some(istio::Percent { value }) => {
                report.share(value.unwrap_or_default(), &format!("{field}.percentage.value"))
            }
            None => 1_000_000,
        };
        let destination = destination(report, to, &format!("{field}.destination"));
        copies.extend(destination.map(|destination| Mirror { destination, share }));
    }
    copies
}

fn injected(report: &mut Report<'_>, fault: &istio::HttpFaultInjection, field: &str) -> Fault {
    let istio::HttpFaultInjection { delay, abort } = fault;
    let delay = delay.as_ref().and_then(|delay| {
        let field = format!("{field}.delay");
        let istio::FaultDelay { percent, fixed_delay, exponential_delay, percentage } = delay;
        if exponential_delay.is_some() {
            let message = "an exponential delay is served by nobody, Istio included; use fixedDelay";
            report.refuse(Reason::InvalidValue, &format!("{field}.exponentialDelay"), message);
        }
        let share = match (percentage, percent) {
            (Some(istio::Percent { value }), _) => {
                report.share(value.unwrap_or_default(), &format!("{field}.percentage.value"))
            }
            (None, Some(percent)) => report.share(f64::from(*percent), &format!("{field}.percent")),
            (None, None) => {
                let message = "without it nothing is delayed; say for what part of the requests";
                report.remark(Reason::NoEffect, &format!("{field}.percentage"), message);
                0
            }
        };
        if fixed_delay.is_none() && exponential_delay.is_none() {
            report.remark(Reason::NoEffect, &format!("{field}.fixedDelay"), "without it nothing is delayed; write one");
        }
        report.duration(fixed_delay.clone(), &format!("{field}.fixedDelay")).map(|duration| (duration, share))
    });
    let abort = abort.as_ref().and_then(|abort| {
        let field = format!("{field}.abort");
        let istio::FaultAbort { http_status, grpc_status, http2_error, percentage } = abort;
        let share = percentage.as_ref().map_or(0, |istio::Percent { value }| {
            report.share(value.unwrap_or_default(), &format!("{field}.percentage.value"))
        });
        if percentage.is_none() {
            let message = "without it nothing is aborted; say for what part of the requests";
            report.remark(Reason::NoEffect, &format!("{field}.percentage"), message);
        }
        let abort = match (http_status, grpc_status, http2_error) {
            (Some(status), None, None) => {
                u16::try_from(*status).ok().filter(|status| (200..=599).contains(status)).map(Abort::Http)
            }
            (None, Some(name), None) => grpc_status_code(name).map(Abort::Grpc),
            _ => None,
        };
        if abort.is_none() {
            let message = "give one httpStatus from 200 to 599, or one grpcStatus by name, such as UNAVAILABLE";
            report.refuse(Reason::InvalidValue, &field, message);
        }
        abort.map(|abort| (abort, share))
    });
    Fault { delay, abort }
}

/// The code of a gRPC status by its name.
fn grpc_status_code(name: &str) -> Option<u32> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    NAMES.iter().zip(0u32..).find(|(known, _)| **known == name).map(|(_, code)| code)
}

fn browsers(report: &mut Report<'_>, cors: &istio::CorsPolicy, field: &str) -> Cors {
    let istio::CorsPolicy {
        allow_origin,
        allow_origins,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        unmatched_preflights,
    } = cors;
    let mut origins: Vec<TextMatch> = allow_origins
        .iter()
        .enumerate()
        .map(|(index, origin)| report.text(origin, &format!("{field}.allowOrigins[{index}]")))
        .collect();
    if origins.is_empty() {
        let deprecated = |origin: &String| match origin.as_str() {
            "*" => TextMatch::Regex(".*".to_owned()),
            _ => TextMatch::Exact(origin.clone()),
        };
        origins = allow_origin.iter().map(deprecated).collect();
    }
    for (texts, name) in
        [(allow_methods, "allowMethods"), (allow_headers, "allowHeaders"), (expose_headers, "exposeHeaders")]
    {
        for (index, text) in texts.iter().enumerate() {
            report.header_value(text, &format!("{field}.{name}[{index}]"));
        }
        if texts.iter().map(|text| text.len() + 1).sum::<usize>() > MAX_HEADER {
            let message = format!("together these have more than {MAX_HEADER} characters; name fewer");
            report.refuse(Reason::InvalidValue, &format!("{field}.{name}"), message);
        }
    }
    Cors {
        origins,
        methods: allow_methods.clone(),
        headers: allow_headers.clone(),
        expose: expose_headers.clone(),
        max_age: report.duration(max_age.clone(), &format!("{field}.maxAge")),
        credentials: *allow_credentials,
        forward_unmatched: !matches!(unmatched_preflights, Some(istio::UnmatchedPreflights::Ignore)),
    }
}
