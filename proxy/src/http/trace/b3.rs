//! What a request says about its trace in the headers of Zipkin (B3), and what its endpoint is told.
//!
//! Read are the single header `b3` and, where there is none, the `x-b3-` headers; written is what was read, and else the latter,
//! as Envoy does.

use super::super::headers::Headers;
use super::context::Context;

/// Characters of the single header at most: a trace of 128 bits, a span, the decision and the parent.
const LONGEST: usize = 32 + 1 + 16 + 2 + 1 + 16;

/// The span to which a request belongs, in its client's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parent {
    pub(super) trace: u128,
    pub(super) span: u64,
    /// The parent of that span.
    pub(super) parent: Option<u64>,
}

/// What a request says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) parent: Option<Parent>,
    /// The decision, if it was made.
    pub(super) sampled: Option<bool>,
    /// It was said in the single header.
    pub(super) single: bool,
}

/// Something that is no B3.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// Reads the headers of a request; with `or_w3c` those of W3C where there are none of B3.
///
/// # Errors
/// When they are malformed: they are then passed on as they are, and no span is made.
pub(super) fn read(headers: &Headers, or_w3c: bool) -> Result<Told, Malformed> {
    if let Some(single) = headers.get("b3") {
        return read_single(single);
    }
    let sampled = headers.get("x-b3-sampled").map(|value| matches!(value, b"1" | b"true"));
    let (Some(trace), Some(span)) = (headers.get("x-b3-traceid"), headers.get("x-b3-spanid")) else {
        return match headers.get("traceparent").and_then(Context::parse).filter(|_| or_w3c) {
            None => Ok(Told { sampled, ..Told::default() }),
            Some(Context { trace, span, sampled }) => {
                let parent = Some(Parent { trace, span, parent: None });
                Ok(Told { parent, sampled: Some(sampled), single: false })
            }
        };
    };
    let parent = match headers.get("x-b3-parentspanid") {
        None | Some(b"") => None,
        Some(value) => Some(number(value)?),
    };
    let trace = match trace.split_at_checked(16) {
        Some((high, low)) if low.len() == 16 => u128::from(number(high)?) << 64 | u128::from(number(low)?),
        _ => u128::from(number(trace)?),
    };
    Ok(Told {
        parent: Some(Parent { trace, span: number(span)?, parent: parent.filter(|parent| *parent != 0) }),
        sampled,
        single: false,
    })
}

/// `trace-span`, `trace-span-decision`, `trace-span-decision-parent`, or only the decision.
fn read_single(value: &[u8]) -> Result<Told, Malformed> {
    let decision = |value: &[u8]| match value {
        b"0" => Ok(false),
        b"1" | b"d" => Ok(true),
        _ => Err(Malformed),
    };
    if value.len() == 1 {
        return Ok(Told { parent: None, sampled: Some(decision(value)?), single: true });
    }
    if value.len() > LONGEST {
        return Err(Malformed);
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let whole = |part: Option<&[u8]>| part.filter(|part| part.len() == 16).ok_or(Malformed).and_then(number);
    let trace = parts.next().ok_or(Malformed)?;
    let trace = match trace.split_at_checked(16) {
        Some((high, b"")) => u128::from(number(high)?),
        Some((high, low)) => u128::from(number(high)?) << 64 | u128::from(whole(Some(low))?),
        None => return Err(Malformed),
    };
    let span = whole(parts.next())?;
    let sampled = parts.next().map(decision).transpose()?;
    let parent = parts.next().map(|part| whole(Some(part))).transpose()?;
    if parts.next().is_some() {
        return Err(Malformed);
    }
    let parent = Some(Parent { trace, span, parent: parent.filter(|parent| *parent != 0) });
    Ok(Told { parent, sampled, single: true })
}

/// At most 16 hexadecimal digits.
fn number(digits: &[u8]) -> Result<u64, Malformed> {
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(Malformed);
    }
    let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
    u64::from_str_radix(text, 16).map_err(|_| Malformed)
}

/// A trace's id: 16 digits, or 32 where it has more.
pub(super) fn trace_id(trace: u128) -> String {
    if trace >> 64 == 0 { format!("{trace:016x}") } else { format!("{trace:032x}") }
}

/// Tells the endpoint, in the `single` header or in several.
pub(super) fn write(headers: &mut Headers, context: Context, parent: Option<u64>, single: bool) {
    if single {
        let (trace, sampled) = (trace_id(context.trace), u8::from(context.sampled));
        let parent = parent.map(|parent| format!("-{parent:016x}")).unwrap_or_default();
        headers.set("b3", format!("{trace}-{:016x}-{sampled}{parent}", context.span).as_bytes());
        return;
    }
    headers.set("x-b3-traceid", trace_id(context.trace).as_bytes());
    headers.set("x-b3-spanid", format!("{:016x}", context.span).as_bytes());
    if let Some(parent) = parent {
        headers.set("x-b3-parentspanid", format!("{parent:016x}").as_bytes());
    }
    headers.set("x-b3-sampled", if context.sampled { b"1" } else { b"0" });
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SHORT: &str = "8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn told(headers: &[(&str, &str)]) -> Result<Told, Malformed> {
        let mut all = Headers::default();
        for (name, value) in headers {
            all.push(name.as_bytes(), value.as_bytes());
        }
        read(&all, false)
    }

    fn parent(trace: &str, parent: Option<u64>) -> Option<Parent> {
        let trace = u128::from_str_radix(trace, 16).unwrap();
        Some(Parent { trace, span: 0xb7ad_6b71_6920_3331, parent })
    }

    #[test]
    fn b3_when_single_is_read_in_all_its_forms() {
        let single = |value: &str| told(&[("b3", value)]);
        assert_eq!(single("0"), Ok(Told { parent: None, sampled: Some(false), single: true }));
        assert_eq!(single("d"), Ok(Told { parent: None, sampled: Some(true), single: true }));
        let short = Ok(Told { parent: parent(TRACE, None), sampled: None, single: true });
        assert_eq!(single(&format!("{TRACE}-{SPAN}")), short);
        let whole = single(&format!("{SHORT}-{SPAN}-1-{SHORT}"));
        let grandparent = Some(0x8448_eb21_1c80_319c);
        assert_eq!(whole, Ok(Told { parent: parent(SHORT, grandparent), sampled: Some(true), single: true }));
        for wrong in [
            "",
            "2",
            "x",
            SHORT,
            &format!("{SHORT}-"),
            &format!("{SHORT}-{SPAN}-"),
            &format!("{SHORT}-{SPAN}-x"),
            &format!("{SHORT}-{SPAN}-1-"),
            &format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
            &format!("+{}-{SPAN}", &SHORT[1..]),
        ] {
            assert_eq!(single(wrong), Err(Malformed), "{wrong}");
        }
    }

    #[test]
    fn b3_when_in_several_headers_is_read_and_written_the_same() {
        let headers =
            [("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-parentspanid", SHORT), ("x-b3-sampled", "0")];
        let found = told(&headers).unwrap();
        assert_eq!((found.parent.unwrap().span, found.sampled), (0xb7ad_6b71_6920_3331, Some(false)));
        let Parent { trace, span, parent } = found.parent.unwrap();
        let mut written = Headers::default();
        write(&mut written, Context { trace, span, sampled: false }, parent, false);
        for (name, value) in headers {
            assert_eq!(written.get(name), Some(value.as_bytes()), "{name}");
        }
        assert_eq!(told(&[("x-b3-traceid", SHORT)]), Ok(Told::default()), "half of it is none");
        assert_eq!(told(&[("x-b3-sampled", "true")]), Ok(Told { sampled: Some(true), ..Told::default() }));
        assert_eq!(told(&[("x-b3-traceid", "nonsense"), ("x-b3-spanid", SPAN)]), Err(Malformed));
        assert_eq!(trace_id(u128::from_str_radix(SHORT, 16).unwrap()), SHORT);
    }

    #[test]
    fn b3_when_missing_gives_way_to_w3c_only_where_that_is_wanted() {
        let mut headers = Headers::default();
        headers.push(b"traceparent", format!("00-{TRACE}-{SPAN}-01").as_bytes());
        assert_eq!(read(&headers, false), Ok(Told::default()));
        assert_eq!(read(&headers, true), Ok(Told { parent: parent(TRACE, None), sampled: Some(true), single: false }));
    }
}
