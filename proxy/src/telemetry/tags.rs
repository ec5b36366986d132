//! Parts of names that become labels, where a configuration says which: names are then split as Envoy splits them.
//!
//! Every rule looks at the whole name. What the rules find is cut out together, so that their order only decides the order of
//! labels, and which of two rules for one label counts: the first.

use crate::config::RegexMatch;
use std::ops::Range;

/// Steps back that an expression of a configuration may take in one name; one that wants more finds nothing.
const MAX_STEPS: usize = 10_000;

/// How a part is found.
#[derive(Debug)]
enum Rule {
    /// The first group is cut out, the second (or else the first) is the value. Only names that contain a text are looked at; one
    /// value is none.
    Regex(RegexMatch, &'static str, &'static str),
    /// The same as a configuration writes it: what it looks ahead to is not cut out.
    Written(Box<fancy_regex::Regex>),
    /// Parts between dots: `$` is the value, `*` any part, `**` any number of them.
    Parts(Vec<&'static str>),
    /// Always this.
    Fixed(Box<str>),
}

#[derive(Debug)]
struct Tag {
    label: Box<str>,
    rule: Rule,
}

/// Rules for labels.
#[derive(Debug, Default)]
pub struct Tags {
    /// Those for all names.
    all: Vec<Tag>,
    /// Those for names that begin with a word and a dot.
    by_word: Vec<(Box<str>, Tag)>,
}

/// Why a rule is not taken.
#[derive(Debug, thiserror::Error)]
pub enum TagError {
    /// Its expression.
    #[error("{0}")]
    Regex(#[from] crate::config::RegexError),
    /// One that a configuration brings.
    #[error("{0}")]
    Written(#[from] Box<fancy_regex::Error>),
    /// There is none.
    #[error("has no regular expression and no value, and `{0}` is no label that is known")]
    Unknown(String),
}

impl Tags {
    /// Adds what is usual.
    pub fn add_usual(&mut self) {
        for (name, pattern, part, never) in PATTERNS {
            // They are our own, and compile.
            if let Ok(rule) = regex(pattern, part, never) {
                self.add(name, word_of(pattern), rule);
            }
        }
        for (name, parts) in PARTS {
            self.add_parts(name, parts);
        }
    }

    /// Adds those of the usual ones that have this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn add_named(&mut self, name: &str) -> Result<(), TagError> {
        let before = self.len();
        for (_, pattern, part, never) in PATTERNS.iter().filter(|(known, ..)| *known == name) {
            self.add(name, word_of(pattern), regex(pattern, part, never)?);
        }
        for (_, parts) in PARTS.iter().filter(|(known, _)| *known == name) {
            self.add_parts(name, parts);
        }
        if self.len() == before { Err(TagError::Unknown(name.to_owned())) } else { Ok(()) }
    }

    /// Adds a regular expression.
    ///
    /// # Errors
    /// When it is none.
    pub fn add_regex(&mut self, name: &str, pattern: &str) -> Result<(), TagError> {
        let regex = fancy_regex::RegexBuilder::new(pattern).backtrack_limit(MAX_STEPS).build().map_err(Box::new)?;
        self.add(name, word_of(pattern), Rule::Written(Box::new(regex)));
        Ok(())
    }

    /// Adds a label that is the same everywhere.
    pub fn add_fixed(&mut self, name: &str, value: &str) {
        self.add(name, None, Rule::Fixed(value.into()));
    }

    fn len(&self) -> usize {
        self.all.len() + self.by_word.len()
    }

    fn add_parts(&mut self, name: &str, parts: &'static str) {
        let parts: Vec<&str> = parts.split('.').collect();
        let word = parts.first().copied().filter(|word| !matches!(*word, "$" | "*" | "**"));
        self.add(name, word, Rule::Parts(parts));
    }

    fn add(&mut self, name: &str, word: Option<&str>, rule: Rule) {
        let tag = Tag { label: label(name), rule };
        match word {
            Some(word) => self.by_word.push((word.into(), tag)),
            None => self.all.push(tag),
        }
    }

    /// What is left of a name, as the name of a family, and its labels.
    pub fn split(&self, name: &str) -> (String, Vec<(Box<str>, String)>) {
        let word = name.split_once('.').map(|(word, _)| word);
        let of_word = self.by_word.iter().filter(|(of, _)| word == Some(of)).map(|(_, tag)| tag);
        let (mut labels, mut cut): (Vec<(Box<str>, String)>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
        for tag in self.all.iter().chain(of_word) {
            if labels.iter().any(|(label, _)| *label == tag.label) {
                continue;
            }
            if let Some((value, range)) = tag.rule.find(name) {
                labels.push((tag.label.clone(), value.to_owned()));
                cut.push(range);
            }
        }
        let left = name.char_indices().filter(|(at, _)| !cut.iter().any(|range| range.contains(at)));
        let fit = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '_' | ':') { c } else { '_' };
        (format!("envoy_{}", left.map(|(_, c)| fit(c)).collect::<String>()), labels)
    }
}

impl Rule {
    /// The value, and what of the name it replaces.
    fn find<'n>(&'n self, name: &'n str) -> Option<(&'n str, Range<usize>)> {
        match self {
            Self::Fixed(value) => Some((value, 0..0)),
            Self::Regex(regex, part, never) => {
                if !name.contains(part) {
                    return None;
                }
                let found = regex.captures(name.as_bytes())?;
                let cut = found.get(1).filter(|cut| !cut.is_empty())?;
                let value = found.get(2).filter(|value| !value.is_empty()).unwrap_or(cut);
                let value = name.get(value.range()).filter(|value| never.is_empty() || value != never)?;
                Some((value, cut.range()))
            }
            Self::Written(regex) => {
                let found = regex.captures(name).ok()??;
                let cut = found.get(1).filter(|cut| !cut.as_str().is_empty())?;
                let value = found.get(2).filter(|value| !value.as_str().is_empty()).unwrap_or(cut);
                Some((name.get(value.range())?, cut.range()))
            }
            Self::Parts(pattern) => {
                let parts: Vec<&str> = name.split('.').collect();
                let at = place(pattern, &parts, 0)?;
                let value = parts.get(at)?;
                let start: usize = parts[..at].iter().map(|part| part.len() + 1).sum();
                let end = start + value.len();
                // With the dot behind it; of the last part, with the one before.
                let cut = if end < name.len() { start..end + 1 } else { start.saturating_sub(1)..end };
                Some((value, cut))
            }
        }
    }
}

/// The part that is the value, where all parts fit.
fn place(pattern: &[&str], parts: &[&str], at: usize) -> Option<usize> {
    match (pattern, parts) {
        // Looked for last: where it stands is known by who asks.
        ([], []) => Some(usize::MAX),
        (["**"], _) => Some(usize::MAX),
        (["**", rest @ ..], _) => (0..=parts.len()).find_map(|skip| place(rest, &parts[skip..], at + skip)),
        (["$", rest @ ..], [_, others @ ..]) => place(rest, others, at + 1).map(|_| at),
        ([wanted, rest @ ..], [part, others @ ..]) if wanted == part || *wanted == "*" => place(rest, others, at + 1),
        _ => None,
    }
}

fn regex(pattern: &str, part: &'static str, never: &'static str) -> Result<Rule, TagError> {
    let address = r"(?:(?:\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[[a-fA-F_\d]+\])_\d+)";
    let full = pattern.replace("<ADDRESS>", address).replace("<VALUE>", r"[^\.]+").replace("<WORD>", r"[\w-]+");
    Ok(Rule::Regex(RegexMatch::searching(&full)?, part, never))
}

/// The word with which names begin that a pattern fits, if it says one.
fn word_of(pattern: &str) -> Option<&str> {
    let rest = pattern.strip_prefix('^')?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    let (word, next) = rest.split_at(end);
    (!word.is_empty() && next.starts_with(r"\.")).then_some(word)
}

/// As Prometheus allows it.
fn label(name: &str) -> Box<str> {
    name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

/// The usual labels: name, expression, what a name contains that it may fit, and what is no value.
const PATTERNS: &[(&str, &str, &str, &str)] = &[
    ("envoy.response_code", r"_rq(_(\d{3}))$", "_rq_", ""),
    ("envoy.response_code_class", r"_rq_((\d))xx$", "_rq_", ""),
    ("envoy.ssl_cipher", r"^listener\..*?\.ssl\.ciphers(\.(<WORD>))$", ".ssl.ciphers.", ""),
    ("envoy.ssl_curve", r"^(?:listener|cluster)\..*?\.ssl\.curves(\.(<WORD>))$", ".ssl.curves.", ""),
    ("envoy.ssl_sigalg", r"^(?:listener|cluster)\..*?\.ssl\.sigalgs(\.(<WORD>))$", ".ssl.sigalgs.", ""),
    (
        "envoy.tls_certificate",
        r"^(?:listener|cluster)\..*?\.ssl\.certificate(\.(.+))\.expiration_unix_time_seconds$",
        ".ssl.certificate.",
        "",
    ),
    ("envoy.ssl_version", r"^(?:listener|cluster)\..*?\.ssl\.versions(\.(TLSv\d\.\d))$", ".ssl.versions.", ""),
    ("cipher_suite", r"^cluster\.<VALUE>\.ssl\.ciphers(\.(<WORD>))$", ".ssl.ciphers.", ""),
    ("envoy.http_conn_manager_prefix", r"^listener\..*?\.http\.((<VALUE>)\.)", ".http.", ""),
    ("envoy.worker_id", r"^(?:listener\.(?:<ADDRESS>|<VALUE>)\.|server\.|listener_manager\.)worker_((\d+)\.)", "", ""),
    ("envoy.listener_address", r"^listener\.((<ADDRESS>|<VALUE>)\.)", "", "admin"),
    ("envoy.rbac_policy_name", r"^http\.<VALUE>\.rbac\.(?:<VALUE>\.)?policy\.((<VALUE>)\.)\w+?$", ".rbac.", ""),
    ("envoy.rbac_http_prefix", r"^http\.<VALUE>\.rbac\.((<VALUE>)\.)", ".rbac.", "policy"),
    ("envoy.rds_route_config", r"^http\.<VALUE>\.rds\.(([\w.-]+)\.)\w+?$", ".rds.", ""),
];

/// The same by parts of names.
const PARTS: &[(&str, &str)] = &[
    ("envoy.grpc_bridge_method", "cluster.*.grpc.*.$.**"),
    ("envoy.http_user_agent", "http.*.user_agent.$.**"),
    ("envoy.virtual_cluster", "vhost.*.vcluster.$.**"),
    ("envoy.fault_downstream_cluster", "http.*.fault.$.**"),
    ("envoy.grpc_bridge_service", "cluster.*.grpc.$.**"),
    ("envoy.tcp_prefix", "tcp.$.**"),
    ("envoy.udp_prefix", "udp.$.**"),
    ("envoy.clientssl_prefix", "auth.clientssl.$.**"),
    ("envoy.ratelimit_prefix", "ratelimit.$.**"),
    ("envoy.cluster_name", "cluster.$.**"),
    ("envoy.http_conn_manager_prefix", "http.$.**"),
    ("envoy.virtual_host", "vhost.$.**"),
    ("envoy.route", "vhost.*.route.$.**"),
    ("envoy.rbac_prefix", "$.rbac.**"),
    ("envoy.local_http_ratelimit_prefix", "$.http_local_rate_limit.**"),
    ("envoy.local_network_ratelimit_prefix", "local_rate_limit.$.**"),
    ("envoy.local_listener_ratelimit_prefix", "listener_local_ratelimit.$.**"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn split(tags: &Tags, name: &str) -> String {
        let (family, labels) = tags.split(name);
        let labels: Vec<String> = labels.into_iter().map(|(label, value)| format!("{label}={value}")).collect();
        format!("{family}{{{}}}", labels.join(","))
    }

    /// What Envoy 1.40 says of the same names.
    #[test]
    fn names_when_split_the_usual_way_then_as_envoy_splits_them() {
        let mut tags = Tags::default();
        tags.add_usual();
        for (name, wanted) in [
            (
                "listener.127.0.0.1_80.ssl.certificate.a.b/c.expiration_unix_time_seconds",
                "envoy_listener_ssl_certificate_expiration_unix_time_seconds{envoy_tls_certificate=a.b/c,envoy_listener_address=127.0.0.1_80}",
            ),
            (
                "cluster.a_b.c.external.upstream_rq_200",
                "envoy_cluster_c_external_upstream_rq{envoy_response_code=200,envoy_cluster_name=a_b}",
            ),
            (
                "http.in.downstream_rq_2xx",
                "envoy_http_downstream_rq_xx{envoy_response_code_class=2,envoy_http_conn_manager_prefix=in}",
            ),
            (
                "listener.127.0.0.1_21001.http.in.downstream_rq_2xx",
                "envoy_listener_http_downstream_rq_xx{envoy_response_code_class=2,envoy_http_conn_manager_prefix=in,\
                 envoy_listener_address=127.0.0.1_21001}",
            ),
            (
                "listener.[__1]_80.worker_1.downstream_cx_total",
                "envoy_listener_worker_downstream_cx_total{envoy_worker_id=1,envoy_listener_address=[__1]_80}",
            ),
            ("listener.admin.downstream_cx_total", "envoy_listener_admin_downstream_cx_total{}"),
            (
                "listener.0.0.0.0_80.ssl.versions.TLSv1.3",
                "envoy_listener_ssl_versions{envoy_ssl_version=TLSv1.3,envoy_listener_address=0.0.0.0_80}",
            ),
            (
                "vhost.v.vcluster.orders.upstream_rq_total",
                "envoy_vhost_vcluster_upstream_rq_total{envoy_virtual_cluster=orders,envoy_virtual_host=v}",
            ),
            (
                "http.in.rbac.sp.policy.sh.shadow_denied",
                "envoy_http_rbac_policy_shadow_denied{envoy_rbac_policy_name=sh,envoy_rbac_http_prefix=sp,\
                 envoy_http_conn_manager_prefix=in}",
            ),
            (
                "http.in.rbac.policy.two.allowed",
                "envoy_http_rbac_policy_allowed{envoy_rbac_policy_name=two,envoy_http_conn_manager_prefix=in}",
            ),
            ("http.in.rbac.allowed", "envoy_http_rbac_allowed{envoy_http_conn_manager_prefix=in}"),
            ("nr.rbac.denied", "envoy_rbac_denied{envoy_rbac_prefix=nr}"),
            ("server.live", "envoy_server_live{}"),
        ] {
            assert_eq!(split(&tags, name), wanted, "{name}");
        }
    }

    #[test]
    fn names_when_rules_are_written_then_the_first_for_a_label_counts_and_all_is_cut_out() {
        let mut tags = Tags::default();
        tags.add_named("envoy.cluster_name").unwrap();
        tags.add_regex("cluster_name", r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)").unwrap();
        tags.add_fixed("fixed.x", "v");
        tags.add_regex("dup", "(_total)").unwrap();
        tags.add_regex("dup", "(_cx)").unwrap();
        let name = "cluster.outbound|80||a.b.svc.cluster.local.upstream_cx_";
        assert_eq!(
            split(&tags, &format!("{name}total")),
            "envoy_cluster_upstream_cx{fixed_x=v,dup=_total,envoy_cluster_name=outbound|80||a,\
             cluster_name=outbound|80||a.b.svc.cluster.local}"
        );
        assert!(split(&tags, &format!("{name}active")).starts_with("envoy_cluster_upstream_active{fixed_x=v,dup=_cx,"));
        assert!(matches!(tags.add_named("nothing"), Err(TagError::Unknown(_))));
        assert!(tags.add_regex("x", "(").is_err());
    }
}
