//! Route configurations (RDS): for each service port one with that service alone, for each port with HTTP one with all of
//! its hosts.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use leno_core::route::{
    Abort, Answer, Cors, Fault, HeaderChanges, HttpMatch, Redirect, RedirectPath, RedirectPort, TextMatch,
};
use leno_core::{Host, HostPattern, ObjectRef, OutboundMode};
use leno_xds::any;
use leno_xds::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use leno_xds::envoy::config::core::v3::{DataSource, RuntimeFractionalPercent, data_source};
use leno_xds::envoy::config::route::v3 as xds;
use leno_xds::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use leno_xds::envoy::config::route::v3::query_parameter_matcher::QueryParameterMatchSpecifier;
use leno_xds::envoy::config::route::v3::redirect_action::{
    PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier,
};
use leno_xds::envoy::config::route::v3::route_action::ClusterSpecifier;
use leno_xds::envoy::config::route::v3::route_match::PathSpecifier;
use leno_xds::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay::FaultDelaySecifier};
use leno_xds::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use leno_xds::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort::ErrorType};

use super::Clusters;
use super::clusters::PASSTHROUGH;
use super::forwards::{forwarded, fraction};
use super::values::{ZERO, config_path, duration, header, headers, metadata, object, regex, text, text_matcher};
use crate::resolve::{Action, HttpRoute, Ir, Outbound, OutboundPort, OutboundService};

/// The name under which a route's cors filter finds its settings.
pub(super) const CORS: &str = "envoy.filters.http.cors";
/// The name under which a route's fault filter finds its settings.
pub(super) const FAULT: &str = "envoy.filters.http.fault";
/// Who calls, for the telemetry of the other side.
pub(super) const PEER_HEADER: &str = "x-leno-peer";

/// What the proxy at the other side puts on its 503 when it could not connect to its app: no byte of the request was sent.
pub(super) const NOT_SENT_HEADER: &str = "x-leno-not-sent";

/// The largest fixed answer, in bytes.
const MAX_ANSWER: u32 = 1 << 20;

/// The routes of one service port.
pub(super) fn of_service(
    ir: &Ir,
    service: &OutboundService,
    port: &OutboundPort,
    clusters: &Clusters<'_>,
) -> (xds::RouteConfiguration, BTreeSet<ObjectRef>) {
    let name = format!("{}:{}", service.service.host, port.number);
    let host = virtual_host(name.clone(), vec!["*".to_owned()], &port.http, port.number, clusters);
    (configuration(ir, name, vec![host]), origins(&port.http, port.rules.as_ref()))
}

/// The routes of one port by host, for connections to addresses that no service owns.
pub(super) fn by_host(ir: &Ir, number: u16, clusters: &Clusters<'_>) -> (xds::RouteConfiguration, BTreeSet<ObjectRef>) {
    let Outbound { namespace, services, hosts } = ir.outbound.as_ref();
    let mut taken: BTreeSet<String> = BTreeSet::new();
    let mut found = BTreeSet::new();
    // A name that two would have goes to the first: within one route configuration it must be unique. Services have their full names,
    // then rules the hosts that they name, and what is left of short names is the services'.
    let mut free = |names: Vec<String>| -> Vec<String> {
        let with_port = names.into_iter().flat_map(|name| [name.clone(), format!("{name}:{number}")]);
        with_port.filter(|name| taken.insert(name.clone())).collect()
    };
    // With a dot at its end a name is as full as without (RFC 1034, section 3.1).
    let full = |host: &Host| match host.as_str().parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => vec![format!("[{address}]")],
        Ok(IpAddr::V4(_)) => vec![host.to_string()],
        Err(_) => vec![host.to_string(), format!("{host}.")],
    };
    let mut of_services = Vec::new();
    for service in services {
        let Some(port) = service.ports.iter().find(|port| port.number == number) else { continue };
        if !port.protocol.is_opaque() {
            of_services.push((service, port, free(full(&service.service.host))));
        }
    }
    let mut of_rules = Vec::new();
    for entry in hosts {
        let Some((_, routes)) = entry.routes.iter().find(|(port, routes)| *port == number && !routes.is_empty()) else {
            continue;
        };
        let names = match &entry.host {
            HostPattern::Exact(host) => free(full(host)),
            HostPattern::Suffix(suffix) => free(vec![format!("*{suffix}")]),
            // Nothing may claim every host of the mesh.
            HostPattern::Any => Vec::new(),
        };
        if names.is_empty() {
            continue;
        }
        of_rules.push(virtual_host(format!("{}:{number}", entry.host), names, routes, number, clusters));
        found.extend(origins(routes, Some(&entry.rules)));
    }
    let mut virtual_hosts = Vec::with_capacity(of_services.len() + of_rules.len() + 1);
    for (service, port, mut names) in of_services {
        let key = &service.service.key;
        let mut short = vec![format!("{}.{}.svc", key.name, key.namespace), format!("{}.{}", key.name, key.namespace)];
        if key.namespace == *namespace {
            short.push(key.name.clone());
        }
        names.extend(free(short));
        let name = format!("{}:{number}", service.service.host);
        virtual_hosts.push(virtual_host(name, names, &port.http, number, clusters));
        found.extend(origins(&port.http, port.rules.as_ref()));
    }
    virtual_hosts.append(&mut of_rules);
    virtual_hosts.push(everything_else(ir.mesh.outbound));
    (configuration(ir, number.to_string(), virtual_hosts), found)
}

/// What a proxy tells others of its workload: `name;namespace;app;version;cluster;service account`.
pub(super) fn peer_value(ir: &Ir) -> String {
    let workload = &ir.workload;
    let identity = &workload.identity;
    [
        workload.name.as_str(),
        &identity.namespace,
        &workload.app,
        &workload.version,
        &ir.mesh.cluster,
        &identity.service_account,
    ]
    .join(";")
}

fn configuration(ir: &Ir, name: String, virtual_hosts: Vec<xds::VirtualHost>) -> xds::RouteConfiguration {
    let peer = peer_value(ir);
    xds::RouteConfiguration {
        name,
        virtual_hosts,
        request_headers_to_add: vec![header(PEER_HEADER, &peer, HeaderAppendAction::OverwriteIfExistsOrAdd)],
        // Between proxies only.
        response_headers_to_remove: vec![NOT_SENT_HEADER.to_owned()],
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(MAX_ANSWER),
        ..Default::default()
    }
}

fn everything_else(mode: OutboundMode) -> xds::VirtualHost {
    let (name, action) = match mode {
        OutboundMode::AllowAny => {
            let action = xds::RouteAction {
                cluster_specifier: Some(ClusterSpecifier::Cluster(PASSTHROUGH.to_owned())),
                timeout: Some(ZERO),
                ..Default::default()
            };
            ("allow_any", xds::route::Action::Route(action))
        }
        OutboundMode::RegistryOnly => {
            let answer = xds::DirectResponseAction { status: 502, ..Default::default() };
            ("block_all", xds::route::Action::DirectResponse(answer))
        }
    };
    xds::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![xds::Route {
            name: name.to_owned(),
            r#match: Some(any_path()),
            action: Some(action),
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn origins(routes: &[HttpRoute], rules: Option<&ObjectRef>) -> BTreeSet<ObjectRef> {
    let made_from = routes.iter().flat_map(|route| route.origin.iter().chain(&route.taken_from));
    made_from.chain(rules).cloned().collect()
}

fn virtual_host(
    name: String,
    domains: Vec<String>,
    routes: &[HttpRoute],
    port: u16,
    clusters: &Clusters<'_>,
) -> xds::VirtualHost {
    let routes = routes.iter().map(|entry| route(entry, port, clusters)).collect();
    xds::VirtualHost { name, domains, routes, include_request_attempt_count: true, ..Default::default() }
}

fn any_path() -> xds::RouteMatch {
    xds::RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

pub(super) fn route(entry: &HttpRoute, port: u16, clusters: &Clusters<'_>) -> xds::Route {
    let HttpRoute { name, matching, action, headers: changes, fault, cors, origin, taken_from: _ } = entry;
    let mut changes = changes.clone();
    let action = match action {
        Action::Forward(forward) => {
            xds::route::Action::Route(forwarded(forward, matching.as_ref(), &mut changes, clusters))
        }
        Action::Redirect(redirect) => xds::route::Action::Redirect(redirected(redirect, port)),
        Action::Answer(answer) => xds::route::Action::DirectResponse(answered(answer)),
    };
    let HeaderChanges { authority: _, request, response } = &changes;
    let (request_headers_to_add, request_headers_to_remove) = headers(request);
    let (response_headers_to_add, response_headers_to_remove) = headers(response);
    let mut typed_per_filter_config = BTreeMap::new();
    typed_per_filter_config.extend(fault.as_ref().map(|fault| (FAULT.to_owned(), any(&injected(fault)))));
    typed_per_filter_config.extend(cors.as_ref().map(|cors| (CORS.to_owned(), any(&browsers(cors)))));
    xds::Route {
        name: name.clone(),
        r#match: Some(matching.as_ref().map_or_else(any_path, matched)),
        metadata: origin.as_ref().map(|origin| metadata([("istio", object([("config", text(config_path(origin)))]))])),
        action: Some(action),
        stat_prefix: matching.as_ref().map(|matching| matching.stat_prefix.clone()).unwrap_or_default(),
        typed_per_filter_config,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        ..Default::default()
    }
}

pub(super) fn matched(matching: &HttpMatch) -> xds::RouteMatch {
    let HttpMatch {
        name: _,
        path,
        ignore_path_case,
        scheme,
        method,
        authority,
        headers,
        without_headers,
        query,
        // Decided when the rules were resolved.
        client: _,
        stat_prefix: _,
    } = matching;
    let path_specifier = match path {
        None | Some(TextMatch::Present) => PathSpecifier::Prefix("/".to_owned()),
        Some(TextMatch::Exact(exact)) => PathSpecifier::Path(exact.clone()),
        Some(TextMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        Some(TextMatch::Regex(pattern)) => PathSpecifier::SafeRegex(regex(pattern)),
    };
    let pseudo = [(":scheme", scheme), (":method", method), (":authority", authority)];
    let pseudo =
        pseudo.into_iter().filter_map(|(name, text)| text.as_ref().map(|text| header_matcher(name, text, false)));
    let wanted = headers.iter().map(|(name, text)| header_matcher(name, text, false));
    let unwanted = without_headers.iter().map(|(name, text)| header_matcher(name, text, true));
    let query_parameters = query.iter().map(|(name, text)| xds::QueryParameterMatcher {
        name: name.clone(),
        query_parameter_match_specifier: Some(match text_matcher(text) {
            Some(matcher) => QueryParameterMatchSpecifier::StringMatch(matcher),
            None => QueryParameterMatchSpecifier::PresentMatch(true),
        }),
    });
    xds::RouteMatch {
        case_sensitive: (*ignore_path_case && !matches!(path, Some(TextMatch::Regex(_)))).then_some(false),
        headers: pseudo.chain(wanted).chain(unwanted).collect(),
        query_parameters: query_parameters.collect(),
        path_specifier: Some(path_specifier),
        ..Default::default()
    }
}

fn header_matcher(name: &str, text: &TextMatch, invert: bool) -> xds::HeaderMatcher {
    let (specifier, invert_match) = match text_matcher(text) {
        Some(matcher) => (HeaderMatchSpecifier::StringMatch(matcher), invert),
        None => (HeaderMatchSpecifier::PresentMatch(!invert), false),
    };
    xds::HeaderMatcher {
        name: name.to_owned(),
        invert_match,
        // Without the header, what must not match does not.
        treat_missing_header_as_empty: invert_match,
        header_match_specifier: Some(specifier),
    }
}

fn redirected(redirect: &Redirect, addressed: u16) -> xds::RedirectAction {
    let Redirect { status, scheme, authority, port, path } = redirect;
    let response_code = match status {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let port = match port {
        Some(RedirectPort::Number(number)) => Some(*number),
        Some(RedirectPort::OfRequest) => Some(addressed),
        // What Envoy does by itself.
        Some(RedirectPort::OfScheme) | None => None,
    };
    let goes_without_saying = |port: u16| authority.is_some() || addressed == 80 || addressed == port;
    xds::RedirectAction {
        host_redirect: authority.clone().unwrap_or_default(),
        port_redirect: match (scheme.as_deref().unwrap_or("http"), port) {
            (_, None) => 0,
            // What goes without saying is not said, unless the client's own host would bring another port.
            ("http", Some(80)) if goes_without_saying(80) => 0,
            ("https", Some(443)) if goes_without_saying(443) => 0,
            (_, Some(port)) => u32::from(port),
        },
        response_code: response_code.into(),
        scheme_rewrite_specifier: scheme.clone().map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path.as_ref().map(|path| match path {
            RedirectPath::Full(path) => PathRewriteSpecifier::PathRedirect(path.clone()),
            RedirectPath::Prefix(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix.clone()),
        }),
        ..Default::default()
    }
}

fn answered(answer: &Answer) -> xds::DirectResponseAction {
    let Answer { status, body } = answer;
    let body = (!body.is_empty()).then(|| DataSource {
        specifier: Some(match String::from_utf8(body.clone()) {
            Ok(text) => data_source::Specifier::InlineString(text),
            Err(error) => data_source::Specifier::InlineBytes(error.into_bytes()),
        }),
        ..Default::default()
    });
    xds::DirectResponseAction { status: u32::from(*status), body, ..Default::default() }
}

fn injected(fault: &Fault) -> HttpFault {
    let Fault { delay, abort } = fault;
    HttpFault {
        delay: delay.map(|(length, share)| FaultDelay {
            percentage: Some(fraction(share)),
            fault_delay_secifier: Some(FaultDelaySecifier::FixedDelay(duration(length))),
        }),
        abort: abort.map(|(abort, share)| FaultAbort {
            percentage: Some(fraction(share)),
            error_type: Some(match abort {
                Abort::Http(status) => ErrorType::HttpStatus(status.into()),
                Abort::Grpc(status) => ErrorType::GrpcStatus(status),
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn browsers(cors: &Cors) -> CorsPolicy {
    let Cors { origins, methods, headers, expose, max_age, credentials, forward_unmatched } = cors;
    CorsPolicy {
        allow_origin_string_match: origins.iter().filter_map(text_matcher).collect(),
        allow_methods: methods.join(","),
        allow_headers: headers.join(","),
        expose_headers: expose.join(","),
        max_age: max_age.map(|age| age.as_secs().to_string()).unwrap_or_default(),
        allow_credentials: *credentials,
        filter_enabled: Some(RuntimeFractionalPercent {
            default_value: Some(fraction(1_000_000)),
            ..Default::default()
        }),
        forward_not_matching_preflights: Some(*forward_unmatched),
        ..Default::default()
    }
}
