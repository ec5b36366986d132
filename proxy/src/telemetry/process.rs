//! The proxy's own figures, read from `/proc` when somebody scrapes.

use super::render::Exposition;

/// Appends `process_*` and the version. What cannot be read is left out.
pub fn write(out: &mut Exposition) {
    out.family("leno_proxy_build_info", "gauge", "The version that runs.");
    out.sample("leno_proxy_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    // Fields after the program's name, which may hold blanks and brackets: from the third field on.
    if let Ok(stat) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = stat.rsplit_once(") ")
    {
        let fields: Vec<&str> = rest.split(' ').collect();
        let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<u64>().ok());
        // The kernel counts in hundredths of a second for user space (USER_HZ) on every architecture of ours.
        if let (Some(user), Some(system)) = (number(14), number(15)) {
            out.family("process_cpu_seconds_total", "counter", "User and system time.");
            out.sample_text("process_cpu_seconds_total", "", &thousandths((user + system) * 10));
        }
        if let Some(threads) = number(20) {
            out.family("process_threads", "gauge", "Threads.");
            out.sample("process_threads", &[], threads);
        }
    }
    if let Ok(statm) = std::fs::read_to_string("/proc/self/statm") {
        let mut pages = statm.split(' ').filter_map(|text| text.parse::<u64>().ok());
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        if let (Some(size), Some(resident)) = (pages.next(), pages.next()) {
            out.family("process_virtual_memory_bytes", "gauge", "Address space.");
            out.sample("process_virtual_memory_bytes", &[], size * page);
            out.family("process_resident_memory_bytes", "gauge", "Memory in RAM.");
            out.sample("process_resident_memory_bytes", &[], resident * page);
        }
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        out.family("process_open_fds", "gauge", "Open file descriptors.");
        out.sample("process_open_fds", &[], open.count() as u64);
    }
}

/// Memory in RAM of a process of ours, in bytes; `None` when there is no such process.
pub fn resident(pid: u32) -> Option<u64> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
    Some(statm.split(' ').nth(1)?.parse::<u64>().ok()? * page)
}

/// A number of thousandths as decimal text without needless zeros.
pub(super) fn thousandths(value: u64) -> String {
    let (whole, part) = (value / 1000, value % 1000);
    if part == 0 {
        return whole.to_string();
    }
    format!("{whole}.{part:03}").trim_end_matches('0').to_owned()
}
