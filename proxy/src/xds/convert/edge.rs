//! Who the client is and what is told about it: those fields of a connection manager.

use super::common::{header_name, maybe_duration, optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, filter};
use crate::config::{CertDetails, ClientCert, Detection, Edge, HeaderOp, Marks};
use ipnet::IpNet;
use leno_xds::envoy::config::core::v3::scheme_header_transformation::Transformation;
use leno_xds::envoy::config::core::v3::{CidrRange, SchemeHeaderTransformation, TypedExtensionConfig};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::RequestIdExtension;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    ForwardClientCertDetails, ForwardClientCertFormat, InternalAddressConfig, SetCurrentClientCertDetails,
};
use leno_xds::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation;
use leno_xds::envoy::extensions::http::original_ip_detection::{
    custom_header::v3::CustomHeaderConfig,
    xff::v3::{XffConfig, XffTrustedCidrs},
};
use leno_xds::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use leno_xds::envoy::r#type::v3::HttpStatus;
use std::net::IpAddr;
use std::time::Duration;

/// The most extensions, ranges and mutations of one kind.
const MOST: usize = 1024;

/// The fields that [`edge`] reads.
#[derive(Debug, Default)]
pub struct Fields {
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    pub skip_xff_append: bool,
    pub append_x_forwarded_port: bool,
    pub original_ip_detection_extensions: Vec<TypedExtensionConfig>,
    pub early_header_mutation_extensions: Vec<TypedExtensionConfig>,
    pub internal_address_config: Option<InternalAddressConfig>,
    pub forward_client_cert_details: i32,
    pub set_current_client_cert_details: Option<SetCurrentClientCertDetails>,
    pub scheme_header_transformation: Option<SchemeHeaderTransformation>,
    pub via: String,
    pub add_user_agent: bool,
    pub request_id_extension: Option<RequestIdExtension>,
    pub preserve_external_request_id: bool,
    pub always_set_request_id_in_response: bool,
}

/// Reads them; `None` when nothing differs from the default.
pub fn edge(context: &mut Context, fields: Fields) -> Converted<Option<Box<Edge>>> {
    let Fields {
        use_remote_address,
        xff_num_trusted_hops,
        skip_xff_append,
        append_x_forwarded_port,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        forward_client_cert_details,
        set_current_client_cert_details,
        scheme_header_transformation,
        via,
        add_user_agent,
        request_id_extension,
        preserve_external_request_id,
        always_set_request_id_in_response,
    } = fields;
    if use_remote_address && !original_ip_detection_extensions.is_empty() {
        return Err(Refused::new("original_ip_detection_extensions", "and `use_remote_address` exclude each other"));
    }
    if xff_num_trusted_hops != 0 && !original_ip_detection_extensions.is_empty() {
        return Err(Refused::new("original_ip_detection_extensions", "and `xff_num_trusted_hops` exclude each other"));
    }
    let marks = marks(request_id_extension).within("request_id_extension")?;
    let (secure, secure_as_endpoint) = scheme(scheme_header_transformation).within("scheme_header_transformation")?;
    let edge = Edge {
        use_remote_address,
        trusted_hops: xff_num_trusted_hops,
        skip_append: skip_xff_append,
        append_port: append_x_forwarded_port,
        detection: each(original_ip_detection_extensions, "original_ip_detection_extensions", detection)?,
        internal: internal(internal_address_config).within("internal_address_config")?,
        client_cert: client_cert(forward_client_cert_details, set_current_client_cert_details)?,
        secure,
        secure_as_endpoint,
        via: if via.is_empty() { None } else { Some(header_value(via, "via")?.into()) },
        user_agent: add_user_agent.then(|| (context.node_cluster.as_str().into(), context.node.as_str().into())),
        preserve_request_id: preserve_external_request_id,
        disbelieve_request_id: preserve_external_request_id && marks.pack,
        request_id_in_response: always_set_request_id_in_response,
        early: each(early_header_mutation_extensions, "early_header_mutation_extensions", |value| {
            early(context, value)
        })?
        .into_iter()
        .flatten()
        .collect(),
    };
    Ok(is_special(&edge).then(|| Box::new(edge)))
}

fn is_special(edge: &Edge) -> bool {
    edge.use_remote_address
        || edge.trusted_hops > 0
        || edge.append_port
        || !edge.detection.is_empty()
        || !edge.internal.is_empty()
        || edge.client_cert != ClientCert::Sanitize
        || edge.secure.is_some()
        || edge.secure_as_endpoint
        || edge.via.is_some()
        || edge.user_agent.is_some()
        || edge.request_id_in_response
        || !edge.early.is_empty()
}

fn each<T, U>(values: Vec<T>, field: &str, mut convert: impl FnMut(T) -> Converted<U>) -> Converted<Vec<U>> {
    if values.len() > MOST {
        return Err(Refused::new(field, format!("has more than {MOST} entries")));
    }
    let convert = |(index, value)| convert(value).within(format_args!("{field}[{index}]"));
    values.into_iter().enumerate().map(convert).collect()
}

/// A value that a header may have.
pub(super) fn header_value(value: String, field: &str) -> Converted<String> {
    match http::HeaderValue::from_str(&value) {
        Ok(_) => Ok(value),
        Err(_) => Err(Refused::new(field, "has characters that no header may have")),
    }
}

fn detection(value: TypedExtensionConfig) -> Converted<Detection> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    if let Some(value) = optional::<XffConfig>(&any).within("typed_config")? {
        let XffConfig { xff_num_trusted_hops, xff_trusted_cidrs, skip_xff_append } = value;
        let append = !skip_xff_append.unwrap_or(true);
        return match xff_trusted_cidrs {
            None => Ok(Detection::Hops { hops: xff_num_trusted_hops, append }),
            Some(_) if xff_num_trusted_hops > 0 => {
                Err(Refused::new("typed_config.xff_trusted_cidrs", "and `xff_num_trusted_hops` exclude each other"))
            }
            Some(XffTrustedCidrs { cidrs }) => {
                Ok(Detection::Trusted { cidrs: each(cidrs, "typed_config.xff_trusted_cidrs.cidrs", range)?, append })
            }
        };
    }
    if let Some(value) = optional::<CustomHeaderConfig>(&any).within("typed_config")? {
        let CustomHeaderConfig { header_name: name, allow_extension_to_set_address_as_trusted, reject_with_status } =
            value;
        return Ok(Detection::Header {
            name: header_name(&name).within("typed_config.header_name")?,
            trusted: allow_extension_to_set_address_as_trusted,
            reject: reject_with_status.map(|HttpStatus { code }| {
                u16::try_from(code).ok().filter(|code| (400..=511).contains(code)).unwrap_or(403)
            }),
        });
    }
    Err(unknown_type(&any).within("typed_config"))
}

fn early(context: &mut Context, value: TypedExtensionConfig) -> Converted<Vec<HeaderOp>> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    let Some(HeaderMutation { mutations }) = optional(&any).within("typed_config")? else {
        return Err(unknown_type(&any).within("typed_config"));
    };
    filter::header_mutations(context, mutations, "typed_config.mutations")
}

fn internal(value: Option<InternalAddressConfig>) -> Converted<Vec<IpNet>> {
    // Listeners are never Unix sockets here: nobody comes by one.
    let Some(InternalAddressConfig { unix_sockets: _, cidr_ranges }) = value else { return Ok(Vec::new()) };
    if cidr_ranges.is_empty() {
        return Ok(private());
    }
    each(cidr_ranges, "cidr_ranges", range)
}

/// What is inside where no ranges are named: addresses for private use (RFC 1918, RFC 4193) and the loopback, as in Envoy.
fn private() -> Vec<IpNet> {
    let v4 = [([10, 0, 0, 0], 8), ([172, 16, 0, 0], 12), ([192, 168, 0, 0], 16), ([127, 0, 0, 1], 32)];
    let v6 = [([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7), ([0, 0, 0, 0, 0, 0, 0, 1], 128)];
    let v4 = v4.into_iter().map(|(address, length)| IpNet::new(IpAddr::from(address), length));
    v4.chain(v6.into_iter().map(|(address, length)| IpNet::new(IpAddr::from(address), length))).flatten().collect()
}

/// A range of addresses.
fn range(value: CidrRange) -> Converted<IpNet> {
    let CidrRange { address_prefix, prefix_len } = value;
    let ip: IpAddr = address_prefix
        .parse()
        .map_err(|_| Refused::new("address_prefix", format!("`{address_prefix}` is no IP address")))?;
    let length = u8::try_from(prefix_len.unwrap_or(0)).ok();
    length
        .and_then(|length| IpNet::new(ip, length).ok())
        .map(|net| net.trunc())
        .ok_or_else(|| Refused::new("prefix_len", "is longer than the address"))
}

fn client_cert(mode: i32, set: Option<SetCurrentClientCertDetails>) -> Converted<ClientCert> {
    let SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format } = set.unwrap_or_default();
    let json = match ForwardClientCertFormat::try_from(format) {
        Ok(ForwardClientCertFormat::Text) => false,
        Ok(ForwardClientCertFormat::Json) => true,
        Err(_) => return Err(Refused::new("set_current_client_cert_details.format", "is not known to this proxy")),
    };
    let details = CertDetails { cert, chain, subject: subject.unwrap_or(false), uri, dns, issuer, json };
    Ok(match ForwardClientCertDetails::try_from(mode) {
        Ok(ForwardClientCertDetails::Sanitize) => ClientCert::Sanitize,
        Ok(ForwardClientCertDetails::ForwardOnly) => ClientCert::ForwardOnly,
        Ok(ForwardClientCertDetails::AppendForward) => ClientCert::AppendForward(details),
        Ok(ForwardClientCertDetails::SanitizeSet) => ClientCert::SanitizeSet(details),
        Ok(ForwardClientCertDetails::AlwaysForwardOnly) => ClientCert::AlwaysForwardOnly,
        Err(_) => return Err(Refused::new("forward_client_cert_details", "is not known to this proxy")),
    })
}

/// Whether the scheme of every request is that of TLS, and whether it is that of the connection to its endpoint.
fn scheme(value: Option<SchemeHeaderTransformation>) -> Converted<(Option<bool>, bool)> {
    let Some(SchemeHeaderTransformation { match_upstream, transformation }) = value else { return Ok((None, false)) };
    match transformation {
        None => Ok((None, match_upstream)),
        Some(Transformation::SchemeToOverwrite(scheme)) => match scheme.as_str() {
            "http" => Ok((Some(false), false)),
            "https" => Ok((Some(true), false)),
            _ => Err(Refused::new("scheme_to_overwrite", "is neither `http` nor `https`")),
        },
    }
}

/// The identifier is always a random UUID; what it says about traces.
pub(super) fn marks(value: Option<RequestIdExtension>) -> Converted<Marks> {
    let Some(RequestIdExtension { typed_config: Some(any) }) = value else { return Ok(Marks::default()) };
    let Some(value) = optional::<UuidRequestIdConfig>(&any).within("typed_config")? else {
        return Err(unknown_type(&any).within("typed_config"));
    };
    let UuidRequestIdConfig { pack_trace_reason, use_request_id_for_trace_sampling } = value;
    Ok(Marks { pack: pack_trace_reason.unwrap_or(true), by_id: use_request_id_for_trace_sampling.unwrap_or(true) })
}

/// A limit that is none when it is missing or zero.
pub(super) fn limit(value: Option<prost_types::Duration>, field: &str) -> Converted<Option<Duration>> {
    Ok(maybe_duration(value, field)?.filter(|limit| !limit.is_zero()))
}
