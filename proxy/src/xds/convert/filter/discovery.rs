//! Filters whose configurations come by name (ECDS).

use super::{Router, filter, optional, unknown_type};
use crate::xds::convert::{Context, Converted, Refused, Within as _};
use crate::xds::state::Kind;
use leno_xds::envoy::config::core::v3::{ExtensionConfigSource, TypedExtensionConfig};
use prost::Name as _;
use prost_types::Any;

/// Types that one filter may allow at most.
const MAX_TYPES: usize = 64;

/// A filter of a listener whose configuration comes by name.
#[derive(Debug, Clone)]
pub struct Discovered {
    /// The name.
    pub name: String,
    /// Its configuration is of one of these types.
    types: Vec<String>,
    /// It stands at the end of its chain, where the router belongs and nothing else.
    last: bool,
    /// Whether it has a configuration for when none has come.
    pub has_default: bool,
    /// Whether its listener waits for the configuration, for a bounded time.
    pub warms: bool,
}

impl Discovered {
    /// Whether that configuration can be this filter's.
    ///
    /// # Errors
    /// When its type is none of those that were named, or the router would not be the last filter.
    pub fn check(&self, any: &Any) -> Converted<()> {
        if !self.types.contains(&any.type_url) {
            let reason = format!("is a `{}`; a listener that uses it takes {}", any.type_url, self.types.join(", "));
            return Err(Refused::new("typed_config", reason));
        }
        if is_router(any) && !self.last {
            return Err(Refused::new("typed_config", "is the router, which must be the last filter of a listener"));
        }
        Ok(())
    }
}

fn is_router(any: &Any) -> bool {
    any.type_url.rsplit('/').next() == Some(Router::full_name().as_str())
}

/// A filter that names its configuration, and that configuration: what has come, or else the default.
pub(super) fn discovered(
    context: &mut Context,
    name: &str,
    value: ExtensionConfigSource,
    last: bool,
) -> Converted<(Discovered, Option<Any>)> {
    let ExtensionConfigSource { config_source, default_config, apply_default_config_without_warming, type_urls } =
        value;
    if name.is_empty() {
        return Err(Refused::new("", "belongs to a filter without a name, by which it would be asked for"));
    }
    if type_urls.is_empty() || type_urls.len() > MAX_TYPES {
        return Err(Refused::new("type_urls", format!("has not between 1 and {MAX_TYPES} types")));
    }
    for (index, type_url) in type_urls.iter().enumerate() {
        let empty = Any { type_url: type_url.clone(), value: Vec::new() };
        if !is_router(&empty) && matches!(filter(context, "", &empty), Ok(None)) {
            return Err(unknown_type(&empty).within(format_args!("type_urls[{index}]")));
        }
    }
    if apply_default_config_without_warming && default_config.is_none() {
        return Err(Refused::new("apply_default_config_without_warming", "needs a default_config"));
    }
    let used = Discovered {
        name: name.to_owned(),
        types: type_urls,
        last,
        has_default: default_config.is_some(),
        warms: !apply_default_config_without_warming,
    };
    if let Some(default) = &default_config {
        used.check(default).map_err(|refused| Refused::new("default_config", refused.reason))?;
        usable(context, default).within("default_config")?;
    }
    context.sources.ask(Kind::Extension, name, config_source).within("config_source")?;
    // One that came for other listeners may not be for this one.
    let come = context.extensions.get(name).filter(|any| used.check(any).is_ok()).cloned();
    Ok((used, come.or(default_config)))
}

/// The configuration in a resource of that name.
///
/// # Errors
/// When it has another name, or no filter here takes it.
pub fn configuration(context: &mut Context, name: &str, value: TypedExtensionConfig) -> Converted<Any> {
    let TypedExtensionConfig { name: own, typed_config } = value;
    if own != name {
        return Err(Refused::new("name", format!("is `{own}`")));
    }
    let any = typed_config.ok_or_else(|| Refused::new("typed_config", "is missing"))?;
    usable(context, &any).within("typed_config")?;
    Ok(any)
}

fn usable(context: &mut Context, any: &Any) -> Converted<()> {
    if let Some(value) = optional::<Router>(any)? {
        return super::router(value).map(drop);
    }
    filter(context, "", any)?.map(drop).ok_or_else(|| unknown_type(any))
}
