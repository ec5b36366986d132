//! The CustomResourceDefinition.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation, JSONSchemaProps,
};
use kube::api::ObjectMeta;
use kube::core::Resource;
use serde_json::json;

use super::{MeshInstall, MeshInstallSpec, MeshInstallStatus};
use crate::definition::DefinitionError;
use crate::schema::structural;

/// The definition of [`MeshInstall`].
///
/// # Errors
///
/// [`DefinitionError`], which is a mistake in this crate.
pub fn definition() -> Result<CustomResourceDefinition, DefinitionError> {
    let (group, kind, plural) = (MeshInstall::group(&()), MeshInstall::kind(&()), MeshInstall::plural(&()));
    let root = json!({
        "type": "object",
        "description": "A service mesh in this cluster. The operator keeps it as written in `spec`.",
        "required": ["spec"],
        "properties": {
            "spec": structural::<MeshInstallSpec>(),
            "status": structural::<MeshInstallStatus>(),
            // The name becomes part of others' names (`leno-control-plane-<name>`, 63 characters) and a label's value.
            "metadata": {
                "type": "object",
                "properties": { "name": { "type": "string", "maxLength": 32, "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$" } },
            },
        },
    });
    let schema: JSONSchemaProps =
        serde_json::from_value(root).map_err(|source| DefinitionError { kind: kind.to_string(), source })?;
    let column = |name: &str, json_path: &str, description: &str| CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: if name == "Age" { "date" } else { "string" }.to_owned(),
        json_path: json_path.to_owned(),
        description: Some(description.to_owned()),
        ..CustomResourceColumnDefinition::default()
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
                short_names: Some(vec!["mesh".to_owned()]),
                categories: Some(vec!["leno".to_owned()]),
            },
            scope: "Cluster".to_owned(),
            versions: vec![CustomResourceDefinitionVersion {
                name: MeshInstall::version(&()).into_owned(),
                served: true,
                storage: true,
                schema: Some(CustomResourceValidation { open_api_v3_schema: Some(schema) }),
                additional_printer_columns: Some(vec![
                    column("Version", ".status.version", "The release that every replica runs"),
                    column("Phase", ".status.phase", "What goes on, in one word"),
                    column("Wave", ".status.upgrade.wave.summary", "The wave of an upgrade that is under way"),
                    column("Ready", ".status.conditions[?(@.type==\"Ready\")].status", "Whether the mesh serves"),
                    column("Control Plane", ".status.controlPlane.summary", "Replicas that serve, of those wanted"),
                    column("Data Plane", ".status.dataPlane.summary", "Injected pods that are current, of all"),
                    column("Age", ".metadata.creationTimestamp", "When the object was created"),
                ]),
                subresources: Some(CustomResourceSubresources {
                    status: Some(CustomResourceSubresourceStatus(json!({}))),
                    ..CustomResourceSubresources::default()
                }),
                ..CustomResourceDefinitionVersion::default()
            }],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definition_when_made_then_is_cluster_scoped_with_the_promised_columns() {
        let definition = definition().unwrap();
        assert_eq!(definition.spec.scope, "Cluster");
        let columns = definition.spec.versions[0].additional_printer_columns.clone().unwrap();
        let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["Version", "Phase", "Wave", "Ready", "Control Plane", "Data Plane", "Age"]);
    }
}
