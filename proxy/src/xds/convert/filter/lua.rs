//! Lua that does nothing, as control planes write it for others to fill in. A program is refused: none is run here.

use super::super::{Converted, Refused, Within as _};
use crate::config::FilterSetting;
use leno_xds::envoy::config::core::v3::{DataSource, data_source::Specifier};
use leno_xds::envoy::extensions::filters::http::lua::v3::{Lua, LuaPerRoute, lua_per_route::Override};

/// Takes a filter that has no program.
///
/// # Errors
/// When it has one.
pub(super) fn nothing(value: Lua) -> Converted<()> {
    // What is not named is for programs.
    let Lua { inline_code, source_codes, default_source_code, .. } = value;
    comment(inline_code.as_bytes()).within("inline_code")?;
    for (name, code) in source_codes {
        source(Some(code)).within(format_args!("source_codes[{name}]"))?;
    }
    source(default_source_code).within("default_source_code")
}

/// The same of a route.
///
/// # Errors
/// When it has a program, or names one.
pub(super) fn of_route(value: LuaPerRoute) -> Converted<FilterSetting> {
    match value.r#override {
        Some(Override::Name(_)) => return Err(Refused::new("name", "names a program; this proxy runs none")),
        Some(Override::SourceCode(code)) => source(Some(code)).within("source_code")?,
        Some(Override::Disabled(_)) | None => {}
    }
    Ok(FilterSetting::Off)
}

fn source(value: Option<DataSource>) -> Converted<()> {
    match value.and_then(|value| value.specifier) {
        None => Ok(()),
        Some(Specifier::InlineString(code)) => comment(code.as_bytes()).within("inline_string"),
        Some(Specifier::InlineBytes(code)) => comment(&code).within("inline_bytes"),
        Some(Specifier::Filename(_) | Specifier::EnvironmentVariable(_)) => {
            Err(Refused::new("", "is a program from elsewhere; this proxy runs none"))
        }
    }
}

/// Whether there is nothing but comments of one line.
fn comment(code: &[u8]) -> Converted<()> {
    let says_nothing = |line: &[u8]| {
        let line = line.trim_ascii();
        line.is_empty() || line.starts_with(b"--") && !line[2..].starts_with(b"[")
    };
    match code.split(|&byte| byte == b'\n').all(says_nothing) {
        true => Ok(()),
        false => {
            Err(Refused::new("", "is a program; this proxy runs none: do it by other filters, or take this one out"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inline(code: &str) -> Option<DataSource> {
        Some(DataSource { specifier: Some(Specifier::InlineString(code.to_owned())), ..DataSource::default() })
    }

    #[test]
    fn lua_when_it_is_only_a_comment_then_it_is_taken_and_a_program_is_refused_by_its_field() {
        let placeholder = "-- Filled in by routes.\n\n  -- Nothing here.\n";
        assert!(nothing(Lua { default_source_code: inline(placeholder), ..Lua::default() }).is_ok());
        let program = "-- what it does\nfunction envoy_on_request(handle) end";
        for (lua, field) in [
            (Lua { inline_code: program.to_owned(), ..Lua::default() }, "inline_code"),
            (Lua { default_source_code: inline(program), ..Lua::default() }, "default_source_code.inline_string"),
            (
                Lua { default_source_code: inline("--[[ x ]] f()"), ..Lua::default() },
                "default_source_code.inline_string",
            ),
        ] {
            assert!(nothing(lua).unwrap_err().to_string().contains(field), "{field}");
        }
        let of = |code| of_route(LuaPerRoute { r#override: Some(code), ..LuaPerRoute::default() });
        assert!(matches!(of(Override::Disabled(true)), Ok(FilterSetting::Off)));
        assert!(of(Override::SourceCode(inline(program).unwrap())).is_err() && of(Override::Name("x".into())).is_err());
    }
}
