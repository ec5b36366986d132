//! Profiles of CPU time: begun and fetched by Envoy's path, or in one request by the path that `pprof` asks.

use super::pages::Query;
use crate::profile::{self, Form, ProfileError};
use hyper::{Method, StatusCode};
use leno_runtime::http::{Answer, Routes, text, with_type};
use std::time::Duration;

/// How long samples are taken where nobody says it: what Go's programs do.
const USUAL: Duration = Duration::from_secs(30);

/// The pages.
pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .add(
            "/cpuprofiler",
            "begins a profile of CPU time (enable=y), ends and gives it (enable=n)",
            |request| async move {
                if request.method() != Method::POST {
                    return text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed, POST required.\n");
                }
                let query = Query::of(&request);
                match query.get("enable") {
                    Some("y") => blocking(|| profile::start().map(|()| text(StatusCode::OK, "OK\n"))).await,
                    Some("n") => give(form(&query)).await,
                    _ => text(StatusCode::BAD_REQUEST, "?enable=<y|n>\n"),
                }
            },
        )
        .add("/debug/pprof/profile", "a profile of CPU time for pprof (seconds, format=folded)", |request| async move {
            if !matches!(*request.method(), Method::GET | Method::HEAD) {
                return text(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed, GET required.\n");
            }
            let query = Query::of(&request);
            let seconds = match query.get("seconds").map(str::parse) {
                None => USUAL,
                Some(Ok(seconds @ 1..)) if Duration::from_secs(seconds) <= profile::MAX_TIME => {
                    Duration::from_secs(seconds)
                }
                Some(_) => {
                    let most = profile::MAX_TIME.as_secs();
                    return text(StatusCode::BAD_REQUEST, format!("seconds is a whole number from 1 to {most}\n"));
                }
            };
            let begun = blocking(|| profile::start().map(|()| text(StatusCode::OK, ""))).await;
            if begun.status() != StatusCode::OK {
                return begun;
            }
            let leaves = EndsWithAsker;
            tokio::time::sleep(seconds).await;
            std::mem::forget(leaves);
            give(form(&query)).await
        })
}

/// Ends the profile when who asked for it has gone: others could take none.
struct EndsWithAsker;

impl Drop for EndsWithAsker {
    fn drop(&mut self) {
        tokio::task::spawn_blocking(|| profile::stop(Form::Folded));
    }
}

fn form(query: &Query) -> Form {
    if query.get("format") == Some("folded") { Form::Folded } else { Form::Pprof }
}

async fn give(form: Form) -> Answer {
    let kind = if form == Form::Folded { "text/plain; charset=utf-8" } else { "application/octet-stream" };
    blocking(move || profile::stop(form).map(|profile| with_type(StatusCode::OK, kind, profile))).await
}

/// Reads this program or waits for a thread: nothing that others should wait for.
async fn blocking(work: impl FnOnce() -> Result<Answer, ProfileError> + Send + 'static) -> Answer {
    let refused = |error: ProfileError| {
        let code = match error {
            ProfileError::Running | ProfileError::Stopped => StatusCode::CONFLICT,
            ProfileError::Unable(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        text(code, format!("a profile: {error}\n"))
    };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.unwrap_or_else(refused),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "a profile: failed\n"),
    }
}
