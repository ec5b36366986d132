//! Access logs: where, how, and of what; and the formats of other texts that are made in the same way.

use super::common::{inline, optional, unknown_type};
use super::{Context, Converted, Refused, Within as _, grpc_log, matcher};
use crate::config::{AccessLog, LogTarget};
use crate::telemetry::logformat::ENVOY;
use crate::telemetry::{Comparison, FormatError, LogFilter, LogFormat, LogNeeds, ResponseFlags};
use leno_xds::envoy::config::accesslog::v3::{
    self as xds, AccessLogFilter, AndFilter, ComparisonFilter, DurationFilter, GrpcStatusFilter, HeaderFilter,
    LogTypeFilter, MetadataFilter, NotHealthCheckFilter, OrFilter, ResponseFlagFilter, RuntimeFilter, StatusCodeFilter,
    TraceableFilter, access_log, access_log_filter::FilterSpecifier, comparison_filter::Op,
};
use leno_xds::envoy::config::core::v3::{
    JsonFormatOptions, RuntimeUInt32, SubstitutionFormatString, TypedExtensionConfig,
    substitution_format_string::Format,
};
use leno_xds::envoy::extensions::access_loggers::{
    file::v3::{FileAccessLog, file_access_log},
    stream::v3::{StderrAccessLog, StdoutAccessLog, stderr_access_log, stdout_access_log},
};
use leno_xds::envoy::extensions::formatter::{
    metadata::v3::Metadata as MetadataFormatter, req_without_query::v3::ReqWithoutQuery,
};
use leno_xds::envoy::r#type::v3::{FractionalPercent, fractional_percent::DenominatorType};
use prost_types::Any;
use std::sync::Arc;

/// Filters inside of filters at most.
const DEPTH: usize = 8;
/// Logs of one listener, manager or proxy at most.
const MAX_LOGS: usize = 64;

/// The logs in their order.
pub fn access_logs(context: &mut Context, logs: Vec<xds::AccessLog>) -> Converted<Vec<AccessLog>> {
    if logs.len() > MAX_LOGS {
        return Err(Refused::new("access_log", format!("has more than {MAX_LOGS} logs")));
    }
    let each = |(index, log)| self::log(context, log).within(format_args!("access_log[{index}]"));
    logs.into_iter().enumerate().map(each).collect()
}

fn log(context: &mut Context, value: xds::AccessLog) -> Converted<AccessLog> {
    let xds::AccessLog { name: _, filter: wanted, config_type } = value;
    let Some(access_log::ConfigType::TypedConfig(any)) = config_type else {
        return Err(Refused::new("typed_config", "is missing"));
    };
    let filter = wanted.map(|wanted| filter(context, wanted)).transpose().within("filter")?;
    let target = target(context, &any).within("typed_config")?;
    Ok(AccessLog { filter, target })
}

/// As what is logged, and where.
fn target(context: &mut Context, any: &Any) -> Converted<LogTarget> {
    if let Some(value) = optional(any)? {
        return Ok(LogTarget::Entries(Arc::new(grpc_log::http(context, value)?)));
    }
    if let Some(value) = optional(any)? {
        return Ok(LogTarget::Entries(Arc::new(grpc_log::tcp(context, value)?)));
    }
    let (path, format) = sink(context, any)?;
    let sink = context.sinks.at(&path).map_err(|why| Refused::new("path", format!("`{path}` {why}")))?;
    Ok(LogTarget::Lines { format, sink })
}

/// The path of the file, and the format.
fn sink(context: &mut Context, any: &Any) -> Converted<(String, Arc<LogFormat>)> {
    let usual = |context: &mut Context| context.log_format(ENVOY, false);
    if let Some(FileAccessLog { path, access_log_format }) = optional(any)? {
        if path.is_empty() {
            return Err(Refused::new("path", "is missing"));
        }
        let format = match access_log_format {
            None => usual(context)?,
            Some(file_access_log::AccessLogFormat::Format(text)) if text.is_empty() => usual(context)?,
            Some(file_access_log::AccessLogFormat::Format(text)) => {
                context.log_format(&text, false).and_then(built_in).within("format")?
            }
            Some(file_access_log::AccessLogFormat::LogFormat(value)) => format(context, value).within("log_format")?,
            Some(file_access_log::AccessLogFormat::JsonFormat(fields)) => {
                json(&fields, false).and_then(built_in).within("json_format")?
            }
            Some(file_access_log::AccessLogFormat::TypedJsonFormat(fields)) => {
                json(&fields, false).and_then(built_in).within("typed_json_format")?
            }
        };
        return Ok((path, format));
    }
    if let Some(StdoutAccessLog { access_log_format }) = optional(any)? {
        let format = match access_log_format {
            None => usual(context)?,
            Some(stdout_access_log::AccessLogFormat::LogFormat(value)) => {
                format(context, value).within("log_format")?
            }
        };
        return Ok(("/dev/stdout".to_owned(), format));
    }
    if let Some(StderrAccessLog { access_log_format }) = optional(any)? {
        let format = match access_log_format {
            None => usual(context)?,
            Some(stderr_access_log::AccessLogFormat::LogFormat(value)) => {
                format(context, value).within("log_format")?
            }
        };
        return Ok(("/dev/stderr".to_owned(), format));
    }
    Err(unknown_type(any))
}

/// A text or JSON that is made for each request. An empty text is Envoy's default format.
pub(super) fn format(context: &mut Context, value: SubstitutionFormatString) -> Converted<Arc<LogFormat>> {
    let SubstitutionFormatString { omit_empty_values, content_type: _, formatters, json_format_options, format } =
        value;
    let mut without_query = false;
    for (index, formatter) in formatters.into_iter().enumerate() {
        without_query |= self::formatter(formatter).within(format_args!("formatters[{index}]"))?;
    }
    // Members are always sorted by name.
    let JsonFormatOptions { sort_properties: _ } = json_format_options.unwrap_or_default();
    let (format, field) = match format {
        None => return context.log_format(ENVOY, omit_empty_values),
        Some(Format::TextFormat(text)) => (context.log_format(&text, omit_empty_values), "text_format"),
        Some(Format::TextFormatSource(source)) => {
            let bytes = inline(source).within("text_format_source")?;
            let text = String::from_utf8(bytes).map_err(|_| Refused::new("text_format_source", "is not UTF-8"))?;
            (context.log_format(&text, omit_empty_values), "text_format_source")
        }
        Some(Format::JsonFormat(fields)) => (json(&fields, omit_empty_values), "json_format"),
    };
    format.and_then(|format| if without_query { Ok(format) } else { built_in(format) }).within(field)
}

/// Refuses a format with an operator that is only there where its extension is configured.
pub(super) fn built_in(format: Arc<LogFormat>) -> Converted<Arc<LogFormat>> {
    match format.is_built_in() {
        true => Ok(format),
        false => Err(Refused::new("", "has REQ_WITHOUT_QUERY without envoy.formatter.req_without_query")),
    }
}

/// Refuses a format whose operators are only answered in lines of logs.
pub(super) fn answered_anywhere(context: &mut Context, format: Arc<LogFormat>) -> Converted<Arc<LogFormat>> {
    let format = built_in(format)?;
    let LogNeeds { dynamic, observed } = format.needs();
    context.asks_dynamic |= dynamic;
    match observed {
        false => Ok(format),
        true => Err(Refused::new("", "has an operator that this proxy answers in access logs only")),
    }
}

/// A set of operators that Envoy has as an extension; whether it is that of REQ_WITHOUT_QUERY. Those of metadata are always there.
fn formatter(value: TypedExtensionConfig) -> Converted<bool> {
    let TypedExtensionConfig { name: _, typed_config } = value;
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    if let Some(ReqWithoutQuery {}) = optional(&any).within("typed_config")? {
        return Ok(true);
    }
    if let Some(MetadataFormatter {}) = optional(&any).within("typed_config")? {
        return Ok(false);
    }
    Err(unknown_type(&any).within("typed_config"))
}

fn json(fields: &prost_types::Struct, omit: bool) -> Converted<Arc<LogFormat>> {
    LogFormat::json(fields, omit).map(Arc::new).map_err(refused)
}

pub(super) fn refused(error: FormatError) -> Refused {
    Refused::new("", error.to_string())
}

/// A condition.
pub(super) fn filter(context: &mut Context, value: AccessLogFilter) -> Converted<LogFilter> {
    let filter = nested(context, value, DEPTH)?;
    context.asks_dynamic |= filter.needs_dynamic();
    Ok(filter)
}

fn nested(context: &Context, value: AccessLogFilter, depth: usize) -> Converted<LogFilter> {
    let AccessLogFilter { filter_specifier } = value;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Refused::new("", format!("is nested deeper than {DEPTH}")));
    };
    let each = |filters: Vec<AccessLogFilter>, name: &str| -> Converted<Vec<LogFilter>> {
        let one = |(index, value)| nested(context, value, depth).within(format_args!("{name}.filters[{index}]"));
        filters.into_iter().enumerate().map(one).collect()
    };
    let missing = || Refused::new("comparison", "is missing");
    match filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison })) => {
            let compared = comparison.ok_or_else(missing).and_then(|value| compare(context, value));
            let (comparison, number) = compared.within("status_code_filter")?;
            // What is no status is compared all the same.
            Ok(LogFilter::Status(comparison, u16::try_from(number).unwrap_or(u16::MAX)))
        }
        Some(FilterSpecifier::DurationFilter(DurationFilter { comparison })) => {
            let compared = comparison.ok_or_else(missing).and_then(|value| compare(context, value));
            let (comparison, number) = compared.within("duration_filter")?;
            Ok(LogFilter::Duration(comparison, u64::from(number)))
        }
        Some(FilterSpecifier::NotHealthCheckFilter(NotHealthCheckFilter {})) => Ok(LogFilter::NotHealthCheck),
        Some(FilterSpecifier::TraceableFilter(TraceableFilter {})) => Ok(LogFilter::Traceable),
        Some(FilterSpecifier::RuntimeFilter(value)) => share(context, value).within("runtime_filter"),
        Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags })) => {
            let mut wanted = ResponseFlags::none();
            for flag in flags {
                let unknown = || Refused::new("response_flag_filter.flags", format!("`{flag}` is not known"));
                wanted |= ResponseFlags::named(&flag).ok_or_else(unknown)?;
            }
            Ok(LogFilter::Flags(wanted))
        }
        Some(FilterSpecifier::HeaderFilter(HeaderFilter { header: Some(value) })) => {
            Ok(LogFilter::Header(matcher::header(value).within("header_filter.header")?))
        }
        Some(FilterSpecifier::HeaderFilter(HeaderFilter { header: None })) => {
            Err(Refused::new("header_filter.header", "is missing"))
        }
        Some(FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter { statuses, exclude })) => {
            let bits =
                bits(&statuses, 16).ok_or_else(|| Refused::new("grpc_status_filter.statuses", "is no status"))?;
            Ok(LogFilter::GrpcStatus { statuses: bits, exclude })
        }
        Some(FilterSpecifier::LogTypeFilter(LogTypeFilter { types, exclude })) => {
            let bits = bits(&types, 31).ok_or_else(|| Refused::new("log_type_filter.types", "is not known"))?;
            Ok(LogFilter::Kinds { kinds: bits, exclude })
        }
        Some(FilterSpecifier::AndFilter(AndFilter { filters })) => Ok(LogFilter::All(each(filters, "and_filter")?)),
        Some(FilterSpecifier::OrFilter(OrFilter { filters })) => Ok(LogFilter::Any(each(filters, "or_filter")?)),
        Some(FilterSpecifier::MetadataFilter(value)) => metadata(value).within("metadata_filter"),
        Some(FilterSpecifier::ExtensionFilter(_)) => {
            Err(Refused::new("extension_filter", "is not supported by this proxy"))
        }
        None => Err(Refused::new("filter_specifier", "is missing")),
    }
}

/// A condition on what filters found out. Without one it holds, or not, as is said for what is not there.
fn metadata(value: MetadataFilter) -> Converted<LogFilter> {
    let MetadataFilter { matcher: wanted, match_if_key_not_found } = value;
    let missing = match_if_key_not_found.unwrap_or(true);
    let Some(wanted) = wanted else {
        return Ok(if missing { LogFilter::All(Vec::new()) } else { LogFilter::Any(Vec::new()) });
    };
    Ok(LogFilter::Metadata { wanted: matcher::metadata(wanted).within("matcher")?, missing })
}

fn bits(numbers: &[i32], most: u32) -> Option<u32> {
    numbers.iter().try_fold(0, |bits, number| {
        let number = u32::try_from(*number).ok().filter(|number| *number <= most)?;
        Some(bits | 1 << number)
    })
}

fn compare(context: &Context, value: ComparisonFilter) -> Converted<(Comparison, u32)> {
    let ComparisonFilter { op, value } = value;
    let RuntimeUInt32 { default_value, runtime_key } =
        value.ok_or_else(|| Refused::new("comparison.value", "is missing"))?;
    let comparison = match Op::try_from(op) {
        Ok(Op::Eq) => Comparison::Equal,
        Ok(Op::Ge) => Comparison::AtLeast,
        Ok(Op::Le) => Comparison::AtMost,
        Ok(Op::Ne) => Comparison::Unequal,
        Err(_) => return Err(Refused::new("comparison.op", format!("{op} is not known to this proxy"))),
    };
    let set = context.runtime.number(&runtime_key).filter(|number| (0.0..=f64::from(u32::MAX)).contains(number));
    Ok((comparison, set.map_or(default_value, |number| number as u32)))
}

fn share(context: &Context, value: RuntimeFilter) -> Converted<LogFilter> {
    let RuntimeFilter { runtime_key, percent_sampled, use_independent_randomness } = value;
    let FractionalPercent { numerator, denominator } = percent_sampled.unwrap_or_default();
    let denominator = match DenominatorType::try_from(denominator) {
        Ok(DenominatorType::Hundred) => 100,
        Ok(DenominatorType::TenThousand) => 10_000,
        Ok(DenominatorType::Million) => 1_000_000,
        Err(_) => return Err(Refused::new("percent_sampled.denominator", "is not known to this proxy")),
    };
    let share = match context.runtime.number(&runtime_key) {
        // A number alone is per cent, whatever the default counts by.
        Some(percent) => (percent.clamp(0.0, 100.0) as u32, 100),
        None => (numerator, denominator),
    };
    Ok(LogFilter::Share { numerator: share.0, denominator: share.1, independent: use_independent_randomness })
}
