//! The files that are made from the types: one definition a kind for `kubectl apply`, and the same as chart templates.
//!
//! Everything here is a pure function from the types to file names and texts; the `crdgen` binary writes and compares.

use std::collections::BTreeMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use crate::definition::{self, DefinitionError};
use crate::meshinstall;

/// Where the plain definitions go, from the root of the repository.
pub const CONFIG_DIR: &str = "config/crd";
/// Where the chart templates go, from the root of the repository.
pub const CHART_DIR: &str = "helm/leno/templates";
/// What the names of chart templates made here begin with; other templates are left alone.
pub const CHART_PREFIX: &str = "crd-";

const HEADER: &str = "Made from the Rust types in crds/src by `make generate`. Do not edit.";

/// Who else may own a kind, and hence when the chart installs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Leno's own kinds.
    Leno,
    /// Kinds that a cluster with Istio has already: `crds.istio=false` leaves them alone.
    Istio,
}

impl Owner {
    fn condition(self) -> &'static str {
        match self {
            Owner::Leno => ".Values.crds.install",
            Owner::Istio => "and .Values.crds.install .Values.crds.istio",
        }
    }
}

/// A file could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// A definition could not be made.
    #[error(transparent)]
    Definition(#[from] DefinitionError),
    /// A definition could not be written as YAML.
    #[error("the definition of {name} cannot be written as YAML: {source}")]
    Yaml {
        /// The definition's name.
        name: String,
        /// What the writer said.
        source: serde_yaml::Error,
    },
}

/// All definitions, with who may own them.
///
/// # Errors
///
/// [`GenerateError`], which is a mistake in this crate.
pub fn definitions() -> Result<Vec<(Owner, CustomResourceDefinition)>, GenerateError> {
    Ok(vec![
        (Owner::Leno, meshinstall::definition()?),
        (Owner::Istio, definition::virtual_service()?),
        (Owner::Istio, definition::destination_rule()?),
    ])
}

/// All files, by path from the root of the repository.
///
/// # Errors
///
/// [`GenerateError`], which is a mistake in this crate.
pub fn files() -> Result<BTreeMap<String, String>, GenerateError> {
    let mut files = BTreeMap::new();
    for (owner, mut crd) in definitions()? {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let plural = crd.spec.names.plural.clone();
        crd.metadata.labels = Some(labels());
        files.insert(format!("{CONFIG_DIR}/{plural}.yaml"), format!("# {HEADER}\n{}", yaml(&name, &crd)?));
        files.insert(format!("{CHART_DIR}/{CHART_PREFIX}{plural}.yaml"), chart_template(owner, &name, crd)?);
    }
    Ok(files)
}

fn labels() -> BTreeMap<String, String> {
    [("app.kubernetes.io/name", "leno"), ("app.kubernetes.io/part-of", "leno")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
}

/// A chart template: guarded, kept on uninstall, and with everything that Helm would take for a directive quoted.
fn chart_template(owner: Owner, name: &str, mut crd: CustomResourceDefinition) -> Result<String, GenerateError> {
    // Deleting a definition deletes every object of the kind, so an uninstalled chart leaves it.
    let keep = ("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    crd.metadata.annotations.get_or_insert_default().extend([keep]);
    let body = quote_for_helm(&yaml(name, &crd)?);
    Ok(format!("{{{{- /* {HEADER} */}}}}\n{{{{- if {} }}}}\n{body}{{{{- end }}}}\n", owner.condition()))
}

fn yaml(name: &str, crd: &CustomResourceDefinition) -> Result<String, GenerateError> {
    let failed = |source| GenerateError::Yaml { name: name.to_owned(), source };
    let mut value = serde_yaml::to_value(crd).map_err(failed)?;
    whole_numbers(&mut value);
    serde_yaml::to_string(&value).map_err(failed)
}

/// Kubernetes' types hold bounds as floating point; `65535` reads better than `65535.0`.
fn whole_numbers(value: &mut serde_yaml::Value) {
    match value {
        serde_yaml::Value::Number(number) => {
            if let Some(whole) = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < 1e15) {
                *value = serde_yaml::Value::from(whole as i64);
            }
        }
        serde_yaml::Value::Sequence(values) => values.iter_mut().for_each(whole_numbers),
        serde_yaml::Value::Mapping(values) => values.iter_mut().for_each(|(_, value)| whole_numbers(value)),
        _ => {}
    }
}

/// Writes `{{` and `}}` so that Helm renders them as they stand.
fn quote_for_helm(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(position) = rest.find("{{").into_iter().chain(rest.find("}}")).min() {
        let (before, found) = rest.split_at(position);
        let (braces, after) = found.split_at(2);
        quoted.push_str(before);
        quoted.push_str(&format!("{{{{ \"{braces}\" }}}}"));
        rest = after;
    }
    quoted.push_str(rest);
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_when_quoted_for_helm_then_renders_as_it_stood() {
        assert_eq!(quote_for_helm("a {{ b }} c {}"), r#"a {{ "{{" }} b {{ "}}" }} c {}"#);
        assert_eq!(quote_for_helm("{{{}}}"), r#"{{ "{{" }}{{{ "}}" }}}"#);
    }

    #[test]
    fn files_when_made_twice_then_are_equal() -> Result<(), GenerateError> {
        assert_eq!(files()?, files()?);
        Ok(())
    }
}
