//! Answers that routes give by themselves.

use super::common::inline;
use super::{Context, Converted, Refused, Within as _, local_reply, refuse};
use crate::config::{BodyFormat, DirectResponse};
use leno_xds::envoy::config::core::v3::{
    DataSource, SubstitutionFormatString, data_source::Specifier, substitution_format_string::Format,
};
use leno_xds::envoy::config::route::v3 as xds;
use std::io::Read as _;

/// The answer of such a route. Its body has at most so many bytes; one that a format writes has no bound but the resource's own.
///
/// # Errors
/// Names the field.
pub(super) fn direct(
    context: &mut Context,
    value: xds::DirectResponseAction,
    most: usize,
) -> Converted<DirectResponse> {
    let xds::DirectResponseAction { status, body, body_format } = value;
    let code = u16::try_from(status)
        .ok()
        .filter(|code| (200..600).contains(code))
        .ok_or_else(|| Refused::new("status", format!("{status} is not a status between 200 and 599")))?;
    let body = body.map(|body| data(body, most)).transpose().within("body")?.unwrap_or_default();
    if body.len() > most {
        return Err(Refused::new("body", format!("has more than {most} bytes")));
    }
    let mut direct = DirectResponse { code, body: body.into(), format: None, content_type: None };
    let Some(format) = body_format else { return Ok(direct) };
    let (typed, fixed) = (!format.content_type.is_empty(), fixed(&format));
    match fixed {
        Some(bytes) => {
            direct.body = bytes.into();
            direct.content_type = typed.then(|| format.content_type.into());
        }
        None => {
            let BodyFormat { content_type, format } = local_reply::format(context, format).within("body_format")?;
            direct.content_type = Some(content_type).filter(|_| typed || format.is_json());
            direct.format = Some(format);
        }
    }
    Ok(direct)
}

/// What a format writes that has no operators and is no text, such as an image.
fn fixed(format: &SubstitutionFormatString) -> Option<Vec<u8>> {
    match &format.format {
        Some(Format::TextFormatSource(DataSource { specifier: Some(Specifier::InlineBytes(bytes)), .. })) => {
            let plain = !bytes.contains(&b'%') && std::str::from_utf8(bytes).is_err();
            plain.then(|| bytes.clone())
        }
        _ => None,
    }
}

/// The bytes of a source; of a file, one more than allowed at most, as they are now.
fn data(value: DataSource, most: usize) -> Converted<Vec<u8>> {
    let DataSource { watched_directory, specifier } = value;
    refuse!(watched_directory);
    match specifier {
        Some(Specifier::Filename(path)) => {
            let mut bytes = Vec::new();
            let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
            let read = std::fs::File::open(&path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
            read.map_err(|error| Refused::new("filename", format!("`{path}` cannot be read: {error}")))?;
            Ok(bytes)
        }
        specifier => inline(DataSource { watched_directory: None, specifier }),
    }
}
