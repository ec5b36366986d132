//! Secrets that policies name, and that do not hold what is needed.

use leno_core::policy::{Authorities, Certificate, ClientTls, DestinationPolicy, SimpleTls, TrafficPolicy};
use leno_core::{Condition, Finding, ObjectKey, Reason, Severity, Snapshot};

use super::findings::{Named, Object as _};

/// What is wrong with the Secrets of a policy. Sidecars that have had them once go on with what they have.
pub(super) fn missing(snapshot: &Snapshot, policy: &DestinationPolicy) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut look = |held: &TrafficPolicy, field: String| {
        if let Some(ClientTls::Simple(settings)) = &held.tls
            && let Some((secret, wrong)) = wrong(snapshot, settings)
        {
            let message = format!("{wrong}; sidecars that do not have it yet cannot connect (Secret {secret})");
            for (origin, generation) in policy.origins() {
                let object = Named { origin, generation };
                let reason = Reason::CredentialNotFound;
                found.push(object.finding(Condition::ResolvedRefs, Severity::Failing, reason, &field, message.clone()));
            }
        }
    };
    let subsets = policy.subsets.iter().enumerate();
    let subsets = subsets.map(|(at, subset)| (format!("spec.subsets[{at}].trafficPolicy"), &subset.policy));
    for (field, ported) in std::iter::once(("spec.trafficPolicy".to_owned(), &policy.policy)).chain(subsets) {
        look(&ported.all, format!("{field}.tls.credentialName"));
        for (port, held) in &ported.ports {
            // A port of its own has what the others have where it says nothing.
            if held.tls != ported.all.tls {
                look(held, format!("{field}.portLevelSettings (port {port}).tls.credentialName"));
            }
        }
    }
    found
}

/// The Secret, and what it lacks.
fn wrong<'a>(snapshot: &Snapshot, settings: &'a SimpleTls) -> Option<(&'a ObjectKey, String)> {
    let shown = match &settings.certificate {
        Some(Certificate::Secret(secret)) => Some(secret),
        _ => None,
    };
    let trusted = match &settings.trust.authorities {
        Authorities::Secret(secret) if !settings.unverified => Some(secret),
        _ => None,
    };
    let secret = shown.or(trusted)?;
    let held = match snapshot.credentials.get(secret) {
        None => return Some((secret, "the Secret has not been read yet".to_owned())),
        Some(Err(reason)) => return Some((secret, reason.clone())),
        Some(Ok(held)) => held,
    };
    let lacks =
        |what: &str, text: &str, begin: &str| (!text.contains(begin)).then(|| format!("put {what} as PEM into it"));
    let certificate = "-----BEGIN CERTIFICATE-----";
    let wrong = shown
        .and_then(|_| lacks("the client's certificate (tls.crt)", &held.chain, certificate))
        .or_else(|| shown.and_then(|_| lacks("the client's key (tls.key)", &held.key, "PRIVATE KEY-----")))
        .or_else(|| trusted.and_then(|_| lacks("the server's authorities (ca.crt)", &held.authorities, certificate)));
    wrong.map(|wrong| (secret, wrong))
}
