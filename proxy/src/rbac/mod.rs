//! Role-based access control: who (principals) may do what (permissions), decided over what is known of a connection or a request.
//!
//! The engine knows neither HTTP nor sockets: whoever asks implements [`Facts`]. Everything is compiled when the configuration
//! arrives; a decision by policies allocates nothing.

pub mod matching;
#[cfg(test)]
mod tests;

use crate::config::{HeaderMatch, MetadataMatch, StringMatch, UriTemplate};
use crate::telemetry::DynamicMetadata;
use crate::tls::TlsInfo;
use ipnet::IpNet;
use prost_types::{Value, value::Kind};
use std::{borrow::Cow, net::SocketAddr, sync::Arc};

/// Under which names it is told what shadow rules have decided, and by which policy.
pub const SHADOW_NAMES: [&str; 2] = ["shadow_engine_result", "shadow_effective_policy_id"];

/// What is known of a connection or a request.
pub trait Facts {
    /// Where the client wanted to connect.
    fn destination(&self) -> SocketAddr;

    /// The other end of the connection itself.
    fn direct_source(&self) -> SocketAddr;

    /// The client as PROXY protocol told it; else the other end of the connection.
    fn source(&self) -> SocketAddr {
        self.direct_source()
    }

    /// The client as trusted forwarding headers tell it; else [`Self::source`].
    fn remote(&self) -> SocketAddr {
        self.source()
    }

    /// The ClientHello's server name.
    fn server_name(&self) -> Option<&str>;

    /// The connection's TLS, if it has any.
    fn tls(&self) -> Option<&TlsInfo>;

    /// Whether a condition on a header holds. A connection has no headers.
    fn header(&self, wanted: &HeaderMatch) -> bool {
        wanted.matches(None::<&[u8]>)
    }

    /// All values of a header with commas between them, by its lower-case name. A connection has none.
    fn joined(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        let _ = name;
        None
    }

    /// The path of a request without its query.
    fn path(&self) -> Option<&[u8]> {
        None
    }

    /// The value that a condition is about. A connection has no metadata.
    fn metadata(&self, of: Source, wanted: &MetadataMatch) -> Option<Cow<'_, Value>> {
        let _ = (of, wanted);
        None
    }

    /// Whether there is a route whose metadata could be looked at.
    fn has_route(&self) -> bool {
        false
    }
}

/// Whose metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// What filters found out about the request.
    Request,
    /// What is written beside its route.
    Route,
}

/// What the policies together mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Allowed is what one of them matches.
    Allow,
    /// Denied is what one of them matches.
    Deny,
    /// Everything is allowed; which one matched is only told.
    Log,
}

/// A set of policies.
#[derive(Debug)]
pub struct Rules {
    /// What they mean.
    pub action: Action,
    /// In the order of their names, in which they are tried.
    pub policies: Vec<Policy>,
}

/// One policy: matches when one permission and one principal do.
#[derive(Debug)]
pub struct Policy {
    /// Its name, for logs and response headers.
    pub name: Arc<str>,
    /// What is done; one of them must match.
    pub permissions: Vec<Permission>,
    /// By whom; one of them must match.
    pub principals: Vec<Principal>,
}

/// A condition on what is done.
#[derive(Debug)]
pub enum Permission {
    /// All of them.
    And(Vec<Permission>),
    /// One of them.
    Or(Vec<Permission>),
    /// Anything.
    Any,
    /// A header of the request.
    Header(HeaderMatch),
    /// The path of the request without its query.
    Path(StringMatch),
    /// A template of it.
    Template(UriTemplate),
    /// The address to which the client connected.
    DestinationIp(IpNet),
    /// The ports, inclusive, to one of which the client connected.
    DestinationPorts(u16, u16),
    /// The server name of the ClientHello (an empty one where there is none).
    ServerName(StringMatch),
    /// A value of metadata.
    Metadata(Source, MetadataMatch),
    /// The opposite.
    Not(Box<Permission>),
}

/// A condition on who does it.
#[derive(Debug)]
pub enum Principal {
    /// All of them.
    And(Vec<Principal>),
    /// One of them.
    Or(Vec<Principal>),
    /// Anybody.
    Any,
    /// Somebody who showed a certificate; with this name, if there is one: a URI or DNS name in it, or its subject.
    Authenticated(Option<StringMatch>),
    /// The client's address, as PROXY protocol tells it.
    SourceIp(IpNet),
    /// The address of the other end of the connection.
    DirectSourceIp(IpNet),
    /// The client's address, as trusted forwarding headers tell it.
    RemoteIp(IpNet),
    /// A header of the request.
    Header(HeaderMatch),
    /// The path of the request without its query.
    Path(StringMatch),
    /// A value of metadata.
    Metadata(Source, MetadataMatch),
    /// The opposite.
    Not(Box<Principal>),
}

/// Rules in one of their two forms.
#[derive(Debug)]
pub enum Decider {
    /// Policies, each with permissions and principals.
    Rules(Rules),
    /// A tree of conditions.
    Matching(matching::Matching),
}

impl Rules {
    /// Whether one of them asks for headers of a request.
    pub fn look_at_headers(&self) -> bool {
        self.ask(|permission| matches!(permission, Permission::Header(_)), |one| matches!(one, Principal::Header(_)))
    }

    fn ask(&self, permission: fn(&Permission) -> bool, principal: fn(&Principal) -> bool) -> bool {
        fn of_permission(one: &Permission, asks: fn(&Permission) -> bool) -> bool {
            match one {
                Permission::And(all) | Permission::Or(all) => all.iter().any(|one| of_permission(one, asks)),
                Permission::Not(other) => of_permission(other, asks),
                other => asks(other),
            }
        }
        fn of_principal(one: &Principal, asks: fn(&Principal) -> bool) -> bool {
            match one {
                Principal::And(all) | Principal::Or(all) => all.iter().any(|one| of_principal(one, asks)),
                Principal::Not(other) => of_principal(other, asks),
                other => asks(other),
            }
        }
        self.policies.iter().any(|policy| {
            policy.permissions.iter().any(|one| of_permission(one, permission))
                || policy.principals.iter().any(|one| of_principal(one, principal))
        })
    }
}

impl Decider {
    /// Whether it asks for what filters find out about a request.
    pub fn asks_dynamic(&self) -> bool {
        match self {
            Self::Rules(rules) => rules.ask(
                |permission| matches!(permission, Permission::Metadata(Source::Request, _)),
                |principal| matches!(principal, Principal::Metadata(Source::Request, _)),
            ),
            Self::Matching(_) => false,
        }
    }

    /// Decides.
    pub fn decide(&self, facts: &impl Facts) -> Verdict<'_> {
        match self {
            Self::Rules(rules) => rules.decide(facts),
            Self::Matching(matching) => matching.decide(facts),
        }
    }
}

/// What rules say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'r> {
    /// Whether it may go on.
    pub allowed: bool,
    /// The policy that matched.
    pub policy: Option<&'r Arc<str>>,
    /// Rules that only log ([`Action::Log`]) say whether this one is to be.
    pub logged: Option<bool>,
}

impl Verdict<'_> {
    /// Tells in a namespace what was decided and by which policy, under these two names with that before them.
    pub fn tell(self, found: &mut DynamicMetadata, namespace: &str, prefix: &str, [result, policy]: [&str; 2]) {
        let mut tell = |key: &str, text: &str| {
            found.set(namespace, format!("{prefix}{key}"), Kind::StringValue(text.to_owned()));
        };
        tell(result, if self.allowed { "allowed" } else { "denied" });
        if let Some(name) = self.policy {
            tell(policy, name);
        }
    }
}

impl Rules {
    /// Decides.
    pub fn decide(&self, facts: &impl Facts) -> Verdict<'_> {
        let policy = self.policies.iter().find(|policy| policy.matches(facts)).map(|policy| &policy.name);
        let allowed = match self.action {
            Action::Allow => policy.is_some(),
            Action::Deny => policy.is_none(),
            Action::Log => true,
        };
        Verdict { allowed, policy, logged: (self.action == Action::Log).then_some(policy.is_some()) }
    }
}

impl Policy {
    fn matches(&self, facts: &impl Facts) -> bool {
        self.permissions.iter().any(|one| one.matches(facts)) && self.principals.iter().any(|one| one.matches(facts))
    }
}

impl Permission {
    fn matches(&self, facts: &impl Facts) -> bool {
        match self {
            Self::And(all) => all.iter().all(|one| one.matches(facts)),
            Self::Or(all) => all.iter().any(|one| one.matches(facts)),
            Self::Any => true,
            Self::Header(header) => facts.header(header),
            Self::Path(path) => facts.path().is_some_and(|text| path.matches(text)),
            Self::Template(template) => facts.path().is_some_and(|text| template.matches(text)),
            Self::DestinationIp(net) => contains(net, facts.destination()),
            Self::DestinationPorts(from, to) => (*from..=*to).contains(&facts.destination().port()),
            Self::Metadata(of, wanted) => metadata(facts, *of, wanted),
            Self::ServerName(name) => name.matches(facts.server_name().unwrap_or_default().as_bytes()),
            Self::Not(one) => !one.matches(facts),
        }
    }
}

impl Principal {
    fn matches(&self, facts: &impl Facts) -> bool {
        match self {
            Self::And(all) => all.iter().all(|one| one.matches(facts)),
            Self::Or(all) => all.iter().any(|one| one.matches(facts)),
            Self::Any => true,
            Self::Authenticated(name) => authenticated(name.as_ref(), facts.tls()),
            Self::SourceIp(net) => contains(net, facts.source()),
            Self::DirectSourceIp(net) => contains(net, facts.direct_source()),
            Self::Metadata(of, wanted) => metadata(facts, *of, wanted),
            Self::RemoteIp(net) => contains(net, facts.remote()),
            Self::Header(header) => facts.header(header),
            Self::Path(path) => facts.path().is_some_and(|text| path.matches(text)),
            Self::Not(one) => !one.matches(facts),
        }
    }
}

/// Whoever comes by TLS, and, where there is a `name`, has it; who has no certificate has the empty one. A certificate that was taken
/// although it satisfies no condition proves nothing.
fn authenticated(name: Option<&StringMatch>, tls: Option<&TlsInfo>) -> bool {
    let (Some(tls), Some(name)) = (tls, name) else { return tls.is_some() };
    let Some(peer) = Some(tls).filter(|tls| tls.verified).and_then(TlsInfo::peer) else { return name.matches(b"") };
    let one = |text: &str| name.matches(text.as_bytes());
    peer.uris.iter().any(|uri| one(uri)) || peer.dns.iter().any(|dns| one(dns)) || one(&peer.subject)
}

/// Whether a condition on metadata holds. Without a route none on its metadata does, nor the opposite of one.
fn metadata(facts: &impl Facts, of: Source, wanted: &MetadataMatch) -> bool {
    (of == Source::Request || facts.has_route()) && wanted.holds(facts.metadata(of, wanted).as_deref())
}

fn contains(net: &IpNet, address: SocketAddr) -> bool {
    net.contains(&address.ip().to_canonical())
}
