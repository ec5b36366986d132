//! How the answers that the proxy gives by itself are changed.

use super::common::{header_ops, inline};
use super::{Context, Converted, Refused, Within as _, access_log};
use crate::config::{BodyFormat, LocalReplies, Mapper};
use leno_xds::envoy::config::core::v3::SubstitutionFormatString;
use leno_xds::envoy::extensions::filters::network::http_connection_manager::v3::{LocalReplyConfig, ResponseMapper};

/// Reads the configuration.
pub fn local_replies(context: &mut Context, value: LocalReplyConfig) -> Converted<LocalReplies> {
    let LocalReplyConfig { mappers, body_format } = value;
    let mut replies = LocalReplies::default();
    for (index, mapper) in mappers.into_iter().enumerate() {
        replies.mappers.push(self::mapper(context, mapper).within(format_args!("mappers[{index}]"))?);
    }
    replies.body = body_format.map(|value| format(context, value)).transpose().within("body_format")?;
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
        filter: access_log::filter(context, wanted).within("filter")?,
        status: status.transpose()?,
        body: body.map(Into::into),
        format: body_format_override.map(|value| format(context, value)).transpose().within("body_format_override")?,
        headers: header_ops(context, headers_to_add, Vec::new(), "headers")?,
    })
}

/// How the body of an answer of the proxy's own is written.
pub(super) fn format(context: &mut Context, value: SubstitutionFormatString) -> Converted<BodyFormat> {
    if value.format.is_none() {
        return Err(Refused::new("format", "is missing"));
    }
    let content_type = value.content_type.clone();
    let format = access_log::format(context, value)?;
    let format = access_log::answered_anywhere(context, format)?;
    let content_type = match content_type.is_empty() {
        true if format.is_json() => "application/json".to_owned(),
        true => "text/plain".to_owned(),
        false => content_type,
    };
    Ok(BodyFormat { content_type: super::edge::header_value(content_type, "content_type")?.into(), format })
}
