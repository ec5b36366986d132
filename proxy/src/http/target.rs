//! Targets of requests, and what an authority may be: of a host and of a URL.

use super::{head::RequestHead, parse::HeadError, rules::RequestRules};

/// Makes path and authority of the request's target.
pub(super) fn check_target(
    method: &[u8],
    target: &[u8],
    rules: RequestRules,
    head: &mut RequestHead,
) -> Result<(), HeadError> {
    if method == b"CONNECT" {
        // The authority form, always with a port (RFC 9112, 3.2.3). There is no path.
        check_authority(target)?;
        let bare = crate::route::without_port(target);
        let port = target.get(bare.len() + 1..).unwrap_or_default();
        if bare.is_empty() || port_number(port).is_none() {
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
        // With a query it is no path to which a route leads.
        Some(b'*') if matches!(target.get(1), None | Some(b'?')) && method == b"OPTIONS" => Ok(()),
        _ if !rules.urls => Ok(()),
        _ => {
            // The absolute form: its authority wins over the host header (RFC 9112, 3.2.2).
            let secure = strip_ignore_case(target, b"https://");
            let rest = secure.or_else(|| strip_ignore_case(target, b"http://"));
            let rest = rest.ok_or_else(|| match target.windows(3).any(|part| part == b"://") {
                true => HeadError::Scheme,
                false => HeadError::Malformed("the target is neither a path nor a URL"),
            })?;
            let end = rest.iter().position(|&b| matches!(b, b'/' | b'?' | b'#')).unwrap_or(rest.len());
            let authority = without_user(&rest[..end])?;
            check_url_authority(authority)?;
            if secure.is_some() && !rules.secure_urls {
                return Err(HeadError::Insecure);
            }
            head.set_authority(authority);
            (head.has_scheme, head.secure) = (true, secure.is_some());
            match rest.get(end) {
                Some(b'#') => return Err(HeadError::Url),
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

/// The number of a port: digits alone, no sign.
fn port_number(digits: &[u8]) -> Option<u16> {
    let digits = Some(digits).filter(|digits| digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// A URL's authority without the name of a user, which is nobody's business further on (RFC 9110, 4.2.4). A second one is refused.
fn without_user(authority: &[u8]) -> Result<&[u8], HeadError> {
    let mut parts = authority.rsplitn(2, |&b| b == b'@');
    let (host, user) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    check_authority(user)?;
    Ok(host)
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
    match good && (port.is_empty() || port_number(&port[1..]).is_some()) {
        true => Ok(()),
        false => Err(HeadError::Url),
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
