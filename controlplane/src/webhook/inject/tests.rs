use super::*;
use std::path::Path;

fn mesh() -> Mesh {
    Mesh {
        image: "docker.io/leno/proxy:0.1.0".into(),
        envoy_image: "docker.io/leno/envoy:0.1.0".into(),
        engine: Engine::Leno,
        pull_policy: "IfNotPresent".into(),
        revision: "default".into(),
        namespace: "leno-system".into(),
        trust_domain: "cluster.local".into(),
        resources: Resources::default(),
    }
}

/// Applies the patch as the API server does, as far as this webhook makes patches.
fn apply(pod: &Value, decision: Decision) -> Value {
    let mut after = pod.clone();
    let patch = match decision {
        Decision::Patch(patch) => patch,
        Decision::Skip(_) => Vec::new(),
        Decision::Refuse(message) => panic!("refused: {message}"),
    };
    for operation in patch {
        assert_eq!(operation["op"], "add");
        let (parent, member) = operation["path"].as_str().unwrap().rsplit_once('/').unwrap();
        after.pointer_mut(parent).unwrap()[member] = operation["value"].clone();
    }
    after
}

fn injected(pod: &Value) -> Value {
    apply(pod, inject(pod, &mesh()))
}

/// Every `testdata/inject/<case>.in.yaml` must give its `<case>.out.yaml`; `UPDATE_GOLDEN=1` writes them.
#[test]
fn pod_when_injected_then_is_the_golden_one() {
    let dir = Path::new("testdata/inject");
    let mut cases = 0;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let Some(case) = path.file_name().unwrap().to_str().unwrap().strip_suffix(".in.yaml").map(str::to_owned) else {
            continue;
        };
        cases += 1;
        let pod: Value = serde_yaml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let after = serde_yaml::to_string(&injected(&pod)).unwrap();
        let golden = dir.join(format!("{case}.out.yaml"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &after).unwrap();
        }
        let wanted = std::fs::read_to_string(&golden).unwrap_or_default();
        assert!(
            after == wanted,
            "{case}: differs from {}; if that is right, run with UPDATE_GOLDEN=1:\n{after}",
            golden.display()
        );
        let typed: Result<k8s_openapi::api::core::v1::Pod, _> = serde_json::from_value(injected(&pod));
        assert!(typed.is_ok(), "{case}: {typed:?}");
        assert_eq!(injected(&injected(&pod)), injected(&pod), "{case}: a second run changes the pod");
    }
    assert!(cases >= 4, "only {cases} cases in {}", dir.display());
}

#[test]
fn pod_when_injected_again_with_a_new_container_then_only_its_probes_are_new() {
    let mut pod = injected(&json!({"metadata": {"name": "a"}, "spec": {"containers": [
        {"name": "c", "livenessProbe": {"httpGet": {"port": 8080}}},
    ]}}));
    let late = json!({"name": "late", "readinessProbe": {"tcpSocket": {"port": 9090}}});
    pod["spec"]["containers"].as_array_mut().unwrap().push(late);
    let again = injected(&pod);
    assert_eq!(again["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 15100);
    assert_eq!(again["spec"]["containers"][1]["readinessProbe"]["tcpSocket"]["port"], 15101);
    assert_eq!(
        again["spec"]["initContainers"][0]["args"],
        json!(["capture", "--probe", "15100=8080", "--probe", "15101=9090"])
    );
    assert_eq!(again["spec"]["initContainers"].as_array().unwrap().len(), 3);
}

#[test]
fn pod_when_mesh_or_annotation_name_an_engine_then_the_annotation_decides() {
    let pod = |engine: Option<&str>| {
        let annotations = engine.map_or(json!({}), |engine| json!({"mesh.leno.dev/engine": engine}));
        json!({"metadata": {"annotations": annotations}, "spec": {"containers": []}})
    };
    let engines = [
        (Engine::Leno, None, "leno"),
        (Engine::Leno, Some("envoy"), "envoy"),
        (Engine::Envoy, None, "envoy"),
        (Engine::Envoy, Some("leno"), "leno"),
    ];
    for (engine, said, wanted) in engines {
        let (pod, mesh) = (pod(said), Mesh { engine, ..mesh() });
        let after = apply(&pod, inject(&pod, &mesh));
        let image = if wanted == "envoy" { &mesh.envoy_image } else { &mesh.image };
        let containers = after["spec"]["initContainers"].as_array().unwrap();
        let images: Vec<_> = containers.iter().map(|container| container["image"].as_str().unwrap()).collect();
        assert_eq!(images, [&mesh.image, image, image], "capture needs no engine: {said:?} in {engine:?}");
        let noted = &after["metadata"]["annotations"]["mesh.leno.dev/injected-engine"];
        assert_eq!(noted.as_str(), (wanted == "envoy").then_some("envoy"));
        // The shape does not depend on the engine.
        let args: Vec<_> = containers.iter().map(|container| &container["args"]).collect();
        assert_eq!(args[1..], [&json!(["run", "--slot", "0"]), &json!(["run", "--slot", "1"])]);
        assert_eq!(apply(&after, inject(&after, &mesh)), after, "a second run changes nothing");
    }
}

#[test]
fn pod_when_it_opts_out_or_uses_the_nodes_network_then_stays_as_it_is() {
    for pod in [
        json!({"metadata": {"labels": {"sidecar.istio.io/inject": "false"}}, "spec": {}}),
        json!({"metadata": {"annotations": {"sidecar.istio.io/inject": "false"}}, "spec": {}}),
        json!({"metadata": {"annotations": {"mesh.leno.dev/inject": "disabled"}}, "spec": {}}),
        json!({"metadata": {}, "spec": {"hostNetwork": true}}),
    ] {
        assert!(matches!(inject(&pod, &mesh()), Decision::Skip(_)), "{pod}");
    }
}

#[test]
fn pod_when_an_annotation_makes_no_sense_then_is_refused_with_its_name() {
    for (key, value) in [
        ("traffic.sidecar.istio.io/excludeOutboundPorts", "99999"),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", "10.0.0.0/99"),
        ("sidecar.istio.io/proxyCPU", "much"),
        ("mesh.leno.dev/engine", "nginx"),
        ("sidecar.istio.io/userVolume", "{not json"),
        ("sidecar.istio.io/userVolume", r#"{"leno-run": {"emptyDir": {}}}"#),
        ("sidecar.istio.io/userVolumeMount", r#"[{"mountPath": "/etc/certs"}]"#),
        ("sidecar.istio.io/userVolumeMount", r#"{"certs": {"mountPath": "/run/leno/x"}}"#),
        ("sidecar.istio.io/userVolumeMount", r#"{"certs": {"mountPath": "etc"}}"#),
        ("sidecar.istio.io/userVolumeMount", r#"{"certs": {"mountPath": "/run"}}"#),
        ("sidecar.istio.io/userVolumeMount", r#"{"certs": {"mountPath": "/run/x/../leno"}}"#),
    ] {
        let pod = json!({"metadata": {"annotations": {key: value}}, "spec": {}});
        match inject(&pod, &mesh()) {
            Decision::Refuse(message) => assert!(message.contains(key), "{message}"),
            other => panic!("{key}: {other:?}"),
        }
    }
}

#[test]
fn pod_when_it_has_volumes_for_its_sidecar_then_both_slots_have_them_and_the_app_does_not() {
    for volumes in
        [r#"{"certs": {"secret": {"secretName": "bank"}}}"#, r#"[{"name": "certs", "secret": {"secretName": "bank"}}]"#]
    {
        let mount = r#"{"certs": {"mountPath": "/etc/certs", "readOnly": true}, "data": {"mountPath": "/data"}}"#;
        let pod = json!({
            "metadata": {"annotations": {
                "sidecar.istio.io/userVolume": volumes, "sidecar.istio.io/userVolumeMount": mount,
            }},
            "spec": {"containers": [{"name": "app"}], "volumes": [{"name": "data", "emptyDir": {}}]},
        });
        let after = injected(&pod);
        let named: Vec<_> = after["spec"]["volumes"].as_array().unwrap().iter().map(|volume| &volume["name"]).collect();
        assert_eq!(named, ["data", "certs", "leno-token", "leno-podinfo", "leno-run"]);
        for slot in [1, 2] {
            let mounts = after["spec"]["initContainers"][slot]["volumeMounts"].as_array().unwrap();
            let paths: Vec<_> = mounts.iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
            assert_eq!(paths[3..], ["/etc/certs", "/data"]);
        }
        assert!(after["spec"]["containers"][0].get("volumeMounts").is_none());
        assert_eq!(injected(&after), after, "a second run changes nothing");
    }
}

#[test]
fn proxy_when_the_mesh_and_the_pod_say_resources_then_the_pod_wins() {
    let mut mesh = mesh();
    mesh.resources =
        serde_json::from_value(json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}))
            .unwrap();
    let pod = json!({"metadata": {"annotations": {"sidecar.istio.io/proxyCPU": "200m"}}, "spec": {"containers": []}});
    let after = apply(&pod, inject(&pod, &mesh));
    assert_eq!(
        after["spec"]["initContainers"][1]["resources"],
        json!({"requests": {"cpu": "200m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}})
    );
}
