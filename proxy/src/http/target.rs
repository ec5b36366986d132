//! Targets of requests, and what an authority may be: of a host and of a URL.

use super::{head::RequestHead, parse::HeadError};

/// Makes path and authority of the request's target.
pub(super) fn check_target(method: &[u8], target: &[u8], urls: bool, head: &mut RequestHead) -> Result<(), HeadError> {
    if method == b"CONNECT" {
        // The authority form, always with a port (RFC 9112, 3.2.3). There is no path.
        check_authority(target)?;
        let bare = crate::route::without_port(target);
        let port = target.get(bare.len() + 1..).unwrap_or_default();
        if bare.is_empty() || !matches!(port.len(), 1..=5) || !port.iter().all(u8::is_ascii_digit) {
            return Err(HeadError::Malformed("the target of CONNECT is not a host and a port"));
        }
        head.set_authority(target);
        head.set_path(b"");
        return Ok(());
    }
    if !target.is_ascii() {
        return Err(HeadError::Malformed("the target has a character that no URL has"));
    }
    match target.first() {
        Some(b'/') => Ok(()),
        Some(b'*') if target.len() == 1 && method == b"OPTIONS" => Ok(()),
        _ if !urls => Ok(()),
        _ => {
            // The absolute form: its authority wins over the host header (RFC 9112, 3.2.2).
            let secure = strip_ignore_case(target, b"https://");
            let rest = secure.or_else(|| strip_ignore_case(target, b"http://"));
            let rest = rest.ok_or(HeadError::Malformed("the target is neither a path nor a URL"))?;
            let end = rest.iter().position(|&b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
            check_url_authority(&rest[..end])?;
            head.set_authority(&rest[..end]);
            (head.has_scheme, head.secure) = (true, secure.is_some());
            match rest.get(end) {
                None => head.set_path(b"/"),
                // A query alone is no path, and is not taken for one later.
                Some(_) => head.set_path(&rest[end..]),
            }
            Ok(())
        }
    }
}

fn strip_ignore_case<'a>(text: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    (text.len() >= prefix.len() && text[..prefix.len()].eq_ignore_ascii_case(prefix)).then(|| &text[prefix.len()..])
}

/// Refuses what is no host, or no port, of a URL: names of letters, digits, dots and dashes, addresses in brackets.
fn check_url_authority(authority: &[u8]) -> Result<(), HeadError> {
    let host = crate::route::without_port(authority);
    let name = |&b: &u8| b.is_ascii_alphanumeric() || b"-.".contains(&b);
    let address = |&b: &u8| b.is_ascii_hexdigit() || b":.".contains(&b);
    let good = match host.strip_prefix(b"[").and_then(|host| host.strip_suffix(b"]")) {
        Some(host) => !host.is_empty() && host.iter().all(address),
        None => !host.is_empty() && host.iter().all(name),
    };
    let port = &authority[host.len()..];
    // A number that is written with a sign is none.
    let digits = port.get(1..).filter(|digits| digits.iter().all(u8::is_ascii_digit)).unwrap_or_default();
    let number = std::str::from_utf8(digits).ok().and_then(|port| port.parse::<u16>().ok());
    match good && (port.is_empty() || number.is_some()) {
        true => Ok(()),
        false => Err(HeadError::Malformed("the target's host is none")),
    }
}

/// Refuses an authority with characters that no host or port has.
pub(crate) fn check_authority(authority: &[u8]) -> Result<(), HeadError> {
    const GOOD: [bool; 256] = {
        let (mut good, others, mut at) = ([false; 256], b"-._~!$&'()*+;=:[]%", 0);
        while at < good.len() {
            good[at] = (at as u8).is_ascii_alphanumeric();
            at += 1;
        }
        at = 0;
        while at < others.len() {
            good[others[at] as usize] = true;
            at += 1;
        }
        good
    };
    if authority.iter().all(|&byte| GOOD[usize::from(byte)]) {
        Ok(())
    } else {
        Err(HeadError::Malformed("the host has a character that no host has"))
    }
}
