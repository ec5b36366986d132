//! Collects what is found in one object while it is converted, and reads the values that many fields share.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use leno_core::policy::ExportTo;
use leno_core::route::TextMatch;
use leno_core::{Condition, Finding, Host, ObjectRef, Reason, Severity, re2};

use super::Converted;
use super::not_yet::{Feature, not_yet};
use crate::istio::duration::IstioDuration;
use crate::istio::virtual_service::{StringMatch, StringMatchKind};

/// The shortest duration, as in Istio; proxies refuse 0 in many places.
const SHORTEST: Duration = Duration::from_millis(1);

/// The findings of one object.
pub(super) struct Report<'a> {
    pub(super) object: ObjectRef,
    pub(super) generation: i64,
    pub(super) created: i64,
    /// The domain of the cluster's services, for short names.
    pub(super) domain: &'a str,
    /// The object is for chosen workloads of its own namespace alone.
    pub(super) selective: bool,
    findings: Vec<Finding>,
}

impl<'a> Report<'a> {
    pub(super) fn new(kind: &str, metadata: &ObjectMeta, domain: &'a str) -> Self {
        Self {
            object: ObjectRef::new(
                "networking.istio.io",
                kind,
                metadata.namespace.clone().unwrap_or_default(),
                metadata.name.clone().unwrap_or_default(),
            ),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_millisecond()),
            domain,
            selective: false,
            findings: Vec::new(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        &self.object.namespace
    }

    /// The end: the value, unless something was refused.
    pub(super) fn finish<T>(self, value: T) -> Converted<T> {
        let refused = self.findings.iter().any(|finding| finding.condition == Condition::Accepted && finding.failing());
        Converted { value: (!refused).then_some(value), findings: self.findings }
    }

    fn add(&mut self, condition: Condition, severity: Severity, reason: Reason, field: &str, message: String) {
        self.findings.push(Finding {
            object: self.object.clone(),
            generation: self.generation,
            condition,
            severity,
            reason,
            field: field.to_owned(),
            message,
        });
    }

    /// The object is not valid.
    pub(super) fn refuse(&mut self, reason: Reason, field: &str, message: impl Into<String>) {
        self.add(Condition::Accepted, Severity::Failing, reason, field, message.into());
    }

    /// The object is valid; a person should know this nevertheless.
    pub(super) fn remark(&mut self, reason: Reason, field: &str, message: impl Into<String>) {
        self.add(Condition::Accepted, Severity::Remark, reason, field, message.into());
    }

    /// The field is set, and this release may not act upon it: reported if so. What is routed is as without the field.
    pub(super) fn uses(&mut self, feature: Feature, field: &str) {
        if let Some(message) = not_yet(feature) {
            self.add(Condition::Programmed, Severity::Remark, Reason::NotYetInForce, field, message.to_owned());
        }
    }

    /// As [`Report::uses`], for a field whose rule cannot be in force without it; gives whether it is.
    pub(super) fn needs(&mut self, feature: Feature, field: &str) -> bool {
        let missing = not_yet(feature);
        if let Some(message) = missing {
            self.add(Condition::Programmed, Severity::Failing, Reason::NotYetInForce, field, message.to_owned());
        }
        missing.is_none()
    }

    /// A duration of at least [`SHORTEST`]; `None` when there is none or it is refused.
    pub(super) fn duration(&mut self, text: Option<IstioDuration>, field: &str) -> Option<Duration> {
        let duration = self.duration_or_zero(text, field)?;
        if duration < SHORTEST {
            let message = "a duration of at least 1ms is needed; leave it out for the default";
            self.refuse(Reason::InvalidDuration, field, message);
        }
        Some(duration)
    }

    /// A duration where 0 and the shortest have a meaning; `None` when there is none or it is refused.
    pub(super) fn duration_or_zero(&mut self, text: Option<IstioDuration>, field: &str) -> Option<Duration> {
        match text?.parse() {
            Ok(duration) => Some(duration),
            Err(error) => {
                self.refuse(Reason::InvalidDuration, field, error.to_string());
                None
            }
        }
    }

    /// A host that is named as a destination.
    pub(super) fn host(&mut self, text: &str, field: &str) -> Option<Host> {
        match Host::resolve(text, &self.object.namespace, self.domain) {
            Ok(host) => Some(host),
            Err(error) => {
                self.refuse(Reason::InvalidValue, field, error.to_string());
                None
            }
        }
    }

    /// A port number; `None` when it is 0 (not said) or refused.
    pub(super) fn port(&mut self, number: Option<u32>, field: &str) -> Option<u16> {
        match u16::try_from(number?) {
            Ok(0) => None,
            Ok(number) => Some(number),
            Err(_) => {
                self.refuse(Reason::InvalidValue, field, "a port is a number from 1 to 65535");
                None
            }
        }
    }

    /// A regular expression: checked, and given back.
    pub(super) fn regex(&mut self, pattern: &str, field: &str) {
        if let Err(error) = re2::compile(pattern) {
            let message = format!("the regular expression \"{pattern}\" does not compile: {error}; see RE2's syntax");
            self.refuse(Reason::InvalidRegex, field, message);
        }
    }

    /// A comparison of texts.
    pub(super) fn text(&mut self, text: &StringMatch, field: &str) -> TextMatch {
        match text.kind() {
            Some(StringMatchKind::Present) => TextMatch::Present,
            Some(StringMatchKind::Exact(exact)) => TextMatch::Exact(exact.to_owned()),
            Some(StringMatchKind::Prefix("") | StringMatchKind::Regex("")) => {
                let message = "an empty prefix or expression asks nothing; write {} to ask only that it is there";
                self.refuse(Reason::InvalidValue, field, message);
                TextMatch::Present
            }
            Some(StringMatchKind::Prefix(prefix)) => TextMatch::Prefix(prefix.to_owned()),
            Some(StringMatchKind::Regex(regex)) => {
                self.regex(regex, &format!("{field}.regex"));
                TextMatch::Regex(regex.to_owned())
            }
            None => {
                self.refuse(Reason::NotExactlyOne, field, "only one of exact, prefix and regex can be asked for");
                TextMatch::Present
            }
        }
    }

    /// A number that must not be negative.
    pub(super) fn count(&mut self, number: Option<i32>, field: &str) -> Option<u32> {
        match u32::try_from(number?) {
            Ok(number) => Some(number),
            Err(_) => {
                self.refuse(Reason::InvalidValue, field, "the number must not be negative");
                None
            }
        }
    }

    /// A share in percent as millionths.
    pub(super) fn share(&mut self, percent: f64, field: &str) -> u32 {
        if (0.0..=100.0).contains(&percent) {
            // In range, so that nothing is cut off but what is finer than a millionth.
            (percent * 10_000.0).round() as u32
        } else {
            self.refuse(Reason::InvalidValue, field, "a share is a number from 0 to 100");
            0
        }
    }

    /// The namespaces that see the object.
    pub(super) fn export_to(&self, namespaces: &[String]) -> ExportTo {
        if namespaces.is_empty() || namespaces.iter().any(|namespace| namespace == "*") {
            return ExportTo::All;
        }
        let named = |namespace: &String| match namespace.as_str() {
            "." => Some(self.object.namespace.clone()),
            "~" => None,
            _ => Some(namespace.clone()),
        };
        ExportTo::Only(namespaces.iter().filter_map(named).collect::<BTreeSet<_>>())
    }

    /// Shares from weights: one destination gets everything, among several the weights count.
    pub(super) fn weights(&mut self, weights: &[Option<i32>], field: &str) -> Vec<u32> {
        for (index, weight) in weights.iter().enumerate() {
            if weight.is_some_and(|weight| weight < 0) {
                let field = format!("{field}[{index}].weight");
                self.refuse(Reason::InvalidWeights, &field, "a weight must be 0 or more");
            }
        }
        if let [_] = weights {
            return vec![1];
        }
        let known: Vec<u32> =
            weights.iter().map(|weight| u32::try_from(weight.unwrap_or_default()).unwrap_or_default()).collect();
        let sum: u64 = known.iter().map(|weight| u64::from(*weight)).sum();
        if sum == 0 {
            let message = "the weights add up to 0, so no destination would get anything; give at least one a weight";
            self.refuse(Reason::InvalidWeights, field, message);
        } else if sum > u64::from(u32::MAX) {
            self.refuse(Reason::InvalidWeights, field, "the weights add up to more than 4294967295; use smaller ones");
        }
        known
    }
}
