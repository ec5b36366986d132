//! What may differ without meaning anything is made alike; the rest is compared.

use super::run::Observed;

/// Makes a line alike for both proxies: clocks, random ids, the proxy's own address.
pub fn normal(line: &str, own: &str) -> String {
    let (place, value) = line.split_once(": ").unwrap_or((line, ""));
    let name = place.rsplit(' ').next().unwrap_or_default().to_ascii_lowercase();
    let masked = match name.as_str() {
        "date" => Some("<date>"),
        "x-envoy-upstream-service-time" => Some("<ms>"),
        // What is left of a timeout at a later attempt.
        "x-envoy-expected-rq-timeout-ms" => return format!("{place}: {}", rounded(value)),
        "x-request-id" if value.get(..36).is_some_and(uuid) => return format!("{place}: <uuid>{}", &value[36..]),
        "traceparent" => Some("<trace>"),
        "b3" | "x-b3-traceid" | "x-b3-spanid" => return format!("{place}: <{} characters>", value.len()),
        _ => None,
    };
    match masked {
        Some(mask) => format!("{place}: {mask}"),
        None => without(own, line),
    }
}

/// Leaves an address out, where it is no part of a longer one.
fn without(own: &str, line: &str) -> String {
    let (mut out, mut rest) = (String::new(), line);
    while let Some((before, after)) = rest.split_once(own) {
        let whole = !after.starts_with(|c: char| c.is_ascii_digit());
        out.push_str(before);
        out.push_str(if whole { "<proxy>" } else { own });
        rest = after;
    }
    out + rest
}

fn rounded(milliseconds: &str) -> String {
    match milliseconds.parse::<u64>() {
        Ok(left) if left > 5000 => format!("about {}", (left + 2500) / 5000 * 5000),
        Ok(left) if left > 1000 => format!("about {}", (left + 250) / 500 * 500),
        Ok(left) if left > 100 => format!("about {}", (left + 50) / 100 * 100),
        _ => milliseconds.to_owned(),
    }
}

fn uuid(value: &str) -> bool {
    value.len() == 36
        && value.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

/// Lines that only one of two has, in order; lines that begin with one of `ignore` are passed over.
pub fn difference(left: &[String], right: &[String], ignore: &[&str]) -> Vec<String> {
    let counts = |line: &&String| !ignore.iter().any(|start| line.starts_with(start));
    let (left, right): (Vec<_>, Vec<_>) = (left.iter().filter(counts).collect(), right.iter().filter(counts).collect());
    // The longest common subsequence; what is compared is a few dozen lines long.
    let mut lengths = vec![vec![0u32; right.len() + 1]; left.len() + 1];
    for i in (0..left.len()).rev() {
        for j in (0..right.len()).rev() {
            lengths[i][j] =
                if left[i] == right[j] { lengths[i + 1][j + 1] + 1 } else { lengths[i + 1][j].max(lengths[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut found) = (0, 0, Vec::new());
    while i < left.len() || j < right.len() {
        if i < left.len() && j < right.len() && left[i] == right[j] {
            (i, j) = (i + 1, j + 1);
        } else if j == right.len() || (i < left.len() && lengths[i + 1][j] >= lengths[i][j + 1]) {
            found.push(format!("envoy: {}", left[i]));
            i += 1;
        } else {
            found.push(format!("leno:  {}", right[j]));
            j += 1;
        }
    }
    found
}

/// The deliberate difference that explains all of what differs, for requests that nobody has written a difference at.
/// `judge` is what was seen of Envoy, `head` whether the request was a HEAD.
pub fn deliberate(found: &[String], judge: &Observed, head: bool) -> Option<&'static str> {
    let status = judge.status;
    let found: Vec<&str> = found.iter().map(String::as_str).collect();
    let interim = judge.lines.iter().any(|line| line.starts_with("interim: "));
    if interim && !found.is_empty() && found.iter().all(|line| line.starts_with("leno:  interim")) {
        return Some("further-interim");
    }
    // A scheme that is told twice and nothing else.
    let once =
        |line: &str| line.replace("http,http", "http").replace("https,https", "https").replacen("envoy: ", "", 1);
    let pairs = found.chunks(2).all(|pair| match pair {
        [theirs, ours] => theirs.starts_with("envoy: ") && Some(&*once(theirs)) == ours.strip_prefix("leno:  "),
        _ => false,
    });
    if !found.is_empty() && status.is_some_and(|status| (300..400).contains(&status)) && pairs {
        return Some("doubled-scheme");
    }
    match *found {
        // Our own answer to a HEAD ends with its head, and only Envoy's does not.
        ["envoy: connection: more after the last answer", "leno:  connection: closed"] if head => {
            Some("answers-to-head")
        }
        [length] if status == Some(204) && length.starts_with("envoy: header content-length: ") => {
            Some("length-of-204")
        }
        _ => None,
    }
}

/// Whether two counts out of `n` each can come from one and the same share: within four standard deviations.
pub fn same_share(left: usize, right: usize, n: usize) -> bool {
    let (left, right, n) = (left as f64, right as f64, n.max(1) as f64);
    let share = (left + right) / (2.0 * n);
    (left - right).abs() <= 4.0 * (2.0 * n * share * (1.0 - share)).sqrt() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.split(';').map(str::to_owned).collect()
    }

    #[test]
    fn normal_when_clocks_and_ids_differ_then_the_lines_are_alike() {
        assert_eq!(normal("response: header date: now", "127.1.1.1"), "response: header date: now");
        assert_eq!(normal("header date: now", "127.1.1.1"), "header date: <date>");
        assert_eq!(normal("header location: http://127.1.1.1:1/", "127.1.1.1"), "header location: http://<proxy>:1/");
        assert_eq!(normal("header x: 127.1.1.10", "127.1.1.1"), "header x: 127.1.1.10");
        assert_eq!(normal("header x-request-id: mine", "127.1.1.1"), "header x-request-id: mine");
        let told = "header x-request-id: 391f4a4c-1f2e-4a3b-9c4d-5e6f7a8b9c0d,100%";
        assert_eq!(normal(told, "127.1.1.1"), "header x-request-id: <uuid>,100%");
    }

    #[test]
    fn difference_when_a_line_is_only_on_one_side_then_it_is_told() {
        let found = difference(&lines("a;b;c"), &lines("a;c;d"), &[]);
        assert_eq!(found, ["envoy: b", "leno:  d"]);
        assert!(difference(&lines("a;b"), &lines("a"), &["b"]).is_empty());
    }

    #[test]
    fn deliberate_when_more_differs_than_it_explains_then_it_is_none() {
        let seen = |status, text| Observed { status: Some(status), lines: lines(text), ..Observed::default() };
        let length = "envoy: header content-length: 5";
        assert_eq!(deliberate(&lines(length), &seen(204, ""), false), Some("length-of-204"));
        assert_eq!(deliberate(&lines(length), &seen(200, ""), false), None);
        assert_eq!(deliberate(&lines(&format!("{length};leno:  header x: y")), &seen(204, ""), false), None);
        let behind = "envoy: connection: more after the last answer;leno:  connection: closed";
        assert_eq!(deliberate(&lines(behind), &seen(400, ""), true), Some("answers-to-head"));
        assert_eq!(deliberate(&lines(behind), &seen(400, ""), false), None);
    }

    #[test]
    fn deliberate_when_a_scheme_is_doubled_and_nothing_else_then_it_is_explained() {
        let seen = |status| Observed { status: Some(status), ..Observed::default() };
        let twice = "envoy: header x: http,http;leno:  header x: http";
        assert_eq!(deliberate(&lines(twice), &seen(302), false), Some("doubled-scheme"));
        assert_eq!(deliberate(&lines(twice), &seen(200), false), None);
        assert_eq!(deliberate(&lines(&format!("{twice};leno:  header y: z")), &seen(302), false), None);
        assert_eq!(deliberate(&lines("envoy: header x: a;leno:  header x: b"), &seen(302), false), None);
    }

    #[test]
    fn deliberate_when_interim_answers_are_more_than_the_first_then_they_are_explained() {
        let seen = |text| Observed { lines: lines(text), ..Observed::default() };
        let more = "leno:  interim: HTTP/1.1 103 Unknown;leno:  interim header x: y";
        assert_eq!(deliberate(&lines(more), &seen("interim: HTTP/1.1 100 Continue"), false), Some("further-interim"));
        assert_eq!(
            deliberate(&lines(more), &seen("response: HTTP/1.1 200 OK"), false),
            None,
            "Envoy passes the first on"
        );
        assert_eq!(
            deliberate(&lines(&more.replace("leno: ", "envoy:")), &seen("interim: HTTP/1.1 100 Continue"), false),
            None
        );
    }

    #[test]
    fn same_share_when_far_apart_then_it_is_not() {
        assert!(same_share(100, 110, 400));
        assert!(!same_share(100, 200, 400));
    }
}
