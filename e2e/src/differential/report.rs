//! What the comparison found.

use super::{
    Options, Outcome,
    case::{Case, Request},
    compare::{difference, same_share},
    run::{Observed, shares},
};
use std::collections::BTreeSet;

/// A running count, printed as it goes.
pub struct Report<'a> {
    known: &'a [String],
    options: &'a Options,
    requests: usize,
    alike: usize,
    explained: BTreeSet<String>,
    pending: Vec<String>,
    failed: Vec<String>,
}

impl<'a> Report<'a> {
    /// With the ids of the known differences; the options say what to print and to ignore.
    pub fn new(known: &'a [String], options: &'a Options) -> Self {
        Self {
            known,
            options,
            requests: 0,
            alike: 0,
            explained: BTreeSet::new(),
            pending: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Whether the first request of a case is seen and differs.
    pub fn differs(&self, outcome: &Outcome) -> bool {
        let first = outcome.case.requests.first().zip(outcome.seen.first());
        first.is_some_and(|(request, both)| !compare(request, both, &self.ignored(&outcome.case, request)).is_empty())
    }

    fn ignored<'b>(&'b self, case: &'b Case, request: &'b Request) -> Vec<&'b str> {
        let mut ignore: Vec<&str> = case.ignore.iter().chain(&request.ignore).map(String::as_str).collect();
        // Envoy's words for a detail are not a contract.
        ignore.push("log details");
        ignore.extend(self.options.ignore.iter().map(String::as_str));
        ignore
    }

    /// Judges a case; tells which of its requests differ without explanation.
    pub fn case(&mut self, outcome: &Outcome) -> Vec<usize> {
        let Outcome { case, seen, judge_refuses, refuses } = outcome;
        let mut unexplained = Vec::new();
        let name = &case.name;
        let words = match (judge_refuses, refuses) {
            (Some(words), _) => Some(format!("Envoy refuses it: {words}")),
            (None, Some(words)) => Some(format!("Leno refuses it: {words}")),
            (None, None) => None,
        };
        if let Some(words) = words {
            match (&case.pending, judge_refuses) {
                (Some(reason), None) => self.pending.push(format!("{name}: {reason} ({words})")),
                _ => self.fail(name, "", &[words]),
            }
            return unexplained;
        }
        let mut wrong = false;
        for (number, (request, both)) in case.requests.iter().zip(seen).enumerate() {
            self.requests += 1;
            let ignore = self.ignored(case, request);
            let found = compare(request, both, &ignore);
            let title = request.title();
            if self.options.all {
                println!("{name}: {title}");
                both[0].iter().flat_map(|one| &one.lines).for_each(|line| println!("    {line}"));
            }
            let broken = expected(request, &both[0]);
            let explained = request.difference.as_ref().or(case.difference.as_ref());
            match (broken, found.is_empty(), explained) {
                (Some(broken), _, _) => {
                    self.fail(name, &title, &[format!("the case does not show what it says: {broken}")]);
                    wrong = true;
                }
                (None, true, None) => self.alike += 1,
                (None, true, Some(id)) if case.difference.is_none() => {
                    self.fail(name, &title, &[format!("there is no difference, though the case names {id}")]);
                }
                (None, true, Some(_)) => self.alike += 1,
                (None, false, Some(id)) if self.known.contains(id) => {
                    self.explained.insert(id.clone());
                }
                (None, false, Some(id)) => {
                    self.fail(name, &title, &[format!("difference {id} is not in the list of known differences")]);
                }
                (None, false, None) => {
                    wrong = true;
                    unexplained.push(number);
                    if case.pending.is_none() {
                        self.fail(name, &title, &found);
                    }
                }
            }
        }
        match (&case.pending, wrong) {
            (Some(reason), true) => self.pending.push(format!("{name}: {reason}")),
            (Some(_), false) => self.fail(name, "", &["it passes, and is marked as pending".to_owned()]),
            _ => {}
        }
        unexplained
    }

    fn fail(&mut self, case: &str, title: &str, lines: &[String]) {
        let title = if title.is_empty() { String::new() } else { format!(": {title}") };
        println!("FAIL {case}{title}");
        for line in lines.iter().take(30) {
            println!("    {line}");
        }
        self.failed.push(case.to_owned());
    }

    /// Prints the sum; whether nothing failed.
    pub fn finish(self) -> bool {
        for line in &self.pending {
            println!("pending {line}");
        }
        let cases: BTreeSet<_> = self.failed.iter().collect();
        println!(
            "{} requests: {} alike, {} known differences seen, {} cases pending, {} failures in {} cases",
            self.requests,
            self.alike,
            self.explained.len(),
            self.pending.len(),
            self.failed.len(),
            cases.len(),
        );
        self.failed.is_empty()
    }
}

fn compare(request: &Request, both: &[Vec<Observed>; 2], ignore: &[&str]) -> Vec<String> {
    if request.shares {
        let [left, right] = [shares(&both[0]), shares(&both[1])];
        let names: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
        let count = both[0].len();
        let far = names.into_iter().filter_map(|name| {
            let [left, right] = [&left, &right].map(|shares| shares.get(name).copied().unwrap_or_default());
            (!same_share(left, right, count)).then(|| format!("back end {name} of {count}: envoy {left}, leno {right}"))
        });
        return far.collect();
    }
    let [left, right] = [0, 1].map(|index: usize| {
        let mut all: Vec<Vec<String>> = both[index].iter().map(|one| one.lines.clone()).collect();
        if request.together {
            all.sort();
        }
        all.concat()
    });
    difference(&left, &right, ignore)
}

/// What the judge's answer is not that the case says it is.
fn expected(request: &Request, observed: &[Observed]) -> Option<String> {
    for one in observed {
        if let Some(status) = request.status.filter(|&status| one.status != Some(status)) {
            return Some(format!("status {:?} and not {status}", one.status));
        }
        if let Some(backend) = &request.backend
            && one.backends.last() != Some(backend)
        {
            return Some(format!("back ends {:?} and not {backend}", one.backends));
        }
    }
    None
}
