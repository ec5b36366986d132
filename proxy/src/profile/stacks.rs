//! Who called whom: from a piece of a stack and this program's own tables.

use super::sample::Sample;
use framehop::{
    CacheNative, ExplicitModuleSectionInfo, MayAllocateDuringUnwind, Module, UnwindRegsNative, Unwinder as _,
    UnwinderNative,
};
use object::read::{Object as _, ObjectSection as _, ObjectSegment as _};
use std::io;
use std::ops::Range;
use std::sync::Arc;

/// Where this program stands in memory, and what it says about itself.
pub(super) struct Stacks {
    /// Its addresses.
    pub(super) range: Range<u64>,
    /// Its file.
    pub(super) file: String,
    /// The number of its build, hexadecimal; empty where it has none.
    pub(super) build: String,
    /// Functions by where they begin, with their ends and names as the linker knows them, if it brings them.
    names: Vec<(u64, u64, Box<str>)>,
    tables: Tables,
}

#[derive(Clone)]
struct Tables {
    text: Option<Range<u64>>,
    frames: Option<(Range<u64>, Arc<[u8]>)>,
    index: Option<(Range<u64>, Arc<[u8]>)>,
}

impl Stacks {
    /// Reads what the program says. The memory for it is there until the profile is written.
    pub(super) fn of_this_program() -> io::Result<Self> {
        let path = std::fs::read_link("/proc/self/exe")?;
        let bytes = std::fs::read("/proc/self/exe")?;
        let file = object::File::parse(&*bytes).map_err(io::Error::other)?;
        let section = |name: &str| {
            let section = file.section_by_name(name)?;
            let range = section.address()..section.address() + section.size();
            Some((range, Arc::from(section.uncompressed_data().ok()?.as_ref())))
        };
        let text = file.section_by_name(".text");
        let tables = Tables {
            text: text.map(|text| text.address()..text.address() + text.size()),
            frames: section(".eh_frame"),
            index: section(".eh_frame_hdr"),
        };
        let mut names: Vec<(u64, u64, Box<str>)> =
            file.symbol_map().symbols().iter().map(|symbol| (symbol.address(), 0, symbol.name().into())).collect();
        for place in 1..names.len() {
            names[place - 1].1 = names[place].0;
        }
        if let Some((begin, end, _)) = names.last_mut() {
            *end = tables.text.as_ref().map_or(*begin, |text| text.end);
        }
        let build = file.build_id().ok().flatten().map(crate::tls::facts::hex).unwrap_or_default();
        let range = loaded(&file)?;
        Ok(Self { range, file: path.to_string_lossy().into_owned(), build, names, tables })
    }

    /// The function that an address is in: its name, or the address where none is known.
    pub(super) fn name(&self, address: u64) -> String {
        let known = address.checked_sub(self.range.start).filter(|_| self.range.contains(&address)).and_then(|place| {
            let next = self.names.partition_point(|(begin, ..)| *begin <= place);
            let (_, end, name) = self.names.get(next.checked_sub(1)?)?;
            (place < *end).then(|| format!("{:#}", rustc_demangle::demangle(name)))
        });
        known.unwrap_or_else(|| format!("{address:#x}"))
    }

    /// What finds out who called whom.
    pub(super) fn unwinder(&self) -> Unwinder {
        let tables = self.tables.clone();
        let (frames_at, frames) = tables.frames.unzip();
        let (index_at, index) = tables.index.unzip();
        let sections = ExplicitModuleSectionInfo {
            text_svma: tables.text,
            eh_frame_svma: frames_at,
            eh_frame: frames,
            eh_frame_hdr_svma: index_at,
            eh_frame_hdr: index,
            ..ExplicitModuleSectionInfo::default()
        };
        let mut unwinder = UnwinderNative::new();
        unwinder.add_module(Module::new(self.file.clone(), self.range.clone(), self.range.start, sections));
        Unwinder { unwinder, cache: CacheNative::new() }
    }
}

/// Where the program was loaded. Its file may be mapped elsewhere as well (by who prints a backtrace): what counts is where its code
/// runs.
fn loaded(file: &object::File<'_>) -> io::Result<Range<u64>> {
    let here = loaded as fn(&object::File<'_>) -> io::Result<Range<u64>> as usize as u64;
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    // `begin-end rights offset device inode path`
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (begin, end) = fields.next()?.split_once('-')?;
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        let (begin, end) = (u64::from_str_radix(begin, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
        (begin..end).contains(&here).then_some((begin, offset))
    };
    let unknown = || io::Error::other("where this program runs is not known");
    let (begin, offset) = maps.lines().find_map(of_line).ok_or_else(unknown)?;
    let place = here - begin + offset;
    let code = file.segments().find(|segment| {
        let (from, length) = segment.file_range();
        (from..from.saturating_add(length)).contains(&place)
    });
    let code = code.ok_or_else(unknown)?;
    let base = here.wrapping_sub(place.wrapping_sub(code.file_range().0).wrapping_add(code.address()));
    let size = file.segments().map(|segment| segment.address().saturating_add(segment.size())).max().unwrap_or(0);
    Ok(base..base.saturating_add(size))
}

/// Finds out who called whom.
pub(super) struct Unwinder {
    unwinder: UnwinderNative<Arc<[u8]>, MayAllocateDuringUnwind>,
    cache: CacheNative<MayAllocateDuringUnwind>,
}

impl Unwinder {
    /// Where a thread was, and from where each function was called, innermost first, so many at most.
    pub(super) fn calls(&mut self, sample: &Sample, most: usize) -> Box<[u64]> {
        let [at, stack, frame, link] = sample.registers();
        #[cfg(target_arch = "x86_64")]
        let registers = {
            let _ = link;
            UnwindRegsNative::new(at, stack, frame)
        };
        #[cfg(target_arch = "aarch64")]
        let registers = UnwindRegsNative::new(link, stack, frame);
        let mut read = |address: u64| sample.at(address).ok_or(());
        let mut frames = self.unwinder.iter_frames(at, registers, &mut self.cache, &mut read);
        let mut calls = Vec::with_capacity(32);
        while calls.len() < most
            && let Ok(Some(found)) = frames.next()
        {
            // A return address is one behind the call.
            calls.push(found.address_for_lookup());
        }
        calls.into()
    }
}
