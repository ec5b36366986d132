//! The rules for values that Envoy's `.proto` files state as options (`validate.rules`, of protoc-gen-validate): Envoy refuses
//! a configuration that breaks one, before it looks at what it says.
//!
//! Patterns of text and rules for unique items are not looked at here; whoever reads such a field has rules of his own.

use crate::json::type_name;
use prost_reflect::{
    DynamicMessage, ExtensionDescriptor, FieldDescriptor, Kind, MapKey, MessageDescriptor, OneofDescriptor,
    ReflectMessage, Value,
};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Deeper messages are not looked at; what reads them has a bound of its own.
const DEPTH: usize = 100;

/// What the options of a kind of message say: decoding them anew for each message would be most of the work.
#[derive(Default)]
struct Plan {
    /// Rules of fields, by number.
    rules: HashMap<u32, Arc<DynamicMessage>>,
    /// Fields that are looked at where they are not set: they must be there, or have a value all the same.
    unset: Vec<(FieldDescriptor, bool)>,
    /// Alternatives of which one must be chosen.
    choices: Vec<OneofDescriptor>,
}

/// By the kind's full name. No more than the API has.
static KNOWN: Mutex<Option<HashMap<String, Arc<Plan>>>> = Mutex::new(None);

/// Gives the memory of what is known back.
pub(crate) fn release() {
    KNOWN.lock().unwrap_or_else(PoisonError::into_inner).take();
}

/// A rule that is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {what}")]
pub struct Broken {
    /// The field, from the message on.
    pub path: String,
    /// What it must be.
    pub what: String,
}

/// Looks at a message and all inside it.
///
/// # Errors
/// The first rule that is broken.
pub(crate) fn check(message: &DynamicMessage) -> Result<(), Broken> {
    look(message, false)
}

/// Looks at a message in its encoded form and all inside it, more strictly than Envoy: what is a header's name or value may
/// hold no control character at all, since not every proxy takes them.
///
/// # Errors
/// The first rule that is broken.
pub fn check_strictly<M: prost::Message + prost::Name>(message: &M) -> Result<(), Broken> {
    match crate::json::dynamic(&M::full_name(), &message.encode_to_vec()) {
        Ok(message) => look(&message, true),
        Err(error) => Err(Broken { path: String::new(), what: error.to_string() }),
    }
}

fn look(message: &DynamicMessage, strict: bool) -> Result<(), Broken> {
    let pool = message.descriptor().parent_pool().clone();
    let (Some(fields), Some(required)) =
        (pool.get_extension_by_name("validate.rules"), pool.get_extension_by_name("validate.required"))
    else {
        return Ok(());
    };
    Checker { fields, required, strict }.message(message, "", 0)
}

struct Checker {
    /// The option of fields that holds their rules.
    fields: ExtensionDescriptor,
    /// The option of alternatives of which one must be chosen.
    required: ExtensionDescriptor,
    /// Whether headers are looked at more strictly than Envoy does.
    strict: bool,
}

fn broken(path: &str, what: impl Into<String>) -> Result<(), Broken> {
    Err(Broken { path: path.to_owned(), what: what.into() })
}

fn within(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

impl Checker {
    fn message(&self, message: &DynamicMessage, path: &str, depth: usize) -> Result<(), Broken> {
        if depth > DEPTH {
            return Ok(());
        }
        let descriptor = message.descriptor();
        if descriptor.full_name() == "google.protobuf.Any" {
            return self.any(message, path, depth);
        }
        let plan = self.plan(&descriptor);
        for (field, value) in message.fields() {
            let rules = plan.rules.get(&field.number()).map(|rules| &**rules);
            if rules.is_some() || matches!(field.kind(), Kind::Message(_)) {
                self.value(value, &field, rules, &within(path, field.name()), depth)?;
            }
        }
        for (field, required) in plan.unset.iter().filter(|(field, _)| !message.has_field(field)) {
            let path = within(path, field.name());
            if *required {
                return broken(&path, "is missing");
            }
            let rules = plan.rules.get(&field.number()).map(|rules| &**rules);
            self.value(&message.get_field(field), field, rules, &path, depth)?;
        }
        let open = |choice: &&OneofDescriptor| !choice.fields().any(|field| message.has_field(&field));
        match plan.choices.iter().find(open) {
            Some(missing) => {
                let names: Vec<String> = missing.fields().map(|field| field.name().to_owned()).collect();
                broken(&within(path, missing.name()), format!("is missing: one of {}", names.join(", ")))
            }
            None => Ok(()),
        }
    }

    fn any(&self, message: &DynamicMessage, path: &str, depth: usize) -> Result<(), Broken> {
        let Ok(any) = message.transcode_to::<prost_types::Any>() else { return Ok(()) };
        let held = message.descriptor().parent_pool().get_message_by_name(type_name(&any.type_url));
        match held.map(|descriptor| DynamicMessage::decode(descriptor, any.value.as_slice())) {
            Some(Ok(held)) => self.message(&held, path, depth + 1),
            _ => Ok(()),
        }
    }

    fn plan(&self, of: &MessageDescriptor) -> Arc<Plan> {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let known = known.get_or_insert_default();
        if let Some(plan) = known.get(of.full_name()) {
            return plan.clone();
        }
        let mut plan = Plan::default();
        for field in of.fields() {
            let options = field.options();
            let rules = options.has_extension(&self.fields).then(|| options.get_extension(&self.fields));
            let Some(rules) = rules.as_deref().and_then(Value::as_message) else { continue };
            let required = field.supports_presence() && is_required(rules);
            if field.containing_oneof().is_none() && (required || !field.supports_presence()) {
                plan.unset.push((field.clone(), required));
            }
            plan.rules.insert(field.number(), Arc::new(rules.clone()));
        }
        let must = |choice: &OneofDescriptor| {
            !choice.is_synthetic() && choice.options().get_extension(&self.required).as_bool() == Some(true)
        };
        plan.choices = of.oneofs().filter(must).collect();
        let plan = Arc::new(plan);
        known.insert(of.full_name().to_owned(), plan.clone());
        plan
    }

    fn value(
        &self,
        value: &Value,
        field: &FieldDescriptor,
        rules: Option<&DynamicMessage>,
        path: &str,
        depth: usize,
    ) -> Result<(), Broken> {
        match value {
            Value::List(values) => {
                let own = rules.and_then(|rules| part(rules, "repeated"));
                if let Some(own) = own {
                    count(values.len(), own, "min_items", "max_items", path)?;
                }
                let items = own.and_then(|own| part(own, "items"));
                for (index, value) in values.iter().enumerate() {
                    self.one(value, items, &format!("{path}[{index}]"), depth)?;
                }
                Ok(())
            }
            Value::Map(entries) => {
                let own = rules.and_then(|rules| part(rules, "map"));
                if let Some(own) = own {
                    count(entries.len(), own, "min_pairs", "max_pairs", path)?;
                }
                let side = |name: &str| own.and_then(|own| part(own, name));
                let (keys, values) = (side("keys"), side("values"));
                for (key, value) in entries {
                    if let MapKey::String(key) = key {
                        self.one(&Value::String(key.clone()), keys, path, depth)?;
                    }
                    self.one(value, values, path, depth)?;
                }
                Ok(())
            }
            Value::EnumNumber(number) => match (field.kind(), rules.and_then(|rules| part(rules, "enum"))) {
                (Kind::Enum(names), Some(own)) if flag(own, "defined_only") && names.get_value(*number).is_none() => {
                    broken(path, format!("{number} is no value of {}", names.name()))
                }
                (_, Some(own)) => listed(f64::from(*number), own, path),
                _ => Ok(()),
            },
            value => self.one(value, rules, path, depth),
        }
    }

    /// One value; of a wrapper, what it holds.
    fn one(&self, value: &Value, rules: Option<&DynamicMessage>, path: &str, depth: usize) -> Result<(), Broken> {
        if let Value::Message(message) = value {
            let descriptor = message.descriptor();
            return match descriptor.full_name().strip_prefix("google.protobuf.") {
                Some("Struct" | "Value" | "ListValue" | "Timestamp" | "Empty") => Ok(()),
                Some("Duration") => match rules.and_then(|rules| part(rules, "duration")) {
                    Some(own) => bounds(seconds(message), own, "s", path),
                    None => Ok(()),
                },
                Some("Any") | None => {
                    let skips = rules.and_then(|rules| part(rules, "message")).is_some_and(|own| flag(own, "skip"));
                    if skips { Ok(()) } else { self.message(message, path, depth + 1) }
                }
                Some(_) => match message.get_field_by_name("value") {
                    Some(held) => scalar(&held, rules, path, self.strict),
                    None => Ok(()),
                },
            };
        }
        scalar(value, rules, path, self.strict)
    }
}

fn scalar(value: &Value, rules: Option<&DynamicMessage>, path: &str, strict: bool) -> Result<(), Broken> {
    let Some(rules) = rules else { return Ok(()) };
    match value {
        Value::String(text) => part(rules, "string").map_or(Ok(()), |own| self::text(text, own, path, strict)),
        Value::Bytes(bytes) => match part(rules, "bytes") {
            Some(own) => count(bytes.len(), own, "min_len", "max_len", path),
            None => Ok(()),
        },
        Value::Bool(held) => match part(rules, "bool").and_then(|own| own_field(own, "const")?.as_bool()) {
            Some(wanted) if wanted != *held => broken(path, format!("must be {wanted}")),
            _ => Ok(()),
        },
        value => {
            const KINDS: [&str; 12] = [
                "uint32", "uint64", "int32", "int64", "double", "float", "sint32", "sint64", "fixed32", "fixed64",
                "sfixed32", "sfixed64",
            ];
            match (number(value), KINDS.iter().find_map(|kind| part(rules, kind))) {
                (Some(0.0), Some(own)) if flag(own, "ignore_empty") => Ok(()),
                (Some(number), Some(own)) => bounds(number, own, "", path).and_then(|()| listed(number, own, path)),
                _ => Ok(()),
            }
        }
    }
}

fn text(text: &str, own: &DynamicMessage, path: &str, strictly: bool) -> Result<(), Broken> {
    if flag(own, "ignore_empty") && text.is_empty() {
        return Ok(());
    }
    count(text.chars().count(), own, "min_len", "max_len", path)?;
    count(text.len(), own, "min_bytes", "max_bytes", path)?;
    let affix = |name: &str| own_field(own, name).and_then(|value| value.as_str().map(str::to_owned));
    if let Some(prefix) = affix("prefix").filter(|prefix| !text.starts_with(prefix)) {
        return broken(path, format!("must begin with `{prefix}`"));
    }
    if let Some(suffix) = affix("suffix").filter(|suffix| !text.ends_with(suffix)) {
        return broken(path, format!("must end with `{suffix}`"));
    }
    if let Some(allowed) = own_field(own, "in") {
        let allowed: Vec<&str> = allowed.as_list().into_iter().flatten().filter_map(Value::as_str).collect();
        if !allowed.is_empty() && !allowed.contains(&text) {
            return broken(path, format!("must be one of {}", allowed.join(", ")));
        }
    }
    let strict = own_field(own, "strict").and_then(|strict| strict.as_bool()).unwrap_or(true);
    let header = own_field(own, "well_known_regex").and_then(|kind| kind.as_enum_number()).unwrap_or(0);
    let loose = |byte: u8| !matches!(byte, 0 | b'\n' | b'\r');
    let good = match (header, strict || strictly) {
        // A field that may be empty is one that is not set.
        (1, true) if !strict && text.is_empty() => true,
        (1, true) => {
            let name = text.strip_prefix(':').unwrap_or(text);
            let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_|~`".contains(&byte);
            !name.is_empty() && name.bytes().all(token)
        }
        (2, true) => text.bytes().all(|byte| byte == b'\t' || !byte.is_ascii_control()),
        (1 | 2, false) => text.bytes().all(loose),
        _ => true,
    };
    if good { Ok(()) } else { broken(path, "has a character that no header has") }
}

/// Whether the field must be there.
fn is_required(rules: &DynamicMessage) -> bool {
    ["message", "duration", "timestamp", "any"]
        .iter()
        .any(|kind| part(rules, kind).is_some_and(|own| flag(own, "required")))
}

fn own_field<'a>(message: &'a DynamicMessage, name: &str) -> Option<Cow<'a, Value>> {
    let field = message.descriptor().get_field_by_name(name)?;
    message.has_field(&field).then(|| message.get_field(&field))
}

fn part<'a>(message: &'a DynamicMessage, name: &str) -> Option<&'a DynamicMessage> {
    match own_field(message, name)? {
        Cow::Borrowed(Value::Message(part)) => Some(part),
        _ => None,
    }
}

fn flag(message: &DynamicMessage, name: &str) -> bool {
    own_field(message, name).and_then(|value| value.as_bool()).unwrap_or(false)
}

fn seconds(duration: &DynamicMessage) -> f64 {
    let part = |name: &str| match duration.get_field_by_name(name).as_deref() {
        Some(Value::I64(number)) => *number as f64,
        Some(Value::I32(number)) => f64::from(*number),
        _ => 0.0,
    };
    part("seconds") + part("nanos") / 1e9
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Message(message) => Some(seconds(message)),
        // Bounds of whole numbers are far below what a float holds exactly.
        Value::U64(number) => Some(*number as f64),
        Value::I64(number) => Some(*number as f64),
        Value::U32(number) => Some(f64::from(*number)),
        Value::I32(number) | Value::EnumNumber(number) => Some(f64::from(*number)),
        Value::F32(number) => Some(f64::from(*number)),
        Value::F64(number) => Some(*number),
        _ => None,
    }
}

fn count(held: usize, own: &DynamicMessage, least: &str, most: &str, path: &str) -> Result<(), Broken> {
    let bound = |name: &str| own_field(own, name).and_then(|value| number(&value));
    match (bound(least), bound(most)) {
        (Some(least), _) if (held as f64) < least && held == 0 => broken(path, "is empty"),
        (Some(least), _) if (held as f64) < least => broken(path, format!("must have at least {least}")),
        (_, Some(most)) if held as f64 > most => broken(path, format!("must have at most {most}")),
        _ => Ok(()),
    }
}

fn bounds(held: f64, own: &DynamicMessage, unit: &str, path: &str) -> Result<(), Broken> {
    let bound = |name: &str| own_field(own, name).and_then(|value| number(&value));
    let [gt, gte, lt, lte] = ["gt", "gte", "lt", "lte"].map(bound);
    let what = match (gt, gte, lt, lte) {
        (Some(least), ..) if held <= least => format!("greater than {least}{unit}"),
        (_, Some(least), ..) if held < least => format!("at least {least}{unit}"),
        (_, _, Some(most), _) if held >= most => format!("less than {most}{unit}"),
        (.., Some(most)) if held > most => format!("at most {most}{unit}"),
        _ => return Ok(()),
    };
    broken(path, format!("is {held}{unit} and must be {what}"))
}

fn listed(held: f64, own: &DynamicMessage, path: &str) -> Result<(), Broken> {
    let list = |name: &str| -> Vec<f64> {
        let values = own_field(own, name);
        values.iter().filter_map(|values| values.as_list()).flatten().filter_map(number).collect()
    };
    let (allowed, forbidden) = (list("in"), list("not_in"));
    if forbidden.contains(&held) || !allowed.is_empty() && !allowed.contains(&held) {
        return broken(path, format!("{held} is not allowed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::envoy::config::{bootstrap::v3::Bootstrap, cluster::v3::Cluster, listener::v3::Listener};
    use crate::json::from_text;

    fn refused<M: prost::Message + prost::Name + Default>(text: &str) -> String {
        from_text::<M>(text).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn values_when_they_break_a_rule_then_field_and_rule_are_named() {
        for (text, field, what) in [
            ("{name: c, connect_timeout: 0s}", "connect_timeout", "greater than 0s"),
            ("{name: ''}", "name", "is empty"),
            ("{name: c, lb_policy: 77}", "lb_policy", "no value"),
            (
                "{name: c, common_lb_config: {healthy_panic_threshold: {value: 101}}}",
                "healthy_panic_threshold.value",
                "at most 100",
            ),
            (
                "{name: c, load_assignment: {cluster_name: c, endpoints: [{lb_endpoints: [{load_balancing_weight: 0}]}]}}",
                "load_assignment.endpoints[0].lb_endpoints[0].load_balancing_weight",
                "at least 1",
            ),
            ("{name: c, health_checks: [{timeout: 1s, interval: 1s}]}", "health_checks[0].", "is missing"),
            (
                "{name: c, max_requests_per_connection: 5, http2_protocol_options: {max_concurrent_streams: 0}}",
                "max_concurrent_streams",
                "at least 1",
            ),
        ] {
            let said = refused::<Cluster>(text);
            assert!(said.contains(field) && said.contains(what), "{text}: {said}");
        }
    }

    #[test]
    fn values_when_in_packed_messages_then_are_looked_at_too() {
        let manager = |fields: &str| {
            format!(
                "{{filter_chains: [{{filters: [{{name: hcm, typed_config: {{'@type': \
                 type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, {fields}}}}}]}}]}}"
            )
        };
        let said = refused::<Listener>(&manager("stat_prefix: ''"));
        assert!(said.contains("filter_chains[0].filters[0].typed_config.stat_prefix"), "{said}");
        let said = refused::<Listener>(&manager(
            "stat_prefix: x, route_config: {virtual_hosts: [{name: v, domains: ['*'], routes: [{match: {prefix: /}}]}]}",
        ));
        assert!(said.contains("routes[0].action: is missing: one of route, redirect"), "{said}");
        let said =
            refused::<Listener>(&manager("stat_prefix: x, route_config: {virtual_hosts: [{name: v, domains: []}]}"));
        assert!(said.contains("virtual_hosts[0].domains: is empty"), "{said}");
        assert_eq!(refused::<Listener>(&manager("stat_prefix: x, route_config: {}, max_request_headers_kb: 60")), "");
    }

    #[test]
    fn headers_when_looked_at_strictly_then_control_characters_are_refused() {
        use crate::envoy::config::core::v3::HeaderValue;
        let header = |value: &str| HeaderValue { key: "x-a".to_owned(), value: value.to_owned(), ..Default::default() };
        assert!(super::check_strictly(&header("a\u{1}")).is_err());
        assert!(super::check_strictly(&header("a\nb")).is_err());
        assert!(super::check_strictly(&header("a b")).is_ok());
        assert_eq!(refused::<HeaderValue>("{key: x-a, value: \"a\\x01\"}"), "");
    }

    #[test]
    fn bootstrap_when_nothing_is_wrong_then_is_taken() {
        assert_eq!(refused::<Bootstrap>("{node: {id: a, cluster: b}, static_resources: {clusters: [{name: c}]}}"), "");
    }
}
