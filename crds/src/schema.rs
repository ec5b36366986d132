//! From Rust types to the structural schema that the API server wants.
//!
//! `schemars` writes general JSON Schema. A CustomResourceDefinition takes less: no references, no `null` type, no
//! alternatives that carry types. [`structural`] bridges the two, and keeps two promises that kube's own conversion
//! does not: a field is `nullable` only where its type says so (elsewhere the API server drops a `null`, as with
//! Istio's own definitions), and nothing is defaulted.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Map, Value, json};

use crate::istio::duration::GO_DURATION;
use crate::istio::virtual_service::StringMatch;

/// The `oneOf` of a group of fields of which at most one may be given. It costs the API server nothing, unlike a CEL
/// rule, so that it can stand inside lists of any length.
pub fn at_most_one(fields: &[&str]) -> Value {
    let required: Vec<Value> = fields.iter().map(|field| json!({ "required": [field] })).collect();
    let mut alternatives = vec![json!({ "not": { "anyOf": required } })];
    alternatives.extend(required);
    Value::Array(alternatives)
}

/// A duration without a lower bound, where Istio has none either: 0 has a meaning there.
pub fn unchecked_duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "pattern": GO_DURATION })
}

/// What a name of a header is made of, or another token of RFC 9110.
pub const TOKEN: &str = "^[-!#$%&'*+.^_`|~0-9A-Za-z]+$";

/// What a value of a header may hold: no line breaks and no other control characters but tabs.
pub const HEADER_VALUE: &str = r"^[^\x00-\x08\x0a-\x1f\x7f]*$";

/// What a path or a host may hold that requests are sent with: as [`HEADER_VALUE`], and no spaces.
pub const IN_REQUESTS: &str = r"^[^\x00-\x20\x7f]*$";

/// Texts that are written into one header, separated by commas.
pub fn header_values(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "string", "pattern": HEADER_VALUE } })
}

/// HTTP statuses from 100 to 599.
pub fn http_statuses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "items": { "type": "integer", "minimum": 100, "maximum": 599 } })
}

/// Shares of traffic by locality, from 1 to 100 each.
pub fn locality_shares(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "additionalProperties": { "type": "integer", "minimum": 1, "maximum": 100 },
    })
}

/// A CEL rule, and what the API server says when it does not hold.
pub type Rule = (&'static str, &'static str);

/// CEL rules with their messages. The API server multiplies the cost of a rule by the number of times that it may
/// apply: about a million inside a list without a bound, so that such a rule can be no more than a few steps long.
pub fn rules(rules: &[Rule]) -> Value {
    rules.iter().map(|(rule, message)| json!({ "rule": escape_reserved(rule), "message": message })).collect()
}

/// Words that CEL reserves and that are field names in Kubernetes' manner. The API server knows such a field as
/// `__namespace__`; as `self.namespace` it compiles, but the cost of a rule then counts as unbounded.
const RESERVED: [&str; 4] = ["namespace", "package", "import", "function"];

/// Writes the selection of fields whose names CEL reserves as the API server wants it.
fn escape_reserved(rule: &str) -> String {
    let mut escaped = rule.to_owned();
    for word in RESERVED {
        let selection = format!(".{word}");
        let mut pieces = escaped.split(&selection);
        let mut joined = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let longer = piece.starts_with(|next: char| next.is_alphanumeric() || next == '_');
            joined.push_str(&if longer { selection.clone() } else { format!(".__{word}__") });
            joined.push_str(piece);
        }
        escaped = joined;
    }
    escaped
}

/// A host that traffic is sent to: letters, digits, `-` and `.`, a `*` in front at most, and not `*` alone.
pub fn destination_host(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 255,
        "pattern": "^[-*.a-zA-Z0-9]+$",
        "x-kubernetes-validations": rules(&[("self != '*'", "the destination * is no service; name one")]),
    })
}

/// Namespaces that see an object: names, `.` or `*`.
pub fn export_to(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 524288,
        "items": {
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "pattern": r"^(\*|\.|[a-zA-Z0-9]([-a-zA-Z0-9]*[a-zA-Z0-9])?)$",
        },
        "x-kubernetes-validations": rules(&[(
            "self.size() < 2 || !self.exists(target, target == '*')",
            "* exports to all namespaces and must stand alone",
        )]),
    })
}

/// A service port without bounds of ours, where Istio has none either.
pub fn any_port(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "number": {
                "type": "integer",
                "minimum": 0,
                "maximum": u32::MAX,
                "description": "The port number, 1 to 65535.",
            },
        },
    })
}

/// A [`StringMatch`] of a path, whose prefix may be empty: every path.
pub fn uri_match(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = StringMatch::json_schema(generator);
    if let Some(prefix) = schema.pointer_mut("/properties/prefix").and_then(Value::as_object_mut) {
        prefix.remove("minLength");
    }
    schema
}

/// Matches of web origins. An origin that matches nothing in particular is refused, so none is allowed by mistake.
pub fn origins(generator: &mut SchemaGenerator) -> Schema {
    let mut origin = StringMatch::json_schema(generator);
    if let Some(exact) = origin.pointer_mut("/properties/exact").and_then(Value::as_object_mut) {
        exact.insert("minLength".into(), json!(1));
    }
    let kinds = ["exact", "prefix", "regex"].map(|kind| json!({ "required": [kind] }));
    origin.insert("oneOf".into(), Value::Array(kinds.into()));
    json_schema!({ "type": "array", "items": origin })
}

/// Labels that select workloads: keys are not empty, and there are no wildcards.
pub fn selector_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 4096,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [
                { "rule": "!self.contains('*')", "message": "wildcards are not allowed in label values" },
            ],
        },
        "x-kubernetes-validations": [
            { "rule": "self.all(key, !key.contains('*'))", "message": "wildcards are not allowed in label keys" },
            { "rule": "self.all(key, key.size() != 0)", "message": "label keys must not be empty" },
        ],
    })
}

/// An integer that may be written as a string.
pub fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "anyOf": [{ "type": "integer" }, { "type": "string" }], "x-kubernetes-int-or-string": true })
}

/// Status conditions. As strict as Istio's (all but the type may be missing), so that what others wrote stays valid; a
/// list keyed by type, so that writers of different conditions do not overwrite each other.
pub fn conditions(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type"],
            "properties": {
                "type": { "type": "string", "description": "What the condition is about, for example `Programmed`." },
                "status": { "type": "string", "description": "`True`, `False` or `Unknown`." },
                "reason": { "type": "string", "description": "Why, in one CamelCase word, for programs." },
                "message": { "type": "string", "description": "Why, and what to do about it, for people." },
                "observedGeneration": {
                    "anyOf": [{ "type": "integer" }, { "type": "string" }],
                    "x-kubernetes-int-or-string": true,
                    "description": "The generation of the object that the condition is about.",
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When `status` last changed.",
                },
                "lastProbeTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "When the condition was last looked at. Leno does not set it.",
                },
            },
        },
    })
}

/// The structural schema of a type, as a CustomResourceDefinition takes it.
pub fn structural<T: JsonSchema>() -> Value {
    let generator = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true).into_generator();
    let mut schema = generator.into_root_schema_for::<T>().to_value();
    if let Value::Object(root) = &mut schema {
        root.remove("$schema");
        root.remove("title");
    }
    simplify(&mut schema);
    schema
}

/// Rewrites one schema and all inside it.
fn simplify(schema: &mut Value) {
    let Value::Object(object) = schema else { return };
    unwrap_optional(object);
    if let Some(Value::String(description)) = object.get_mut("description") {
        *description = one_line_per_paragraph(description);
    }
    unwrap_documented_enum(object);
    drop_null(object);
    drop_unknown_format(object);
    for key in ["properties", "patternProperties"] {
        if let Some(Value::Object(properties)) = object.get_mut(key) {
            properties.values_mut().for_each(simplify);
        }
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = object.get_mut(key) {
            simplify(inner);
        }
    }
    // `false` is what serde's `deny_unknown_fields` gives; structural schemas prune instead.
    if object.get("additionalProperties") == Some(&Value::Bool(false)) {
        object.remove("additionalProperties");
    }
}

/// `anyOf: [T, null]`, the optional form of a type that is not simple, is `T`.
fn unwrap_optional(object: &mut Map<String, Value>) {
    let Some(Value::Array(alternatives)) = object.get("anyOf") else { return };
    let is_null = |alternative: &Value| {
        alternative.get("type") == Some(&json!("null"))
            || *alternative == json!({ "enum": [null], "nullable": true })
            || *alternative == json!({ "const": null })
    };
    if alternatives.len() != 2 || !alternatives.iter().any(is_null) {
        return;
    }
    let Some(Value::Object(inner)) = alternatives.iter().find(|alternative| !is_null(alternative)).cloned() else {
        return;
    };
    object.remove("anyOf");
    for (key, value) in inner {
        // What is said about the field is more specific than what is said about its type.
        object.entry(key).or_insert(value);
    }
}

/// `oneOf: [{const, description}, …]`, which schemars makes of an enum with documented variants, becomes `enum`, and
/// the documentation of the variants moves into the description, where `kubectl explain` shows it.
fn unwrap_documented_enum(object: &mut Map<String, Value>) {
    let Some(Value::Array(variants)) = object.get("oneOf") else { return };
    let mut names = Vec::new();
    let mut lines = Vec::new();
    for variant in variants {
        let name = match (variant.get("const"), variant.get("enum")) {
            (Some(Value::String(name)), _) => name,
            (_, Some(Value::Array(one))) if one.len() == 1 => match one.first() {
                Some(Value::String(name)) => name,
                _ => return,
            },
            _ => return,
        };
        if let Some(Value::String(description)) = variant.get("description") {
            lines.push(format!("`{name}`: {}", one_line_per_paragraph(description)));
        }
        names.push(json!(name));
    }
    object.remove("oneOf");
    object.insert("type".into(), json!("string"));
    object.insert("enum".into(), Value::Array(names));
    let intro = object.get("description").and_then(Value::as_str).unwrap_or_default();
    let description = format!("{intro}\n{}", lines.join("\n")).trim().to_owned();
    object.insert("description".into(), json!(description));
}

/// Takes `null` out of types and enums. A `nullable` that stays is one that the type asked for.
fn drop_null(object: &mut Map<String, Value>) {
    if let Some(Value::Array(types)) = object.get_mut("type") {
        types.retain(|name| name != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            object.insert("type".into(), only);
        }
    }
    if let Some(Value::Array(values)) = object.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
}

/// The API server knows few formats and warns about others (`uint32`), whose bounds are there in any case.
fn drop_unknown_format(object: &mut Map<String, Value>) {
    const KNOWN: [&str; 7] = ["int32", "int64", "double", "float", "date-time", "byte", "duration"];
    if let Some(Value::String(format)) = object.get("format")
        && !KNOWN.contains(&format.as_str())
    {
        object.remove("format");
    }
}

/// Joins the lines of a paragraph, which are broken for the reader of the source only.
fn one_line_per_paragraph(text: &str) -> String {
    text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An animal.
    #[derive(serde::Serialize, JsonSchema)]
    #[serde(rename_all = "camelCase")]
    #[allow(dead_code)]
    struct Animal {
        /// Its name
        /// in full.
        name: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        legs: Option<u32>,
        #[schemars(extend("nullable" = true))]
        tame: Option<bool>,
        /// How it moves.
        gait: Option<Gait>,
    }

    #[derive(serde::Serialize, JsonSchema)]
    #[serde(rename_all = "UPPERCASE")]
    #[allow(dead_code)]
    enum Gait {
        /// Slow.
        Walk,
        /// Fast.
        Run,
    }

    #[test]
    fn schema_when_made_structural_then_has_no_null_and_no_alternatives_of_types() {
        assert_eq!(
            structural::<Animal>(),
            json!({
                "description": "An animal.",
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": { "description": "Its name in full.", "type": "string" },
                    "legs": { "type": "integer", "minimum": 0 },
                    "tame": { "type": "boolean", "nullable": true },
                    "gait": {
                        "description": "How it moves.\n`WALK`: Slow.\n`RUN`: Fast.",
                        "type": "string",
                        "enum": ["WALK", "RUN"],
                    },
                },
            })
        );
    }

    #[test]
    fn rule_when_a_field_is_a_reserved_word_then_is_escaped() {
        assert_eq!(
            rules(&[("has(self.namespace) || self.namespaces.size() > 0", "m")]),
            json!([{ "rule": "has(self.__namespace__) || self.namespaces.size() > 0", "message": "m" }])
        );
    }

    #[test]
    fn at_most_one_when_two_fields_then_allows_none_or_either() {
        assert_eq!(
            at_most_one(&["a", "b"]),
            json!([
                { "not": { "anyOf": [{ "required": ["a"] }, { "required": ["b"] }] } },
                { "required": ["a"] },
                { "required": ["b"] },
            ])
        );
    }
}
