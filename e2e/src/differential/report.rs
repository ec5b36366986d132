//! What the comparison found.

use super::{
    Options, Outcome,
    case::{Case, Request},
    compare::{deliberate, difference, same_share},
    run::{Observed, shares},
};
use anyhow::Result;
use std::collections::BTreeSet;

/// A running count, printed as it goes.
pub struct Report<'a> {
    known: &'a [String],
    options: &'a Options,
    requests: usize,
    alike: usize,
    explained: BTreeSet<String>,
    pending: BTreeSet<&'a str>,
    seen: BTreeSet<String>,
    failed: Vec<String>,
}

impl<'a> Report<'a> {
    /// With the ids of the known differences, and what is known to differ and not meant to.
    pub fn new(known: &'a [String], pending: impl Iterator<Item = &'a str>, options: &'a Options) -> Self {
        let pending = pending.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let (explained, seen, failed) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
        Self { known, options, requests: 0, alike: 0, explained, pending, seen, failed }
    }

    /// Whether the first request of a case is seen and differs.
    pub fn differs(&self, outcome: &Outcome) -> bool {
        let first = outcome.case.requests.first().zip(outcome.seen.first());
        first.is_some_and(|(request, both)| {
            let found = compare(request, both, &self.ignored(&outcome.case, request));
            !found.is_empty()
                && both[0].first().is_none_or(|judge| deliberate(&found, judge, request.is_head()).is_none())
        })
    }

    fn ignored<'b>(&'b self, case: &'b Case, request: &'b Request) -> Vec<&'b str> {
        let mut ignore = ignored(case, request);
        ignore.extend(self.options.ignore.iter().map(String::as_str));
        ignore
    }

    /// Judges a case; tells which of its requests differ without explanation.
    pub fn case(&mut self, outcome: &Outcome) -> Vec<usize> {
        let Outcome { case, seen, judge_refuses, refuses } = outcome;
        let mut unexplained = Vec::new();
        let words = match (judge_refuses, refuses) {
            (Some(words), _) => Some(format!("Envoy refuses it: {words}")),
            (None, Some(words)) => Some(format!("Leno refuses it: {words}")),
            (None, None) => None,
        };
        if let Some(words) = words {
            self.fail(case, "refused", &[words]);
            return unexplained;
        }
        for (number, (request, both)) in case.requests.iter().zip(seen).enumerate() {
            self.requests += 1;
            let found = compare(request, both, &self.ignored(case, request));
            let title = format!("{} {}", number + 1, request.title());
            if self.options.all {
                println!("{}: {title}", case.name);
                both[0].iter().flat_map(|one| &one.lines).for_each(|line| println!("    {line}"));
            }
            let written = request.difference.as_ref().or(case.difference.as_ref());
            let of_itself = || both[0].first().and_then(|judge| deliberate(&found, judge, request.is_head()));
            let explained = written.cloned().or_else(|| of_itself().map(str::to_owned));
            let explained = explained.as_ref();
            match (expected(request, &both[0]), found.is_empty(), explained) {
                (Some(broken), _, _) => {
                    self.fail(case, &title, &[format!("the case does not show what it says: {broken}")]);
                }
                (None, true, Some(id)) if case.difference.is_none() => {
                    self.fail(case, &title, &[format!("there is no difference, though the case names {id}")]);
                }
                (None, true, _) => self.alike += 1,
                (None, false, Some(id)) if self.known.contains(id) => {
                    self.explained.insert(id.clone());
                }
                (None, false, Some(id)) => {
                    self.fail(case, &title, &[format!("difference {id} is not in the list of known differences")]);
                }
                (None, false, None) => {
                    unexplained.push(number);
                    self.fail(case, &title, &found);
                }
            }
        }
        unexplained
    }

    fn fail(&mut self, case: &Case, title: &str, lines: &[String]) {
        let place = format!("{}: {title}", case.name);
        let pending = self.pending.contains(place.as_str());
        println!("{} {place} ({})", if pending { "pending" } else { "FAIL" }, case.about);
        if !pending || self.options.all {
            for line in lines.iter().take(30) {
                println!("    {line}");
            }
        }
        self.seen.insert(place.clone());
        if !pending {
            self.failed.push(place);
        }
    }

    /// Prints the sum; whether nothing failed.
    ///
    /// # Errors
    /// Where the list of what is pending cannot be written.
    pub fn finish(mut self) -> Result<bool> {
        let whole = self.options.only.is_none() && self.options.ignore.is_empty();
        if self.options.write_pending && whole {
            let head = "# Differences from Envoy that are not meant to be: case, number of the request, title.\n\
                        # `make differential` fails for what is not here, and tells what is here and no longer differs.\n";
            let lines: String = self.seen.iter().map(|line| format!("{line}\n")).collect();
            std::fs::write(&self.options.pending, format!("{head}{lines}"))?;
            self.failed.clear();
        } else if whole {
            for line in self.pending.iter().filter(|line| !self.seen.contains(**line)) {
                println!("no longer differs, take it from {}: {line}", self.options.pending.display());
            }
        }
        println!(
            "{} requests: {} alike, {} known differences seen, {} pending, {} failures",
            self.requests,
            self.alike,
            self.explained.len(),
            self.seen.len() - self.failed.iter().filter(|place| self.seen.contains(*place)).count(),
            self.failed.len(),
        );
        Ok(self.failed.is_empty())
    }
}

/// What is passed over in a request of a case, by what these say.
fn ignored<'b>(case: &'b Case, request: &'b Request) -> Vec<&'b str> {
    // Envoy's words for a detail are not a contract.
    case.ignore.iter().chain(&request.ignore).map(String::as_str).chain(["log details"]).collect()
}

/// Whether any request of a case differs without explanation, or does not show what it says.
pub fn differs(outcome: &Outcome) -> bool {
    let Outcome { case, seen, judge_refuses: _, refuses: _ } = outcome;
    case.requests.iter().zip(seen).any(|(request, both)| {
        let found = compare(request, both, &ignored(case, request));
        let written = request.difference.is_some() || case.difference.is_some();
        let explained =
            written || both[0].first().is_some_and(|judge| deliberate(&found, judge, request.is_head()).is_some());
        !found.is_empty() && !explained || expected(request, &both[0]).is_some()
    })
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
