//! Conditions on texts, headers, queries, cookies and metadata.

use super::{Feature, Maker, NAMES};
use rand::Rng;
use serde_json::{Value, json};

const TEMPLATE: &str = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
const REWRITE: &str = "type.googleapis.com/envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig";

/// Templates of paths, and what can be made of what they match.
const TEMPLATES: [(&str, &[&str]); 9] = [
    ("/a/*", &["/fixed"]),
    ("/{one}/{two}", &["/{two}/{one}", "/{one}-{two}", "/x/{one}"]),
    ("/api/**", &["/rest"]),
    ("/{one=a/*}/{two}", &["/{one}", "/of-{two}/{one}"]),
    ("/{rest=**}", &["/before/{rest}", "/{rest}"]),
    ("/*/{one}", &["/{one}"]),
    ("/**.y", &["/type"]),
    ("/{one}", &["/{one}/{one}", "/{one}.html"]),
    ("/a/{one=*}/**", &["/b/{one}"]),
];

impl Maker<'_> {
    pub(super) fn string_match(&mut self) -> Value {
        let value = self.text(&["1", "one", "o", "5", "ONE", "one two", ","]);
        let mut matcher = match self.rng.random_range(0..8) {
            0 | 1 => json!({"exact": value}),
            2 => json!({"prefix": value}),
            3 => json!({"suffix": value}),
            4 | 5 => json!({"contains": value}),
            6 if self.chance(0.3) => json!({"exact": ""}),
            _ => {
                let regex = self.text(&["[0-9]+", "one.*", "\\w*", "(?i)one", "one|1", ".", "^1?5$", "[^,]+"]);
                return json!({"safe_regex": {"regex": regex}});
            }
        };
        if self.chance(0.25) {
            matcher["ignore_case"] = json!(true);
        }
        matcher
    }

    pub(super) fn header_match(&mut self) -> Value {
        let closely = self.focus == Some(Feature::Matchers);
        let name = match self.chance(if closely { 0.35 } else { 0.12 }) {
            true => self.text(&[
                ":method",
                ":path",
                ":authority",
                ":scheme",
                "content-type",
                "x-forwarded-proto",
                "content-length",
                "cookie",
                "host",
                "transfer-encoding",
                "X-One",
                "x-envoy-internal",
                "x-forwarded-for",
                "te",
            ]),
            false => self.text(&NAMES),
        };
        let mut matcher = json!({"name": name});
        match self.rng.random_range(0..7) {
            0 => matcher["present_match"] = json!(self.chance(0.7)),
            1 => {
                let (start, end) = self.one(&[(1, 15), (-5, 2), (15, 16), (0, 0), (2, 1)]).unwrap_or((1, 15));
                matcher["range_match"] = json!({"start": start, "end": end});
            }
            2 => {
                matcher["string_match"] = self.string_match();
                matcher["treat_missing_header_as_empty"] = json!(true);
            }
            3 if self.chance(0.2) => {}
            _ => matcher["string_match"] = self.string_match(),
        }
        if self.chance(0.2) {
            matcher["invert_match"] = json!(true);
        }
        if self.chance(0.05) {
            matcher["treat_missing_header_as_empty"] = json!(true);
        }
        matcher
    }

    pub(super) fn query_match(&mut self) -> Value {
        let name = self.text(&["k", "j", "K", "none"]);
        match self.rng.random_range(0..6) {
            0 => json!({"name": name, "present_match": true}),
            1 => json!({"name": name, "present_match": false}),
            2 => json!({"name": name}),
            _ => json!({"name": name, "string_match": self.string_match()}),
        }
    }

    fn cookie_match(&mut self) -> Value {
        let mut matcher = json!({"name": self.text(&["session", "x", "none"]), "string_match": self.string_match()});
        if self.chance(0.3) {
            matcher["invert_match"] = json!(true);
        }
        matcher
    }

    /// No request has any metadata when its route is chosen.
    fn metadata_match(&mut self) -> Value {
        let value = match self.rng.random_range(0..3) {
            0 => json!({"present_match": true}),
            1 => json!({"string_match": self.string_match()}),
            _ => json!({"null_match": {}}),
        };
        json!({"filter": "some", "path": [{"key": "one"}], "value": value, "invert": self.chance(0.6)})
    }

    /// What a route asks for besides its path.
    pub(super) fn conditions(&mut self, matcher: &mut Value) {
        let closely = self.focus == Some(Feature::Matchers);
        if self.chance(if closely { 0.6 } else { 0.3 }) {
            let count = self.rng.random_range(1..=2);
            matcher["headers"] = (0..count).map(|_| self.header_match()).collect();
        }
        if self.chance(if closely { 0.4 } else { 0.2 }) {
            let count = if self.chance(0.2) { 2 } else { 1 };
            matcher["query_parameters"] = (0..count).map(|_| self.query_match()).collect();
        }
        if self.draws(Feature::Matchers, 0.03) && self.chance(0.5) {
            matcher["cookies"] = json!([self.cookie_match()]);
        }
        if self.draws(Feature::Matchers, 0.03) && self.chance(0.3) {
            matcher["dynamic_metadata"] = json!([self.metadata_match()]);
        }
        if self.chance(0.05) {
            let (share, of) = self
                .one(&[(0, "HUNDRED"), (100, "HUNDRED"), (10_000, "TEN_THOUSAND"), (0, "MILLION")])
                .unwrap_or((0, "HUNDRED"));
            matcher["runtime_fraction"] =
                json!({"default_value": {"numerator": share, "denominator": of}, "runtime_key": "none"});
        }
    }

    /// A template for paths, and what a route may make of them.
    pub(super) fn template(&mut self) -> (Value, Option<Value>) {
        let (template, rewrites) = self.one(&TEMPLATES).unwrap_or(TEMPLATES[0]);
        let matcher = json!({"path_match_policy": {
            "name": "envoy.path.match.uri_template.uri_template_matcher",
            "typed_config": {"@type": TEMPLATE, "path_template": template},
        }});
        let rewrite = self.chance(0.6).then(|| {
            json!({
                "name": "envoy.path.rewrite.uri_template.uri_template_rewriter",
                "typed_config": {"@type": REWRITE, "path_template_rewrite": self.text(rewrites)},
            })
        });
        (matcher, rewrite)
    }
}
