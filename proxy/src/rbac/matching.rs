//! Rules as a tree: conditions in order, and what follows from the first that holds (`xds.type.matcher.v3.Matcher`).

use super::{Action, Facts, Verdict, contains};
use crate::config::StringMatch;
use ipnet::IpNet;
use std::{borrow::Cow, net::SocketAddr, sync::Arc};

/// Conditions in order, and what is decided where none of them decides.
#[derive(Debug, Default)]
pub struct Matching {
    /// The first that holds and leads to a decision counts.
    pub branches: Vec<(Condition, Then)>,
    /// What else is decided.
    pub otherwise: Option<Box<Then>>,
    /// Some decision in it is to log: then every decision says whether it is that one.
    pub logs: bool,
}

/// What follows from a condition.
#[derive(Debug)]
pub enum Then {
    /// This, under this name.
    Decide(Action, Arc<str>),
    /// What further conditions say, if they say something.
    Ask(Matching),
}

/// A condition.
#[derive(Debug)]
pub enum Condition {
    /// All of them.
    And(Vec<Condition>),
    /// One of them.
    Or(Vec<Condition>),
    /// The opposite.
    Not(Box<Condition>),
    /// All values of a header of the request together, with commas between them, by its lower-case name; where there is none, it
    /// does not hold.
    Header(Box<str>, StringMatch),
    /// A text about the connection; where there is none, it does not hold.
    Text(Input, StringMatch),
    /// An address in one of these networks.
    Address(End, Vec<IpNet>),
}

/// Which address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client's, as trusted forwarding headers tell it.
    Source,
    /// The other end of the connection.
    DirectSource,
    /// Where the client wanted to connect.
    Destination,
}

/// What a text is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// An IP address.
    Address(End),
    /// A port.
    Port(End),
    /// The ClientHello's server name.
    ServerName,
    /// URIs in the client's certificate, with commas between them.
    UriNames,
    /// DNS names in it.
    DnsNames,
    /// Its subject.
    Subject,
}

impl Matching {
    /// Decides; without a decision nobody is allowed.
    pub fn decide(&self, facts: &impl Facts) -> Verdict<'_> {
        match self.find(facts) {
            None => Verdict { allowed: false, policy: None, logged: None },
            Some((action, name)) => Verdict {
                allowed: *action != Action::Deny,
                policy: Some(name),
                logged: self.logs.then_some(*action == Action::Log),
            },
        }
    }

    /// Whether it looks at a request, which a connection has none of.
    pub fn is_of_requests(&self) -> bool {
        let further = |then: &Then| matches!(then, Then::Ask(further) if further.is_of_requests());
        self.branches.iter().any(|(condition, then)| condition.is_of_requests() || further(then))
            || self.otherwise.as_deref().is_some_and(further)
    }

    fn find(&self, facts: &impl Facts) -> Option<(&Action, &Arc<str>)> {
        let holding = self.branches.iter().filter(|(condition, _)| condition.holds(facts));
        holding.map(|(_, then)| then).chain(self.otherwise.as_deref()).find_map(|then| then.decide(facts))
    }
}

impl Then {
    /// Whether a decision in it is to log.
    pub fn logs(&self) -> bool {
        match self {
            Self::Decide(action, _) => *action == Action::Log,
            Self::Ask(further) => further.logs,
        }
    }

    fn decide(&self, facts: &impl Facts) -> Option<(&Action, &Arc<str>)> {
        match self {
            Self::Decide(action, name) => Some((action, name)),
            Self::Ask(further) => further.find(facts),
        }
    }
}

impl Condition {
    /// Whether it looks at a request, which a connection has none of.
    pub fn is_of_requests(&self) -> bool {
        match self {
            Self::And(all) | Self::Or(all) => all.iter().any(Self::is_of_requests),
            Self::Not(one) => one.is_of_requests(),
            Self::Header(..) => true,
            Self::Text(..) | Self::Address(..) => false,
        }
    }

    fn holds(&self, facts: &impl Facts) -> bool {
        match self {
            Self::And(all) => all.iter().all(|one| one.holds(facts)),
            Self::Or(all) => all.iter().any(|one| one.holds(facts)),
            Self::Not(one) => !one.holds(facts),
            Self::Header(name, wanted) => facts.joined(name).is_some_and(|text| wanted.matches(&text)),
            Self::Text(input, wanted) => input.of(facts).is_some_and(|text| wanted.matches(text.as_bytes())),
            Self::Address(end, networks) => {
                let address = end.of(facts);
                networks.iter().any(|network| contains(network, address))
            }
        }
    }
}

impl End {
    fn of(self, facts: &impl Facts) -> SocketAddr {
        match self {
            Self::Source => facts.remote(),
            Self::DirectSource => facts.direct_source(),
            Self::Destination => facts.destination(),
        }
    }
}

impl Input {
    fn of(self, facts: &impl Facts) -> Option<Cow<'_, str>> {
        let peer = || facts.tls().and_then(|tls| tls.peer());
        let names = |names: &[Box<str>]| (!names.is_empty()).then(|| Cow::Owned(names.join(",")));
        match self {
            Self::Address(end) => Some(end.of(facts).ip().to_canonical().to_string().into()),
            Self::Port(end) => Some(end.of(facts).port().to_string().into()),
            Self::ServerName => facts.server_name().filter(|name| !name.is_empty()).map(Cow::Borrowed),
            Self::UriNames => peer().and_then(|peer| names(&peer.uris)),
            Self::DnsNames => peer().and_then(|peer| names(&peer.dns)),
            Self::Subject => peer().map(|peer| Cow::Borrowed(&*peer.subject)).filter(|subject| !subject.is_empty()),
        }
    }
}
