//! Compressors and decompressors.

use super::super::common::{optional, unknown_type};
use super::super::{Context, Converted, Refused, Within as _, refuse, refuse_set};
use super::enabled;
use crate::config::{Coding, Compressible, Compressor, CompressorSetting, Decompressor, Library};
use crate::telemetry::counters::{AcceptStats, CompressorStats, DecompressorStats, Scope};
use leno_xds::envoy::config::core::v3::TypedExtensionConfig;
use leno_xds::envoy::extensions::compression::{brotli, gzip, zstd};
use leno_xds::envoy::extensions::filters::http::compressor::v3::{
    self as xds, CompressorOverrides, CompressorPerRoute, ResponseDirectionOverrides, compressor_per_route,
};
use leno_xds::envoy::extensions::filters::http::decompressor::v3 as opposite;
use prost_types::Any;

/// What is compressed where nothing is said; Envoy's list.
const TYPES: [&str; 20] = [
    "text/html",
    "text/plain",
    "text/css",
    "application/javascript",
    "application/x-javascript",
    "text/javascript",
    "text/x-javascript",
    "text/ecmascript",
    "text/js",
    "text/jscript",
    "text/x-js",
    "application/ecmascript",
    "application/x-json",
    "application/xml",
    "application/json",
    "image/svg+xml",
    "text/xml",
    "application/xhtml+xml",
    "application/grpc-web",
    "application/grpc-web+proto",
];
/// Bytes that are worth it where nothing is said.
const MIN_LENGTH: u32 = 30;
/// How many times as long a body may become where nothing is said.
const MAX_RATIO: u32 = 100;

/// The name of a library, by which what it does is counted.
fn named(library: Option<&TypedExtensionConfig>) -> String {
    library.map(|library| library.name.clone()).unwrap_or_default()
}

/// A compressor of managers with this prefix.
pub(super) fn compressor(context: &Context, prefix: &str, value: xds::Compressor) -> Converted<Compressor> {
    let xds::Compressor {
        content_length,
        content_type,
        disable_on_etag_header,
        remove_accept_encoding_header,
        runtime_enabled,
        compressor_library,
        request_direction_config,
        response_direction_config,
        choose_first,
    } = value;
    let requests = match request_direction_config {
        Some(xds::compressor::RequestDirectionConfig { common_config }) => {
            Some(compressible(context, common_config).within("request_direction_config.common_config")?)
        }
        None => None,
    };
    let name = named(compressor_library.as_ref());
    let library = library(compressor_library).within("compressor_library")?;
    let before = format!("compressor.{name}.{}.", library.coding().stat_name());
    let (of_requests, of_responses) = match response_direction_config {
        Some(_) => (format!("{before}request."), format!("{before}response.")),
        None => (format!("{before}request."), before.clone()),
    };
    let counted = |part: &str| CompressorStats::new(&context.counters, &[Scope::http(prefix), Scope::part(part)]);
    let stats = [counted(&of_requests), counted(&of_responses)];
    let accepted = AcceptStats::new(&context.counters, &[Scope::http(prefix), Scope::part(&before)]);
    let Some(responses) = response_direction_config else {
        // The older fields count.
        let older = xds::compressor::CommonDirectionConfig {
            enabled: runtime_enabled,
            min_content_length: content_length,
            content_type,
            content_type_matcher: Vec::new(),
        };
        return Ok(Compressor {
            library,
            choose_first,
            stats,
            accepted,
            requests,
            responses: compressible(context, Some(older))?,
            spare_etags: disable_on_etag_header,
            weaken_etags: false,
            remove_accept_encoding: remove_accept_encoding_header,
            spared_statuses: Vec::new(),
        });
    };
    let xds::compressor::ResponseDirectionConfig {
        common_config,
        disable_on_etag_header,
        weaken_etag_on_compress,
        remove_accept_encoding_header,
        uncompressible_response_codes,
        status_header_enabled,
    } = responses;
    refuse_set(&status_header_enabled, "response_direction_config.status_header_enabled")?;
    let spared_statuses = uncompressible_response_codes.into_iter().filter_map(|code| u16::try_from(code).ok());
    Ok(Compressor {
        library,
        choose_first,
        stats,
        accepted,
        requests,
        responses: compressible(context, common_config).within("response_direction_config.common_config")?,
        // As in Envoy: what is weakened need not be spared.
        spare_etags: disable_on_etag_header && !weaken_etag_on_compress,
        weaken_etags: weaken_etag_on_compress,
        remove_accept_encoding: remove_accept_encoding_header,
        spared_statuses: spared_statuses.collect(),
    })
}

fn compressible(context: &Context, value: Option<xds::compressor::CommonDirectionConfig>) -> Converted<Compressible> {
    let xds::compressor::CommonDirectionConfig {
        enabled: flag,
        min_content_length,
        content_type,
        content_type_matcher,
    } = value.unwrap_or_default();
    refuse!(content_type_matcher);
    let types = match content_type.is_empty() {
        true => TYPES.iter().map(|name| (*name).into()).collect(),
        false => content_type.into_iter().map(Into::into).collect(),
    };
    let min_length = min_content_length.unwrap_or(MIN_LENGTH).into();
    Ok(Compressible { enabled: enabled(context, flag), min_length, types })
}

/// What a route says about a compressor; `None`: nothing but that it is there.
pub(super) fn of_route(value: CompressorPerRoute) -> Converted<Option<CompressorSetting>> {
    let CompressorPerRoute { r#override } = value;
    match r#override {
        Some(compressor_per_route::Override::Disabled(true)) => {
            Ok(Some(CompressorSetting { responses: false, remove_accept_encoding: None }))
        }
        Some(compressor_per_route::Override::Disabled(false)) | None => Err(Refused::new("override", "is missing")),
        Some(compressor_per_route::Override::Overrides(value)) => {
            let CompressorOverrides { response_direction_config, compressor_library } = value;
            refuse_set(&compressor_library, "overrides.compressor_library")?;
            Ok(response_direction_config.map(|ResponseDirectionOverrides { remove_accept_encoding_header }| {
                CompressorSetting { responses: true, remove_accept_encoding: remove_accept_encoding_header }
            }))
        }
    }
}

fn typed(value: Option<TypedExtensionConfig>) -> Converted<Any> {
    let TypedExtensionConfig { name: _, typed_config } = value.unwrap_or_default();
    typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))
}

/// How to compress. Hints about memory do not count, since they change nothing about what others see.
fn library(value: Option<TypedExtensionConfig>) -> Converted<Library> {
    let any = typed(value)?;
    if let Some(value) = optional::<gzip::compressor::v3::Gzip>(&any)? {
        let gzip::compressor::v3::Gzip {
            memory_level: _,
            compression_level,
            compression_strategy: _,
            window_bits,
            chunk_size: _,
        } = value;
        let window = window_bits.unwrap_or(12);
        let window = u8::try_from(window).ok().filter(|window| (9..=15).contains(window));
        let window = window.ok_or_else(|| Refused::new("window_bits", "is not between 9 and 15"))?;
        return match u32::try_from(compression_level) {
            Ok(0) => Ok(Library::Gzip(6, window)),
            Ok(level @ 1..=9) => Ok(Library::Gzip(level, window)),
            _ => Err(Refused::new("compression_level", "is not known to this proxy")),
        };
    }
    if let Some(value) = optional::<brotli::compressor::v3::Brotli>(&any)? {
        let brotli::compressor::v3::Brotli {
            quality,
            encoder_mode: _,
            window_bits,
            input_block_bits: _,
            chunk_size: _,
            disable_literal_context_modeling: _,
        } = value;
        let (quality, window) = (quality.unwrap_or(3), window_bits.unwrap_or(18));
        if quality > 11 {
            return Err(Refused::new("quality", "is above 11"));
        }
        if !(10..=24).contains(&window) {
            return Err(Refused::new("window_bits", "is not between 10 and 24"));
        }
        return Ok(Library::Brotli(quality, window));
    }
    if let Some(value) = optional::<zstd::compressor::v3::Zstd>(&any)? {
        let zstd::compressor::v3::Zstd { compression_level, enable_checksum, strategy: _, dictionary, chunk_size: _ } =
            value;
        refuse!(dictionary);
        return match compression_level.unwrap_or(0) {
            0 => Ok(Library::Zstd(3, enable_checksum)),
            level @ 1..=22 => Ok(Library::Zstd(level as i32, enable_checksum)),
            _ => Err(Refused::new("compression_level", "is above 22")),
        };
    }
    Err(unknown_type(&any))
}

/// A decompressor of managers with this prefix.
pub(super) fn decompressor(context: &Context, prefix: &str, value: opposite::Decompressor) -> Converted<Decompressor> {
    let opposite::Decompressor { decompressor_library, request_direction_config, response_direction_config } = value;
    let common = |value: Option<opposite::decompressor::CommonDirectionConfig>| {
        let opposite::decompressor::CommonDirectionConfig { enabled: flag, ignore_no_transform_header } =
            value.unwrap_or_default();
        enabled(context, flag).then_some(ignore_no_transform_header)
    };
    let opposite::decompressor::RequestDirectionConfig { common_config, advertise_accept_encoding } =
        request_direction_config.unwrap_or_default();
    let requests = common(common_config);
    let opposite::decompressor::ResponseDirectionConfig { common_config } =
        response_direction_config.unwrap_or_default();
    let responses = common(common_config);
    let name = named(decompressor_library.as_ref());
    let (coding, max_ratio) = opposite_library(decompressor_library).within("decompressor_library")?;
    let advertise = responses.is_some() && advertise_accept_encoding.unwrap_or(true);
    let stats = ["request", "response"].map(|direction| {
        let part = format!("decompressor.{name}.{}.{direction}.", coding.stat_name());
        DecompressorStats::new(&context.counters, &[Scope::http(prefix), Scope::part(&part)])
    });
    // A configuration may have any name; a trailer may not.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.chars().map(|c| if allowed(c) { c.to_ascii_lowercase() } else { '_' }).collect();
    Ok(Decompressor { coding, name: name.into(), stats, max_ratio, requests, responses, advertise })
}

fn opposite_library(value: Option<TypedExtensionConfig>) -> Converted<(Coding, u32)> {
    let any = typed(value)?;
    if let Some(value) = optional::<gzip::decompressor::v3::Gzip>(&any)? {
        let gzip::decompressor::v3::Gzip { window_bits: _, chunk_size: _, max_inflate_ratio } = value;
        return Ok((Coding::Gzip, max_inflate_ratio.unwrap_or(MAX_RATIO).max(1)));
    }
    if let Some(value) = optional::<brotli::decompressor::v3::Brotli>(&any)? {
        let brotli::decompressor::v3::Brotli { disable_ring_buffer_reallocation: _, chunk_size: _ } = value;
        return Ok((Coding::Brotli, MAX_RATIO));
    }
    if let Some(value) = optional::<zstd::decompressor::v3::Zstd>(&any)? {
        let zstd::decompressor::v3::Zstd { dictionaries, chunk_size: _ } = value;
        refuse!(dictionaries);
        return Ok((Coding::Zstd, MAX_RATIO));
    }
    Err(unknown_type(&any))
}
