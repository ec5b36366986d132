//! CEL rules about traffic policies.
//!
//! They stand on what *holds* a policy (the spec, a subset) and not on the policy's own parts, where they would be
//! easier to read: the API server multiplies the cost of a rule by how many objects of its kind fit into a request, and
//! of the parts, whose smallest form is `{}`, four times as many fit as of subsets, which have a required field. What
//! is too dear for the subsets, and all that concerns single ports, is in the schema only, which refuses with a message
//! that names the field but not the reason; and what no schema can say is a finding in the object's status.

use serde_json::{Value, json};

/// A rule on a policy: the part that it is about, the expression with `P.` for the path to the policy, and the message.
struct Rule {
    part: &'static str,
    expression: &'static str,
    message: &'static str,
}

/// Rules that are affordable on every subset.
const EVERYWHERE: [Rule; 4] = [
    Rule {
        part: "tls",
        expression: "!has(P.tls) || !has(P.tls.mode) || P.tls.mode != 'MUTUAL' || has(P.tls.credentialName) \
                     || (has(P.tls.clientCertificate) && has(P.tls.privateKey))",
        message: "MUTUAL needs clientCertificate and privateKey, or credentialName",
    },
    Rule {
        part: "connectionPool",
        expression: "!has(P.connectionPool) || !has(P.connectionPool.http) \
                     || !has(P.connectionPool.http.useClientProtocol) || !P.connectionPool.http.useClientProtocol \
                     || !has(P.connectionPool.http.h2UpgradePolicy) \
                     || P.connectionPool.http.h2UpgradePolicy != 'UPGRADE'",
        message: "http.useClientProtocol and http.h2UpgradePolicy UPGRADE exclude each other",
    },
    Rule {
        part: "outlierDetection",
        expression: "!has(P.outlierDetection) || !has(P.outlierDetection.consecutiveLocalOriginFailures) \
                     || P.outlierDetection.consecutiveLocalOriginFailures == 0 \
                     || (has(P.outlierDetection.splitExternalLocalOriginErrors) \
                     && P.outlierDetection.splitExternalLocalOriginErrors)",
        message: "consecutiveLocalOriginFailures needs splitExternalLocalOriginErrors: true",
    },
    Rule {
        part: "tunnel",
        expression: "!has(P.tunnel) || !has(P.proxyProtocol)",
        message: "tunnel and proxyProtocol exclude each other",
    },
];

/// Rules on the policy of the whole service, of which there is one, so that cost does not matter.
const WHOLE_SERVICE: [Rule; 3] = [
    Rule {
        part: "loadBalancer",
        expression: "!has(P.loadBalancer) || !has(P.loadBalancer.localityLbSetting) \
                     || !has(P.loadBalancer.localityLbSetting.distribute) \
                     || !has(P.loadBalancer.localityLbSetting.failover) \
                     || P.loadBalancer.localityLbSetting.distribute.size() == 0 \
                     || P.loadBalancer.localityLbSetting.failover.size() == 0",
        message: "localityLbSetting.distribute and localityLbSetting.failover exclude each other",
    },
    Rule {
        part: "loadBalancer",
        expression: "!has(P.loadBalancer) || !has(P.loadBalancer.consistentHash) \
                     || !has(P.loadBalancer.consistentHash.minimumRingSize) \
                     || P.loadBalancer.consistentHash.minimumRingSize == 0 \
                     || !(has(P.loadBalancer.consistentHash.ringHash) || has(P.loadBalancer.consistentHash.maglev))",
        message: "consistentHash.minimumRingSize (deprecated) and ringHash or maglev exclude each other",
    },
    Rule {
        part: "portLevelSettings",
        expression: "!has(P.portLevelSettings) || P.portLevelSettings.all(port, !has(port.tls) || !has(port.tls.mode) \
                     || port.tls.mode != 'MUTUAL' || has(port.tls.credentialName) \
                     || (has(port.tls.clientCertificate) && has(port.tls.privateKey)))",
        message: "tls.mode MUTUAL needs clientCertificate and privateKey, or credentialName",
    },
];

/// The rules on a subset.
pub(super) fn of_subset() -> Value {
    EVERYWHERE.iter().map(written).collect()
}

/// The rules on the spec.
pub(super) fn of_spec() -> Value {
    EVERYWHERE.iter().chain(&WHOLE_SERVICE).map(written).collect()
}

fn written(rule: &Rule) -> Value {
    let expression = rule.expression.replace("P.", "self.trafficPolicy.");
    json!({
        "rule": format!("!has(self.trafficPolicy) || {expression}"),
        "message": rule.message,
        "fieldPath": format!(".trafficPolicy.{}", rule.part),
    })
}
