//! The committed files are those that the types make, and `crdgen --check` tells when they are not.
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use leno_crds::generate::{CHART_DIR, CONFIG_DIR, files};

fn crdgen(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crdgen")).arg("--root").arg(root).args(arguments).output().unwrap()
}

#[test]
fn committed_files_when_compared_with_the_types_then_are_up_to_date() {
    let root = PathBuf::from("..");
    let output = crdgen(&root, &["--check"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn check_when_a_file_differs_or_is_left_over_then_fails_and_names_the_remedy() {
    let root = tempfile::tempdir().unwrap();
    assert!(crdgen(root.path(), &[]).status.success());
    assert!(crdgen(root.path(), &["--check"]).status.success());

    let changed = root.path().join(CONFIG_DIR).join("virtualservices.yaml");
    std::fs::write(&changed, "changed").unwrap();
    std::fs::write(root.path().join(CHART_DIR).join("crd-gone.yaml"), "").unwrap();
    std::fs::write(root.path().join(CHART_DIR).join("deployment.yaml"), "").unwrap();
    let output = crdgen(root.path(), &["--check"]);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["virtualservices.yaml (differs)", "crd-gone.yaml (no longer made)", "make generate"] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert!(!message.contains("deployment.yaml"), "{message}");

    assert!(crdgen(root.path(), &[]).status.success());
    assert!(crdgen(root.path(), &["--check"]).status.success());
    assert!(root.path().join(CHART_DIR).join("deployment.yaml").exists());
}

#[test]
fn chart_template_when_made_then_is_guarded_and_kept() {
    let files = files().unwrap();
    let template = &files[&format!("{CHART_DIR}/crd-virtualservices.yaml")];
    assert!(template.contains("{{- if and .Values.crds.install .Values.crds.istio }}"));
    assert!(template.contains("helm.sh/resource-policy: keep"));
    assert!(template.trim_end().ends_with("{{- end }}"));
}
