//! The CustomResourceDefinitions of the Istio kinds: names, versions, columns, and the schemas of their types.
//!
//! They are put together here rather than by kube's derive, because the three versions of a kind share one schema and
//! the schema is made by [`crate::schema`].

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceConversion, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use kube::api::ObjectMeta;
use kube::core::Resource;
use schemars::JsonSchema;
use serde_json::json;

use crate::istio::destination_rule::{DestinationRule, DestinationRuleSpec};
use crate::istio::status::IstioStatus;
use crate::istio::virtual_service::{VirtualService, VirtualServiceSpec};
use crate::schema::structural;

/// The versions of `networking.istio.io`: the first is stored, all are served, and none differs from another.
const ISTIO_VERSIONS: [&str; 3] = ["v1", "v1beta1", "v1alpha3"];

/// A definition could not be made: a schema holds something that Kubernetes' types do not.
#[derive(Debug, thiserror::Error)]
#[error("the schema of {kind} is not one that Kubernetes takes: {source}; look at crds/src/schema.rs")]
pub struct DefinitionError {
    /// The kind whose schema it is.
    pub kind: String,
    /// What the schema's reader said.
    pub source: serde_json::Error,
}

/// The definition of [`VirtualService`].
///
/// # Errors
///
/// [`DefinitionError`], which is a mistake in this crate.
pub fn virtual_service() -> Result<CustomResourceDefinition, DefinitionError> {
    istio_kind::<VirtualService, VirtualServiceSpec>(
        "vs",
        vec![
            column("Gateways", ".spec.gateways", "The gateways and sidecars that apply these routes"),
            column("Hosts", ".spec.hosts", "The hosts whose traffic is routed"),
            programmed_column(),
            age_column(),
        ],
    )
}

/// The definition of [`DestinationRule`].
///
/// # Errors
///
/// [`DefinitionError`], which is a mistake in this crate.
pub fn destination_rule() -> Result<CustomResourceDefinition, DefinitionError> {
    istio_kind::<DestinationRule, DestinationRuleSpec>(
        "dr",
        vec![column("Host", ".spec.host", "The service that the rule is for"), programmed_column(), age_column()],
    )
}

fn istio_kind<K, S>(
    short_name: &str,
    columns: Vec<CustomResourceColumnDefinition>,
) -> Result<CustomResourceDefinition, DefinitionError>
where
    K: Resource<DynamicType = ()>,
    S: JsonSchema,
{
    let (group, kind, plural) = (K::group(&()), K::kind(&()), K::plural(&()));
    let mut status = structural::<IstioStatus>();
    // Istio keeps unknown fields of a status; so do we, since its components may share the cluster.
    status["x-kubernetes-preserve-unknown-fields"] = json!(true);
    let spec = structural::<S>();
    let root = json!({
        "type": "object",
        "description": spec["description"],
        "required": ["spec"],
        "properties": { "spec": spec, "status": status },
    });
    let schema: JSONSchemaProps =
        serde_json::from_value(root).map_err(|source| DefinitionError { kind: kind.to_string(), source })?;

    let version = |(index, name): (usize, &&str)| CustomResourceDefinitionVersion {
        name: (*name).to_owned(),
        served: true,
        storage: index == 0,
        schema: Some(CustomResourceValidation { open_api_v3_schema: Some(schema.clone()) }),
        additional_printer_columns: Some(columns.clone()),
        subresources: Some(CustomResourceSubresources {
            status: Some(CustomResourceSubresourceStatus(json!({}))),
            ..CustomResourceSubresources::default()
        }),
        ..CustomResourceDefinitionVersion::default()
    };
    Ok(CustomResourceDefinition {
        metadata: ObjectMeta { name: Some(format!("{plural}.{group}")), ..ObjectMeta::default() },
        spec: CustomResourceDefinitionSpec {
            group: group.into_owned(),
            names: CustomResourceDefinitionNames {
                kind: kind.to_string(),
                list_kind: Some(format!("{kind}List")),
                plural: plural.into_owned(),
                singular: Some(kind.to_lowercase()),
                short_names: Some(vec![short_name.to_owned()]),
                categories: Some(vec!["istio-io".to_owned(), "networking-istio-io".to_owned()]),
            },
            scope: "Namespaced".to_owned(),
            conversion: Some(CustomResourceConversion { strategy: "None".to_owned(), webhook: None }),
            versions: ISTIO_VERSIONS.iter().enumerate().map(version).collect(),
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    })
}

fn column(name: &str, json_path: &str, description: &str) -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: "string".to_owned(),
        json_path: json_path.to_owned(),
        description: Some(description.to_owned()),
        ..CustomResourceColumnDefinition::default()
    }
}

fn programmed_column() -> CustomResourceColumnDefinition {
    column(
        "Programmed",
        ".status.conditions[?(@.type==\"Programmed\")].status",
        "Whether the object is in force on all proxies that it concerns",
    )
}

fn age_column() -> CustomResourceColumnDefinition {
    CustomResourceColumnDefinition {
        type_: "date".to_owned(),
        ..column("Age", ".metadata.creationTimestamp", "When the object was created")
    }
}
