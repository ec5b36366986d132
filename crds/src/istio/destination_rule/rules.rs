//! CEL rules about traffic policies.
//!
//! They stand on what *holds* a policy (the spec, a subset, a port) and not on the policy's own parts, where they would be
//! easier to read: the API server multiplies the cost of a rule by how many objects of its kind fit into a request, and
//! of the parts, whose smallest form is `{}`, four times as many fit as of their holders, which have a required field.

use serde_json::{Value, json};

/// A rule on a policy: the part that it is about, the expression with `P` for the path to the policy, and the message.
struct Rule {
    part: &'static str,
    expression: &'static str,
    message: &'static str,
}

/// The rules on a policy wherever it stands.
const ANY: [Rule; 5] = [
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
];

/// The rules on a policy that is not for a single port.
const WHOLE: [Rule; 1] = [Rule {
    part: "tunnel",
    expression: "!has(P.tunnel) || !has(P.proxyProtocol)",
    message: "tunnel and proxyProtocol exclude each other",
}];

/// The rules on what has a field `trafficPolicy`.
pub(super) fn of_policy_holder() -> Value {
    let rule = |rule: &Rule| {
        let expression = rule.expression.replace("P.", "self.trafficPolicy.");
        json!({
            "rule": format!("!has(self.trafficPolicy) || {expression}"),
            "message": rule.message,
            "fieldPath": format!(".trafficPolicy.{}", rule.part),
        })
    };
    ANY.iter().chain(&WHOLE).map(rule).collect()
}

/// The rules on the policy of a port, whose parts stand in it directly.
pub(super) fn of_port() -> Value {
    let rule = |rule: &Rule| {
        json!({
            "rule": rule.expression.replace("P.", "self."),
            "message": rule.message,
            "fieldPath": format!(".{}", rule.part),
        })
    };
    ANY.iter().map(rule).collect()
}
