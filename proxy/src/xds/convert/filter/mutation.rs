//! Header changes by a filter.

use super::super::common::{header_name, header_op};
use super::super::{Context, Converted, Refused, Within as _, refuse};
use crate::config::{HeaderMutation, HeaderOp};
use leno_xds::envoy::config::common::mutation_rules::v3 as xds;
use leno_xds::envoy::config::common::mutation_rules::v3::header_mutation::Action;
use leno_xds::envoy::extensions::filters::http::header_mutation::v3::Mutations;

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
    refuse!(query_parameter_mutations, response_trailers_mutations, request_trailers_mutations, formatters);
    Ok(HeaderMutation {
        request: list(context, request_mutations, "request_mutations")?,
        response: list(context, response_mutations, "response_mutations")?,
        most_specific_wins: false,
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
