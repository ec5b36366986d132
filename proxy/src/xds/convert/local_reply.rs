//! How the answers that the proxy gives by itself are changed.

use super::common::{header_ops, inline};
use super::{Context, Converted, Refused, Within as _, matcher, refuse};
use crate::config::{BodyFormat, BodyPart, Comparison, LocalReplies, Mapper, ReplyFilter};
use crate::telemetry::{LogFormat, ResponseFlags};
use leno_xds::envoy::config::accesslog::v3::{
    AccessLogFilter, AndFilter, ComparisonFilter, HeaderFilter, OrFilter, ResponseFlagFilter, StatusCodeFilter,
    access_log_filter::FilterSpecifier, comparison_filter::Op,
};
use leno_xds::envoy::config::core::v3::{RuntimeUInt32, SubstitutionFormatString, substitution_format_string::Format};
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{LocalReplyConfig, ResponseMapper};
use prost_types::{Struct, Value, value::Kind};

/// Filters inside of filters at most.
const DEPTH: usize = 8;
/// What stands for the body as it was.
const BODY: &str = "%LOCAL_REPLY_BODY%";

/// Reads the configuration.
pub fn local_replies(context: &mut Context, value: LocalReplyConfig) -> Converted<LocalReplies> {
    let LocalReplyConfig { mappers, body_format } = value;
    let mut replies = LocalReplies::default();
    for (index, mapper) in mappers.into_iter().enumerate() {
        replies.mappers.push(self::mapper(context, mapper).within(format_args!("mappers[{index}]"))?);
    }
    replies.body = body_format.map(format).transpose().within("body_format")?;
    Ok(replies)
}

fn mapper(context: &mut Context, value: ResponseMapper) -> Converted<Mapper> {
    let ResponseMapper { filter: wanted, status_code, body, body_format_override, headers_to_add } = value;
    let wanted = wanted.ok_or_else(|| Refused::new("filter", "is missing"))?;
    let status = status_code
        .map(|code| u16::try_from(code).ok().filter(|code| (200..600).contains(code)))
        .map(|code| code.ok_or_else(|| Refused::new("status_code", "is not between 200 and 599")));
    let body = body.map(inline).transpose().within("body")?;
    let body = body.map(String::from_utf8).transpose().map_err(|_| Refused::new("body", "is not UTF-8"))?;
    Ok(Mapper {
        filter: filter(wanted, DEPTH).within("filter")?,
        status: status.transpose()?,
        body: body.map(Into::into),
        format: body_format_override.map(format).transpose().within("body_format_override")?,
        headers: header_ops(context, headers_to_add, Vec::new(), "headers")?,
    })
}

fn filter(value: AccessLogFilter, depth: usize) -> Converted<ReplyFilter> {
    let AccessLogFilter { filter_specifier } = value;
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Refused::new("", format!("is nested deeper than {DEPTH}")));
    };
    let each = |filters: Vec<AccessLogFilter>, name: &str| -> Converted<Vec<ReplyFilter>> {
        let one = |(index, value)| filter(value, depth).within(format_args!("{name}.filters[{index}]"));
        filters.into_iter().enumerate().map(one).collect()
    };
    match filter_specifier {
        Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison })) => comparison
            .map_or_else(|| Err(Refused::new("comparison", "is missing")), compare)
            .within("status_code_filter"),
        Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags })) => {
            let mut wanted = ResponseFlags::none();
            for flag in flags {
                let unknown = || Refused::new("response_flag_filter.flags", format!("`{flag}` is not known"));
                wanted |= ResponseFlags::named(&flag).ok_or_else(unknown)?;
            }
            Ok(ReplyFilter::Flags(wanted))
        }
        Some(FilterSpecifier::HeaderFilter(HeaderFilter { header: Some(value) })) => {
            Ok(ReplyFilter::Header(matcher::header(value).within("header_filter.header")?))
        }
        Some(FilterSpecifier::AndFilter(AndFilter { filters })) => Ok(ReplyFilter::All(each(filters, "and_filter")?)),
        Some(FilterSpecifier::OrFilter(OrFilter { filters })) => Ok(ReplyFilter::Any(each(filters, "or_filter")?)),
        _ => Err(Refused::new("filter_specifier", "of this kind is not supported by this proxy")),
    }
}

fn compare(value: ComparisonFilter) -> Converted<ReplyFilter> {
    let ComparisonFilter { op, value } = value;
    // There is no runtime that could say something else than the default.
    let RuntimeUInt32 { default_value, runtime_key: _ } =
        value.ok_or_else(|| Refused::new("comparison.value", "is missing"))?;
    let comparison = match Op::try_from(op) {
        Ok(Op::Eq) => Comparison::Equal,
        Ok(Op::Ge) => Comparison::AtLeast,
        Ok(Op::Le) => Comparison::AtMost,
        Ok(Op::Ne) => Comparison::Unequal,
        Err(_) => return Err(Refused::new("comparison.op", format!("{op} is not known to this proxy"))),
    };
    let code = u16::try_from(default_value).map_err(|_| Refused::new("comparison.value", "is no status"))?;
    Ok(ReplyFilter::Status(comparison, code))
}

fn format(value: SubstitutionFormatString) -> Converted<BodyFormat> {
    let SubstitutionFormatString { omit_empty_values, content_type, formatters, json_format_options: _, format } =
        value;
    refuse!(omit_empty_values, formatters);
    let mut parts = Vec::new();
    let own = match format {
        Some(Format::TextFormat(text)) => {
            pieces(&text, false, &mut parts)?;
            "text/plain"
        }
        Some(Format::TextFormatSource(source)) => {
            let text = String::from_utf8(inline(source).within("text_format_source")?)
                .map_err(|_| Refused::new("text_format_source", "is not UTF-8"))?;
            pieces(&text, false, &mut parts)?;
            "text/plain"
        }
        Some(Format::JsonFormat(fields)) => {
            object(fields, &mut parts, DEPTH).within("json_format")?;
            parts.push(BodyPart::Literal("\n".into()));
            "application/json"
        }
        None => return Err(Refused::new("format", "is missing")),
    };
    let content_type = if content_type.is_empty() { own.to_owned() } else { content_type };
    Ok(BodyFormat { content_type: super::edge::header_value(content_type, "content_type")?.into(), parts })
}

/// The parts of a text: what a log could tell, and the body as it was.
fn pieces(text: &str, json: bool, parts: &mut Vec<BodyPart>) -> Converted<()> {
    for (index, piece) in text.split(BODY).enumerate() {
        if index > 0 {
            parts.push(BodyPart::Body { json });
        }
        if !piece.is_empty() {
            let compiled = LogFormat::compile(piece).map_err(|error| Refused::new("", error.to_string()))?;
            parts.push(BodyPart::Format(Box::new(compiled)));
        }
    }
    Ok(())
}

fn object(value: Struct, parts: &mut Vec<BodyPart>, depth: usize) -> Converted<()> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(Refused::new("", format!("is nested deeper than {DEPTH}")));
    };
    let literal = |text: &str| BodyPart::Literal(text.into());
    parts.push(literal("{"));
    let Struct { fields } = value;
    for (index, (name, Value { kind })) in fields.into_iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        parts.push(BodyPart::Literal(format!("{comma}{}:", serde_json::Value::from(name.as_str())).into()));
        match kind {
            None | Some(Kind::NullValue(_)) => parts.push(literal("null")),
            Some(Kind::BoolValue(value)) => parts.push(BodyPart::Literal(value.to_string().into())),
            Some(Kind::NumberValue(value)) => parts.push(BodyPart::Literal(value.to_string().into())),
            // A number alone stays a number.
            Some(Kind::StringValue(text)) if text == "%RESPONSE_CODE%" => pieces(&text, true, parts).within(name)?,
            Some(Kind::StringValue(text)) => {
                parts.push(literal("\""));
                let quoted = serde_json::Value::from(text.as_str()).to_string();
                pieces(&quoted[1..quoted.len() - 1], true, parts).within(name)?;
                parts.push(literal("\""));
            }
            Some(Kind::StructValue(inner)) => object(inner, parts, depth).within(name)?,
            Some(Kind::ListValue(_)) => return Err(Refused::new(name, "is a list, which is not supported")),
        }
    }
    parts.push(literal("}"));
    Ok(())
}
