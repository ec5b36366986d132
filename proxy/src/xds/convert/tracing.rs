//! How requests are traced, and where spans go.

use super::access_log::built_in;
use super::common::{header_ops, maybe_duration, optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, filter, refuse};
use crate::config::{
    CustomTag, Decorator, Marks, Proportion, RouteTracing, Sampler, Sampling, SpanTransport, TagValue, Tracer, Tracing,
    Zipkin,
};
use crate::telemetry::{LogFormat, MetadataOf};
use leno_xds::envoy::config::core::v3::{
    GrpcService, HttpService, HttpUri, TypedExtensionConfig, grpc_service, http_uri,
};
use leno_xds::envoy::config::route::v3 as route;
use leno_xds::envoy::config::trace::v3::{
    OpenTelemetryConfig, ZipkinConfig,
    tracing::Http,
    tracing::http,
    zipkin_config::{CollectorEndpointVersion, TraceContextOption},
};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager as hcm;
use leno_xds::envoy::extensions::tracers::opentelemetry::samplers::v3::{
    AlwaysOnSamplerConfig, ParentBasedSamplerConfig, TraceIdRatioBasedSamplerConfig,
};
use leno_xds::envoy::r#type::metadata::v3::metadata_kind;
use leno_xds::envoy::r#type::tracing::v3::{self as tags, custom_tag};
use leno_xds::envoy::r#type::v3::{FractionalPercent, Percent, fractional_percent::DenominatorType};
use prost_types::Any;
use std::sync::Arc;
use std::time::Duration;

/// Tags of a manager or route at most.
const MAX_TAGS: usize = 64;
/// Samplers inside of samplers at most.
const DEPTH: usize = 4;
/// Spans that wait at most where nothing is said.
const WAITING: usize = 1024;
/// The most that may be asked for.
const MAX_WAITING: u32 = 65_536;
/// How long sending may take where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same for spans of Zipkin.
const ZIPKIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The manager's settings.
pub(super) fn manager(context: &mut Context, value: hcm::Tracing, egress: bool, marks: Marks) -> Converted<Tracing> {
    let hcm::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        verbose,
        max_path_tag_length,
        custom_tags,
        provider,
        spawn_upstream_span,
        operation,
        upstream_operation,
        no_context_propagation,
    } = value;
    refuse!(verbose);
    // As Envoy counts them: whole per cents, and of the random ones hundredths.
    let percent = |value: Option<Percent>| match value {
        Some(Percent { value }) => Proportion { numerator: value.clamp(0.0, 100.0) as u32, denominator: 100 },
        None => Proportion::ALL,
    };
    let random = match random_sampling {
        Some(Percent { value }) => {
            Proportion { numerator: (value.clamp(0.0, 100.0) * 100.0).round() as u32, denominator: 10_000 }
        }
        None => Proportion { numerator: 10_000, denominator: 10_000 },
    };
    let sampling = Sampling { client: percent(client_sampling), random, overall: percent(overall_sampling) };
    Ok(Tracing {
        tracer: provider.map(|value| tracer(context, value)).transpose().within("provider")?.map(Arc::new),
        sampling: by_runtime(context, sampling),
        egress,
        spawn_upstream: spawn_upstream_span.unwrap_or(false),
        keep_context: no_context_propagation,
        max_path: max_path_tag_length.and_then(|most| usize::try_from(most).ok()).unwrap_or(256),
        tags: custom(context, custom_tags)?,
        operation: format(context, &operation, "operation")?,
        upstream_operation: format(context, &upstream_operation, "upstream_operation")?,
        marks,
    })
}

/// A route's settings.
pub(super) fn of_route(context: &mut Context, value: route::Tracing) -> Converted<RouteTracing> {
    let route::Tracing {
        client_sampling,
        random_sampling,
        overall_sampling,
        custom_tags,
        operation,
        upstream_operation,
    } = value;
    let sampling = Sampling {
        client: fraction(client_sampling).within("client_sampling")?,
        random: fraction(random_sampling).within("random_sampling")?,
        overall: fraction(overall_sampling).within("overall_sampling")?,
    };
    Ok(RouteTracing {
        sampling: by_runtime(context, sampling),
        tags: custom(context, custom_tags)?,
        operation: format(context, &operation, "operation")?,
        upstream_operation: format(context, &upstream_operation, "upstream_operation")?,
    })
}

/// The name of a route's operation.
pub(super) fn decorator(value: route::Decorator) -> Converted<Decorator> {
    let route::Decorator { operation, propagate } = value;
    if operation.is_empty() {
        return Err(Refused::new("operation", "is missing"));
    }
    let operation = super::edge::header_value(operation, "operation")?.into();
    Ok(Decorator { operation, propagate: propagate.unwrap_or(true) })
}

fn by_runtime(context: &Context, sampling: Sampling) -> Sampling {
    let set = |key: &str, own: Proportion| match context.runtime.number(key) {
        Some(number) => Proportion { numerator: number.clamp(0.0, 100.0) as u32, denominator: 100 },
        None => own,
    };
    Sampling {
        client: set("tracing.client_enabled", sampling.client),
        random: set("tracing.random_sampling", sampling.random),
        overall: set("tracing.global_enabled", sampling.overall),
    }
}

fn fraction(value: Option<FractionalPercent>) -> Converted<Proportion> {
    let Some(FractionalPercent { numerator, denominator }) = value else { return Ok(Proportion::ALL) };
    let denominator = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Refused::new("denominator", "is not known to this proxy")),
    };
    Ok(Proportion { numerator, denominator })
}

fn format(context: &mut Context, text: &str, field: &str) -> Converted<Option<Arc<LogFormat>>> {
    if text.is_empty() {
        return Ok(None);
    }
    context.text_format(text, true).map(Some).within(field)
}

fn custom(context: &mut Context, values: Vec<tags::CustomTag>) -> Converted<Vec<CustomTag>> {
    tags_with(context, values, |context, text| context.text_format(text, true))
}

/// Tags of entries in access logs, where every operator is answered.
pub(super) fn line_tags(context: &mut Context, values: Vec<tags::CustomTag>) -> Converted<Vec<CustomTag>> {
    tags_with(context, values, |context, text| context.log_format(text, true).and_then(built_in))
}

/// Compiles the operators of a tag's value.
type Compile = fn(&mut Context, &str) -> Converted<Arc<LogFormat>>;

fn tags_with(context: &mut Context, values: Vec<tags::CustomTag>, compile: Compile) -> Converted<Vec<CustomTag>> {
    if values.len() > MAX_TAGS {
        return Err(Refused::new("custom_tags", format!("has more than {MAX_TAGS} tags")));
    }
    let mut all = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        all.extend(tag(context, value, compile).within(format_args!("custom_tags[{index}]"))?);
    }
    Ok(all)
}

fn tag(context: &mut Context, value: tags::CustomTag, compile: Compile) -> Converted<Option<CustomTag>> {
    let tags::CustomTag { tag: name, value_type, r#type } = value;
    // Strings only.
    if value_type > 1 {
        return Err(Refused::new("value_type", "is not supported by this proxy; leave it out"));
    }
    if name.is_empty() {
        return Err(Refused::new("tag", "is missing"));
    }
    let value = match r#type {
        Some(custom_tag::Type::Literal(custom_tag::Literal { value })) => TagValue::Literal(value.into()),
        Some(custom_tag::Type::Environment(custom_tag::Environment { name, default_value })) => {
            let value = std::env::var(name).unwrap_or(default_value);
            if value.is_empty() {
                return Ok(None);
            }
            TagValue::Literal(value.into())
        }
        Some(custom_tag::Type::RequestHeader(custom_tag::Header { name, default_value })) => {
            TagValue::Header(name.to_ascii_lowercase().into(), default_value.into())
        }
        Some(custom_tag::Type::Value(text)) => {
            TagValue::Format(compile(context, &text).within("value")?, Box::default())
        }
        Some(custom_tag::Type::Metadata(value)) => of_metadata(context, value).within("metadata")?,
        None => return Err(Refused::new("type", "is missing")),
    };
    Ok(Some(CustomTag { name: name.into(), value }))
}

fn of_metadata(context: &mut Context, value: custom_tag::Metadata) -> Converted<TagValue> {
    let custom_tag::Metadata { kind, metadata_key, default_value } = value;
    let of = match kind.and_then(|kind| kind.kind) {
        Some(metadata_kind::Kind::Request(metadata_kind::Request {})) => MetadataOf::Request,
        Some(metadata_kind::Kind::Route(metadata_kind::Route {})) => MetadataOf::Route,
        Some(metadata_kind::Kind::Cluster(metadata_kind::Cluster {})) => MetadataOf::Cluster,
        Some(metadata_kind::Kind::Host(metadata_kind::Host {})) => MetadataOf::Endpoint,
        None => return Err(Refused::new("kind", "is missing")),
    };
    context.asks_dynamic |= of == MetadataOf::Request;
    let (filter, path) = filter::metadata_key(metadata_key).within("metadata_key")?;
    Ok(TagValue::Format(Arc::new(LogFormat::metadata(of, filter, path)), default_value.into()))
}

fn tracer(context: &mut Context, value: Http) -> Converted<Tracer> {
    let Http { name: _, config_type } = value;
    let Some(http::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::new("typed_config", "is missing"));
    };
    if let Some(value) = optional::<OpenTelemetryConfig>(&any).within("typed_config")? {
        return opentelemetry(context, value).within("typed_config");
    }
    if let Some(value) = optional::<ZipkinConfig>(&any).within("typed_config")? {
        return zipkin(context, value).within("typed_config");
    }
    Err(unknown_type(&any).within("typed_config"))
}

fn zipkin(context: &mut Context, value: ZipkinConfig) -> Converted<Tracer> {
    let ZipkinConfig {
        collector_cluster,
        collector_endpoint,
        trace_id_128bit,
        shared_span_context,
        collector_endpoint_version,
        collector_hostname,
        split_spans_for_request,
        trace_context_option,
        collector_service,
        timestamp_trace_ids,
    } = value;
    let protobuf = match CollectorEndpointVersion::try_from(collector_endpoint_version) {
        Ok(CollectorEndpointVersion::HttpJson) => false,
        Ok(CollectorEndpointVersion::HttpProto) => true,
        _ => {
            let reason = "is not supported by this proxy; use HTTP_JSON or HTTP_PROTO";
            return Err(Refused::new("collector_endpoint_version", reason));
        }
    };
    let w3c = match TraceContextOption::try_from(trace_context_option) {
        Ok(TraceContextOption::UseB3) => false,
        Ok(TraceContextOption::UseB3WithW3cPropagation) => true,
        Err(_) => return Err(Refused::new("trace_context_option", "is not known to this proxy")),
    };
    let (cluster, transport, timeout) = match collector_service {
        Some(service) => http(context, service).within("collector_service")?,
        None => {
            for (value, field) in
                [(&collector_cluster, "collector_cluster"), (&collector_endpoint, "collector_endpoint")]
            {
                if value.is_empty() {
                    return Err(Refused::new(field, "is missing"));
                }
            }
            let host = if collector_hostname.is_empty() { collector_cluster.clone() } else { collector_hostname };
            let authority = super::edge::header_value(host, "collector_hostname")?.into();
            let path = super::edge::header_value(collector_endpoint, "collector_endpoint")?.into();
            (collector_cluster, SpanTransport::Http { authority, path, headers: Vec::new() }, None)
        }
    };
    Ok(Tracer {
        cluster: context.cluster(&cluster).within("collector_cluster")?,
        transport,
        service: context.node_cluster.as_str().into(),
        node: context.node.as_str().into(),
        zone: context.zone().into(),
        sampler: Sampler::Manager,
        zipkin: Some(Zipkin {
            wide: trace_id_128bit,
            stamped: timestamp_trace_ids,
            shared: shared_span_context.unwrap_or(true),
            split: split_spans_for_request,
            w3c,
            protobuf,
        }),
        sdk: false,
        named: false,
        scope: false,
        max_waiting: WAITING,
        timeout: timeout.filter(|limit| !limit.is_zero()).unwrap_or(ZIPKIN_TIMEOUT),
    })
}

fn opentelemetry(context: &mut Context, value: OpenTelemetryConfig) -> Converted<Tracer> {
    let OpenTelemetryConfig {
        grpc_service,
        http_service,
        exporter,
        service_name,
        resource_detectors,
        sampler: wanted,
        max_cache_size,
        set_telemetry_sdk_resource_attributes,
        set_service_name_resource_attribute,
        set_instrumentation_scope,
    } = value;
    refuse!(exporter, resource_detectors);
    let (cluster, transport, timeout) = match (grpc_service, http_service) {
        (Some(_), Some(_)) => return Err(Refused::new("http_service", "and `grpc_service` exclude each other")),
        (Some(value), None) => {
            let (cluster, (authority, metadata), timeout) = grpc(value).within("grpc_service")?;
            (cluster, SpanTransport::Grpc { authority, metadata }, timeout)
        }
        (None, Some(value)) => http(context, value).within("http_service")?,
        (None, None) => return Err(Refused::new("grpc_service", "is missing, and so is `http_service`")),
    };
    if max_cache_size.is_some_and(|most| most > MAX_WAITING) {
        return Err(Refused::new("max_cache_size", format!("is more than {MAX_WAITING}")));
    }
    Ok(Tracer {
        cluster: context.cluster(&cluster).within("cluster")?,
        transport,
        service: if service_name.is_empty() { "unknown_service:envoy".into() } else { service_name.into() },
        node: context.node.as_str().into(),
        zone: context.zone().into(),
        sampler: wanted.map(|value| sampler(value, DEPTH)).transpose().within("sampler")?.unwrap_or(Sampler::Manager),
        zipkin: None,
        sdk: set_telemetry_sdk_resource_attributes.unwrap_or(true),
        named: set_service_name_resource_attribute.unwrap_or(true),
        scope: set_instrumentation_scope.unwrap_or(true),
        max_waiting: max_cache_size.map_or(WAITING, |most| most as usize),
        timeout: timeout.filter(|limit| !limit.is_zero()).unwrap_or(TIMEOUT),
    })
}

type Sent = (String, SpanTransport, Option<Duration>);

/// The cluster of a service, with the authority and further headers of calls to it, and how long they may take.
type Called = (String, (Box<str>, Vec<(Box<str>, Box<str>)>), Option<Duration>);

/// A service of gRPC.
pub(super) fn grpc(value: GrpcService) -> Converted<Called> {
    let GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    refuse!(retry_policy);
    let timeout = maybe_duration(timeout, "timeout")?;
    let Some(grpc_service::TargetSpecifier::EnvoyGrpc(value)) = target_specifier else {
        return Err(Refused::new("envoy_grpc", "is missing; other targets are not supported by this proxy"));
    };
    let grpc_service::EnvoyGrpc {
        cluster_name,
        authority,
        retry_policy,
        max_receive_message_length: _,
        skip_envoy_headers: _,
    } = value;
    refuse!(retry_policy);
    let authority = if authority.is_empty() { cluster_name.clone() } else { authority };
    let metadata = super::common::grpc_metadata(initial_metadata).within("initial_metadata")?;
    let metadata = metadata.into_iter().map(|(name, value)| (name, value.into())).collect();
    let authority = super::edge::header_value(authority, "envoy_grpc.authority")?.into();
    Ok((cluster_name, (authority, metadata), timeout))
}

fn http(context: &mut Context, value: HttpService) -> Converted<Sent> {
    let HttpService { http_uri: uri, request_headers_to_add, formatters } = value;
    refuse!(formatters);
    let HttpUri { uri, timeout, http_upstream_type } = uri.ok_or_else(|| Refused::new("http_uri", "is missing"))?;
    let Some(http_uri::HttpUpstreamType::Cluster(cluster)) = http_upstream_type else {
        return Err(Refused::new("http_uri.cluster", "is missing"));
    };
    let parsed: ::http::Uri = uri.parse().map_err(|_| Refused::new("http_uri.uri", "is no URI"))?;
    let authority = parsed.authority().map_or(cluster.as_str(), |authority| authority.as_str()).into();
    let path = parsed.path_and_query().map_or("/", |path| path.as_str()).into();
    let headers = header_ops(context, request_headers_to_add, Vec::new(), "request_headers")?;
    let timeout = maybe_duration(timeout, "http_uri.timeout")?;
    Ok((cluster, SpanTransport::Http { authority, path, headers }, timeout))
}

fn sampler(value: TypedExtensionConfig, depth: usize) -> Converted<Sampler> {
    let depth = depth.checked_sub(1).ok_or_else(|| Refused::new("", format!("is nested deeper than {DEPTH}")))?;
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any: Any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    if let Some(AlwaysOnSamplerConfig {}) = optional(&any).within("typed_config")? {
        return Ok(Sampler::Always);
    }
    if let Some(ParentBasedSamplerConfig { wrapped_sampler }) = optional(&any).within("typed_config")? {
        let wrapped = wrapped_sampler.ok_or_else(|| Refused::new("typed_config.wrapped_sampler", "is missing"))?;
        let wrapped = sampler(wrapped, depth).within("typed_config.wrapped_sampler")?;
        return Ok(Sampler::Parent(Box::new(wrapped)));
    }
    if let Some(TraceIdRatioBasedSamplerConfig { sampling_percentage }) = optional(&any).within("typed_config")? {
        let share = match sampling_percentage {
            None => Proportion { numerator: 0, denominator: 100 },
            value => fraction(value).within("typed_config.sampling_percentage")?,
        };
        return Ok(Sampler::Ratio(share));
    }
    Err(unknown_type(&any).within("typed_config"))
}
