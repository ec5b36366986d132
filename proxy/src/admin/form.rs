//! What answers of the admin server look like: the headers that all have, JSON, and the list of pages.

use hyper::{StatusCode, header};
use leno_runtime::http::{Answer, Routes, json, text};
use serde_json::{Number, Value};

/// Greatest number that is the same as a fraction and as a whole one.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// With the headers that Envoy's answers have.
pub(super) fn dressed(mut answer: Answer) -> Answer {
    for (name, value) in [
        (header::CACHE_CONTROL, "no-cache, max-age=0"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::SERVER, "envoy"),
    ] {
        answer.headers_mut().insert(name, header::HeaderValue::from_static(value));
    }
    answer
}

/// A JSON answer, in which whole numbers are written as such.
pub(super) fn shown(mut value: Value) -> Answer {
    whole(&mut value);
    json(&value)
}

fn whole(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let is_whole = |float: &f64| float.fract() == 0.0 && float.abs() <= LARGEST;
            if let Some(float) =
                Some(&*number).filter(|number| number.is_f64()).and_then(Number::as_f64).filter(is_whole)
            {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(all) => all.iter_mut().for_each(whole),
        Value::Object(fields) => fields.values_mut().for_each(whole),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

/// Adds the list of the pages that there are, and an answer with it for all others. What changes something wants POST.
pub(super) fn listed(routes: Routes, posts: &[&str]) -> Routes {
    let line = |(path, help): (&str, &str)| {
        let post = if posts.contains(&path) { " (POST)" } else { "" };
        format!("  {path}{post}: {help}\n")
    };
    let lines = format!("admin commands are:\n{}", routes.help().map(line).collect::<String>());
    let missing = format!("invalid path. {lines}");
    routes
        .get("/help", "these lines", move || dressed(text(StatusCode::OK, lines.clone())))
        .otherwise(move || dressed(text(StatusCode::NOT_FOUND, missing.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json as value;

    #[test]
    fn numbers_when_they_are_whole_then_they_are_written_without_a_fraction() {
        let mut all = value!({"a": [5.0, 2.5, -3.0, 7], "b": {"c": 1e300}, "d": "5.0"});
        whole(&mut all);
        assert_eq!(all.to_string(), r#"{"a":[5,2.5,-3,7],"b":{"c":1e+300},"d":"5.0"}"#);
    }
}
