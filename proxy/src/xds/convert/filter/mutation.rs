//! Changes of headers, trailers and queries by a filter.

use super::super::common::{header_name, header_op, header_text};
use super::super::{Context, Converted, Refused, Within as _, refuse, refuse_set};
use crate::config::{HeaderMutation, HeaderOp};
use leno_xds::envoy::config::common::mutation_rules::v3 as xds;
use leno_xds::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use leno_xds::envoy::config::core::v3::{
    KeyValueAppend, KeyValueMutation, KeyValuePair, key_value_append::KeyValueAppendAction,
};
use leno_xds::envoy::extensions::filters::http::header_mutation::v3::Mutations;
use prost_types::value::Kind;

/// Changes of one level.
pub fn mutations(context: &mut Context, value: Mutations) -> Converted<HeaderMutation> {
    let Mutations {
        request_mutations,
        query_parameter_mutations,
        response_mutations,
        response_trailers_mutations,
        request_trailers_mutations,
        formatters,
    } = value;
    refuse!(formatters);
    Ok(HeaderMutation {
        request: list(context, request_mutations, "request_mutations")?,
        query: query(context, query_parameter_mutations)?,
        request_trailers: list(context, request_trailers_mutations, "request_trailers_mutations")?,
        response: list(context, response_mutations, "response_mutations")?,
        response_trailers: list(context, response_trailers_mutations, "response_trailers_mutations")?,
        most_specific_wins: false,
    })
}

/// Changes of a query in their order.
fn query(context: &mut Context, values: Vec<KeyValueMutation>) -> Converted<Vec<HeaderOp>> {
    let change = |(index, value)| parameter(context, value).within(format_args!("query_parameter_mutations[{index}]"));
    values.into_iter().enumerate().map(change).collect()
}

fn parameter(context: &mut Context, value: KeyValueMutation) -> Converted<HeaderOp> {
    let KeyValueMutation { append, remove } = value;
    let Some(append) = append else {
        return match remove.is_empty() {
            true => Err(Refused::new("append", "is missing")),
            false => Ok(HeaderOp::Remove(remove.into())),
        };
    };
    let KeyValueAppend { record, entry, action } = append;
    refuse_set(&entry, "append.entry")?;
    let Some(KeyValuePair { key, value }) = record else { return Err(Refused::new("append.record", "is missing")) };
    // What the name of a parameter cannot hold would be another parameter, or no path any more.
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic() && !b"&=#".contains(&byte)) {
        return Err(Refused::new("append.record.key", format!("`{key}` is no name of a parameter")));
    }
    let Some(Kind::StringValue(text)) = value.and_then(|value| value.kind) else {
        return Err(Refused::new("append.record.value", "is no text"));
    };
    let text = header_text(context, &text, true).within("append.record.value")?;
    let key = key.into();
    Ok(match KeyValueAppendAction::try_from(action) {
        Ok(KeyValueAppendAction::AppendIfExistsOrAdd) => HeaderOp::Append(key, text),
        Ok(KeyValueAppendAction::AddIfAbsent) => HeaderOp::AddIfAbsent(key, text),
        Ok(KeyValueAppendAction::OverwriteIfExistsOrAdd) => HeaderOp::Set(key, text),
        Ok(KeyValueAppendAction::OverwriteIfExists) => HeaderOp::SetIfPresent(key, text),
        Err(_) => return Err(Refused::new("append.action", "is not known to this proxy")),
    })
}

/// Changes in their order.
pub fn list(context: &mut Context, values: Vec<xds::HeaderMutation>, field: &str) -> Converted<Vec<HeaderOp>> {
    let mut ops = Vec::with_capacity(values.len());
    for (index, xds::HeaderMutation { action }) in values.into_iter().enumerate() {
        let within = format!("{field}[{index}]");
        match action {
            Some(Action::Remove(name)) => {
                ops.push(HeaderOp::Remove(header_name(&name).within("remove").within(within)?));
            }
            Some(Action::Append(option)) => {
                ops.extend(header_op(context, option).within("append").within(within)?);
            }
            Some(Action::RemoveOnMatch(_)) => {
                return Err(Refused::new("remove_on_match", "is not supported by this proxy").within(within));
            }
            None => return Err(Refused::new("action", "is missing").within(within)),
        }
    }
    Ok(ops)
}
