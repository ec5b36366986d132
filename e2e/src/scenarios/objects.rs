//! Objects that cannot be right: refused when they are applied, or named in their own status, and everything else in force.

use crate::{
    bed::{Bed, condition_of, ensure},
    lab::LAB,
};
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};

const CLIENT: &str = "deploy/client";
const TOLD: Duration = Duration::from_secs(10);

fn object(kind: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": LAB}, "spec": spec,
    })
}

/// What was applied for a while.
struct Applied<'a>(&'a Bed, Vec<(String, String)>);

impl Applied<'_> {
    fn apply(&mut self, object: &Value) -> Result<()> {
        self.0.apply(&object.to_string())?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.1.push((text(&object["kind"]), text(&object["metadata"]["name"])));
        Ok(())
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        for (kind, name) in &self.1 {
            self.0.kubectl(&["-n", LAB, "delete", kind, name, "--ignore-not-found"]).ok();
        }
    }
}

/// Waits until a condition of an object is false, and its message holds all `words`.
fn told(bed: &Bed, kind: &str, name: &str, condition: &str, words: &[&str]) -> Result<()> {
    bed.wait(&format!("{condition} of {kind} {name} to be false and to name {words:?}"), TOLD, || {
        let value = bed.get(&[kind, name, "-n", LAB])?;
        let found = condition_of(&value, condition).with_context(|| format!("the status is {}", value["status"]))?;
        let message = found["message"].as_str().unwrap_or_default();
        let reason = found["reason"].as_str().unwrap_or_default();
        let named =
            words.iter().all(|word| message.contains(word)) && reason.chars().next().is_some_and(char::is_uppercase);
        ensure(found["status"] == "False" && named, || found.to_string())?;
        Ok(Some(()))
    })
}

pub(super) fn wrong_objects_are_named(bed: &Bed) -> Result<()> {
    let to = |destination: Value| json!({"hosts": ["solo"], "http": [{"route": [{"destination": destination}]}]});
    let cases = [
        (
            "VirtualService",
            "missing-host",
            to(json!({"host": "nobody"})),
            "ResolvedRefs",
            vec!["spec.http[0].route[0].destination", "nobody"],
        ),
        (
            "VirtualService",
            "missing-subset",
            to(json!({"host": "echo", "subset": "v9"})),
            "ResolvedRefs",
            vec!["spec.http[0].route[0].destination", "v9"],
        ),
        (
            "VirtualService",
            "expression",
            json!({"hosts": ["solo"], "http": [
                {"match": [{"uri": {"regex": "/items/(\\d+"}}], "route": [{"destination": {"host": "solo"}}]},
                {"route": [{"destination": {"host": "solo"}}]},
            ]}),
            "Accepted",
            vec!["spec.http[0].match[0].uri"],
        ),
        (
            "DestinationRule",
            "for-nothing",
            json!({"host": "nobody", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}),
            "ResolvedRefs",
            vec!["spec.host", "nobody"],
        ),
    ];
    for (kind, name, spec, condition, words) in cases {
        let mut applied = Applied(bed, Vec::new());
        applied.apply(&object(kind, name, spec))?;
        told(bed, kind, name, condition, &words).with_context(|| name.to_owned())?;
        // All else is in force: another object that comes after it, and other services.
        applied.apply(&object(
            "VirtualService",
            "good",
            json!({"hosts": ["echo"], "http": [{
                "headers": {"response": {"set": {"x-good": name}}}, "route": [{"destination": {"host": "echo"}}],
            }]}),
        ))?;
        bed.wait("a good object after a wrong one to be in force", TOLD, || {
            let answer = bed.ask(LAB, CLIENT, &["http://echo/"])?;
            ensure(answer["status"] == 200 && answer["headers"]["x-good"] == name, || answer["headers"].to_string())?;
            Ok(Some(()))
        })?;
    }
    Ok(())
}

pub(super) fn impossible_weights(bed: &Bed) -> Result<()> {
    let route = |weights: [i64; 2]| {
        object(
            "VirtualService",
            "weights",
            json!({"hosts": ["solo"], "http": [{"route": [
                {"destination": {"host": "solo"}, "weight": weights[0]}, {"destination": {"host": "echo"}, "weight": weights[1]},
            ]}]}),
        )
    };
    let negative = bed.apply(&route([-1, 101]).to_string());
    let words = negative.as_ref().err().map(ToString::to_string).unwrap_or_default();
    ensure(words.contains("weight"), || format!("a negative weight: {negative:?}"))?;
    let mut applied = Applied(bed, Vec::new());
    match applied.apply(&route([0, 0])) {
        Err(refused) => {
            ensure(refused.to_string().contains("weight"), || format!("weights that sum to nothing: {refused:#}"))
        }
        Ok(()) => told(bed, "VirtualService", "weights", "Accepted", &["weight"]),
    }
}

pub(super) fn two_that_claim_one_host(bed: &Bed) -> Result<()> {
    let claim = |name: &str| {
        object(
            "VirtualService",
            name,
            json!({"hosts": ["solo"], "http": [{
                "headers": {"response": {"set": {"x-winner": name}}}, "route": [{"destination": {"host": "solo"}}],
            }]}),
        )
    };
    let mut applied = Applied(bed, Vec::new());
    // The younger one has the lower name: age decides, not the alphabet. Creation times have seconds.
    applied.apply(&claim("b-older"))?;
    let born = |name: &str| {
        Ok::<_, anyhow::Error>(bed.get(&["virtualservice", name, "-n", LAB])?["metadata"]["creationTimestamp"].clone())
    };
    let first = born("b-older")?;
    bed.wait("a second to pass", Duration::from_secs(5), || {
        bed.apply(&claim("a-younger").to_string())?;
        if born("a-younger")? != first {
            return Ok(Some(()));
        }
        bed.kubectl(&["-n", LAB, "delete", "virtualservice", "a-younger"])?;
        Ok(None)
    })?;
    applied.1.push(("VirtualService".into(), "a-younger".into()));
    told(bed, "VirtualService", "a-younger", "Accepted", &["spec.hosts[0]", "b-older"])?;
    for _ in 0..20 {
        let answer = bed.ask(LAB, CLIENT, &["http://solo/"])?;
        ensure(answer["headers"]["x-winner"] == "b-older", || {
            format!("the older one must win: {}", answer["headers"])
        })?;
    }
    bed.wait_condition(&["virtualservice", "b-older", "-n", LAB], "Programmed", TOLD)?;
    Ok(())
}

pub(super) fn fields_not_in_force_are_named(bed: &Bed) -> Result<()> {
    let mut applied = Applied(bed, Vec::new());
    applied.apply(&object(
        "VirtualService",
        "gateways",
        json!({"hosts": ["solo"], "gateways": ["mesh", "edge"], "http": [{
            "headers": {"response": {"set": {"x-rest": "in-force"}}}, "route": [{"destination": {"host": "solo"}}],
        }]}),
    ))?;
    bed.wait("the status to name spec.gateways", TOLD, || {
        let value = bed.get(&["VirtualService", "gateways", "-n", LAB])?;
        ensure(value["status"].to_string().contains("spec.gateways"), || value["status"].to_string())?;
        Ok(Some(()))
    })?;
    bed.wait("the rest of the object to be in force", TOLD, || {
        let answer = bed.ask(LAB, CLIENT, &["http://solo/"])?;
        Ok((answer["headers"]["x-rest"] == "in-force").then_some(()))
    })
}

pub(super) fn policies_are_in_force(bed: &Bed) -> Result<()> {
    let mut applied = Applied(bed, Vec::new());
    let route = json!([{"destination": {"host": "solo"}}]);
    applied.apply(&object("VirtualService", "policies", json!({"hosts": ["solo"], "http": [
        {"match": [{"uri": {"exact": "/fault"}}],
            "fault": {"abort": {"percentage": {"value": 100}, "httpStatus": 418}}, "route": route},
        {"match": [{"uri": {"exact": "/late"}}],
            "fault": {"delay": {"percentage": {"value": 100}, "fixedDelay": "1s"}}, "route": route},
        {"corsPolicy": {"allowOrigins": [{"exact": "https://shop.example"}], "allowMethods": ["PUT"], "maxAge": "60s"},
            "mirror": {"host": "echo"}, "mirrorPercentage": {"value": 100}, "route": route},
    ]})))?;
    applied.apply(&object(
        "DestinationRule",
        "sticky",
        json!({"host": "echo", "trafficPolicy": {
            "loadBalancer": {"consistentHash": {"httpHeaderName": "x-user"}},
        }}),
    ))?;
    bed.wait("an injected fault", TOLD, || {
        let answer = bed.ask(LAB, CLIENT, &["http://solo/fault"])?;
        Ok((answer["status"] == 418).then_some(()))
    })?;
    let start = std::time::Instant::now();
    let late = bed.ask(LAB, CLIENT, &["http://solo/late"])?;
    ensure(late["status"] == 200 && start.elapsed() >= Duration::from_secs(1), || {
        format!("a delayed request took {:?}: {late}", start.elapsed())
    })?;
    let preflight = ["http://solo/", "-X", "OPTIONS", "-H", "origin=https://shop.example"];
    let answer = bed.ask(LAB, CLIENT, &[&preflight[..], &["-H", "access-control-request-method=PUT"]].concat())?;
    let allowed = &answer["headers"]["access-control-allow-origin"];
    ensure(answer["status"] == 200 && *allowed == "https://shop.example", || format!("a preflight: {answer}"))?;
    let pod = |user: &str| -> Result<Value> {
        let answer = bed.ask(LAB, CLIENT, &["http://echo/", "-H", &format!("x-user={user}")])?;
        Ok(answer["body"]["pod"].clone())
    };
    let all = (0..12).map(|user| pod(&user.to_string())).collect::<Result<Vec<_>>>()?;
    let again = (0..12).map(|user| pod(&user.to_string())).collect::<Result<Vec<_>>>()?;
    ensure(all == again, || format!("users moved between endpoints: {all:?}, then {again:?}"))?;
    ensure(all.iter().any(|pod| *pod != all[0]), || format!("twelve users share one of two endpoints: {all:?}"))
}

fn yaml_files(folder: &str) -> Result<Vec<PathBuf>> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| folder.to_owned())?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    ensure(!files.is_empty(), || format!("{folder} has no file"))?;
    Ok(files)
}

pub(super) fn tables_of_the_schema(bed: &Bed) -> Result<()> {
    bed.apply(&crate::lab::namespace("reviews", json!({})))?;
    let mut wrong = Vec::new();
    for file in [yaml_files("crds/tests/samples")?, yaml_files("crds/tests/accepted")?].concat() {
        if let Err(error) = bed.kubectl(&["apply", "--dry-run=server", "-f", &file.to_string_lossy()]) {
            wrong.push(format!("{} must be accepted: {error}", file.display()));
        }
    }
    for file in yaml_files("crds/tests/refused")? {
        let text = fs::read_to_string(&file)?;
        let words = text
            .lines()
            .next()
            .and_then(|line| line.strip_prefix("# refused: "))
            .with_context(|| file.display().to_string())?;
        match bed.kubectl(&["create", "--dry-run=server", "-f", &file.to_string_lossy()]) {
            Ok(_) => wrong.push(format!("{} must be refused", file.display())),
            Err(error) if error.to_string().contains(words) => {}
            Err(error) => wrong.push(format!("{} must be refused for {words:?}, and was for: {error}", file.display())),
        }
    }
    bed.kubectl(&["delete", "namespace", "reviews", "--wait=false"])?;
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

pub(super) fn every_version_is_served(bed: &Bed) -> Result<()> {
    let mut applied = Applied(bed, Vec::new());
    // Defaulting or pruning would show as a difference; tools compare specs deeply.
    let spec = json!({"host": "echo", "trafficPolicy": {"loadBalancer": {"simple": "LEAST_REQUEST"}}, "subsets": []});
    applied.apply(&object("DestinationRule", "as-written", spec.clone()))?;
    for version in ["v1", "v1beta1", "v1alpha3"] {
        let found = bed.get(&[&format!("destinationrules.{version}.networking.istio.io"), "as-written", "-n", LAB])?;
        ensure(found["spec"] == spec, || format!("{version} gives {} for {spec}", found["spec"]))?;
    }
    let explained = bed.kubectl(&["explain", "virtualservice.spec.http.route.weight"])?;
    ensure(explained.contains("DESCRIPTION") && explained.len() > 200, || {
        format!("kubectl explain teaches nothing: {explained}")
    })
}

pub(super) fn malformed_object_in_the_store(bed: &Bed) -> Result<()> {
    const CRD: &str = "virtualservices.networking.istio.io";
    let before = bed.get(&["crd", CRD])?;
    let mut loose = before.clone();
    let open = json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
    for version in loose["spec"]["versions"].as_array_mut().context("no versions")? {
        version["schema"] = open.clone();
    }
    let replace = |definition: &Value| {
        let mut definition = definition.clone();
        definition["metadata"].as_object_mut().map(|metadata| metadata.remove("resourceVersion"));
        bed.kubectl_with(&["replace", "-f", "-"], &definition.to_string()).map(drop)
    };
    let bad = object("VirtualService", "malformed", json!({"hosts": "not a list", "http": [{"route": 7}]}));
    replace(&loose)?;
    let written = bed.wait("the schema to be loose", TOLD, || bed.apply(&bad.to_string()).map(Some));
    replace(&before)?;
    let result =
        written.and_then(|_| {
            // Skipped: objects that come after it are in force, all over the mesh. The watch must have survived it.
            let mut applied = Applied(bed, Vec::new());
            for turn in ["one", "two"] {
                applied.apply(&object("VirtualService", "after", json!({"hosts": ["solo"], "http": [{
                "headers": {"response": {"set": {"x-after": turn}}}, "route": [{"destination": {"host": "solo"}}],
            }]})))?;
                bed.wait("an object after the malformed one to be in force", TOLD, || {
                    let answer = bed.ask(LAB, CLIENT, &["http://solo/"])?;
                    ensure(answer["headers"]["x-after"] == turn, || answer["headers"].to_string())?;
                    Ok(Some(()))
                })?;
            }
            bed.wait("the malformed object to be reported, in its status or by an event", TOLD, || {
                let events = bed.events("VirtualService", "malformed")?;
                let status = bed.get(&["virtualservice", "malformed", "-n", LAB])?["status"].clone();
                let told = condition_of(&json!({"status": status}), "Accepted")
                    .is_some_and(|accepted| accepted["status"] == "False");
                ensure(told || events.iter().any(|event| event.starts_with("Warning")), || {
                    format!("status {status}, events {events:?}")
                })?;
                Ok(Some(()))
            })?;
            ensure(
                bed.get(&["meshinstall", "default"])
                    .is_ok_and(|mesh| condition_of(&mesh, "Ready").is_some_and(|ready| ready["status"] == "True")),
                || "the mesh is not Ready".into(),
            )
        });
    bed.kubectl(&["-n", LAB, "delete", "virtualservice", "malformed", "--ignore-not-found"])?;
    result
}
