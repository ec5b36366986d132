//! Gives back the machine code that only starting up and taking configuration needed.
//!
//! Every page of a program that was used once stays mapped, and counts as resident, for the life of a process. A sidecar
//! stands in every pod, so that code (argument parsing, certificates, discovery) and the constants that it reads (the
//! descriptors of the whole API, say) are unmapped when it has been quiet for a while; what is used again is mapped again
//! from the page cache, in the microseconds of a minor fault.

use std::ffi::c_void;

/// Unmaps the code and the constants of this program from memory until they are used again. Failure changes nothing and is
/// only logged.
pub(super) fn unmap_unused() {
    let (maps, program) = match (std::fs::read_to_string("/proc/self/maps"), std::fs::read_link("/proc/self/exe")) {
        (Ok(maps), Ok(program)) => (maps, program),
        (Err(error), _) | (_, Err(error)) => {
            tracing::debug!(%error, "code stays mapped");
            return;
        }
    };
    for (start, length) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is a private mapping of our own file that was never writable, so its pages are those of the
        // file and nothing is lost: a thread that runs or reads there faults them in again.
        let advised = unsafe { libc::madvise(start as *mut c_void, length, libc::MADV_DONTNEED) };
        if advised != 0 {
            tracing::debug!(error = %std::io::Error::last_os_error(), "code stays mapped");
        }
    }
}

/// Start and length of the mappings of `program` that nobody can have written to: its code, and its constants, which lie at
/// the beginning of the file. Other read-only mappings were written to by the loader before (relocations).
fn code(maps: &str, program: &str) -> Vec<(usize, usize)> {
    maps.lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            let (range, rights, offset) = (fields.next()?, fields.next()?, fields.next()?);
            let constants = rights == "r--p" && offset.bytes().all(|digit| digit == b'0');
            if !constants && rights != "r-xp" || fields.nth(2)? != program {
                return None;
            }
            let (start, end) = range.split_once('-')?;
            let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
            Some((start, end.checked_sub(start)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_when_maps_are_read_is_only_what_cannot_have_changed() {
        let maps = "\
1000-3000 r--p 00000000 fe:00 7 /leno-proxy
3000-8000 r-xp 00002000 fe:00 7 /leno-proxy
8000-9000 r--p 00007000 fe:00 7 /leno-proxy
9000-a000 rw-p 00008000 fe:00 7 /leno-proxy
a000-b000 r-xp 00000000 00:00 0 [vdso]
b000-c000 rwxp 00000000 fe:00 7 /leno-proxy
";
        assert_eq!(code(maps, "/leno-proxy"), [(0x1000, 0x2000), (0x3000, 0x5000)]);
        unmap_unused(); // and the program goes on
        assert!(
            !code(
                &std::fs::read_to_string("/proc/self/maps").unwrap(),
                &std::env::current_exe().unwrap().to_string_lossy()
            )
            .is_empty()
        );
    }
}
