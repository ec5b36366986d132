//! jemalloc, tuned so that memory goes back to the kernel soon after it was used.
//!
//! Huge pages off (they keep memory resident that nobody uses), a background thread that returns dirty pages after five
//! seconds. A global allocator and its configuration symbol can only be declared by the binary itself, hence a macro.

/// Gives memory that nobody uses back to the kernel at once, that included which this thread kept for itself. True when
/// there was jemalloc to do so.
pub fn give_back() -> bool {
    // All arenas (`MALLCTL_ARENAS_ALL`, 4096).
    [c"thread.tcache.flush", c"arena.4096.purge"].iter().fold(true, |done, name| {
        let nothing = std::ptr::null_mut::<std::ffi::c_void>();
        // SAFETY: the name is a C string; neither `flush` nor `purge` reads or writes a value, as jemalloc's manual says.
        done & unsafe { tikv_jemalloc_sys::mallctl(name.as_ptr(), nothing, std::ptr::null_mut(), nothing, 0) == 0 }
    })
}

#[doc(hidden)]
pub use tikv_jemallocator;

/// Declares jemalloc as the global allocator of a binary. Call it once, in `main.rs`, outside of functions. An argument
/// adds settings, for example `use_jemalloc!("narenas:2")` for a process that is seldom busy on more than two threads.
#[macro_export]
macro_rules! use_jemalloc {
    () => {
        $crate::use_jemalloc!("");
    };
    ($more:literal) => {
        #[global_allocator]
        static GLOBAL_ALLOCATOR: $crate::memory::tikv_jemallocator::Jemalloc =
            $crate::memory::tikv_jemallocator::Jemalloc;

        /// Read by jemalloc before `main`: a C string, `const char *malloc_conf`. A reference to its first byte has
        /// the same representation as that pointer.
        // SAFETY: no other item has this name; jemalloc declares it as a weak symbol for the program to define.
        #[allow(non_upper_case_globals)]
        #[unsafe(export_name = "malloc_conf")]
        pub static malloc_conf: &u8 =
            &concat!("thp:never,background_thread:true,dirty_decay_ms:5000,muzzy_decay_ms:5000,", $more, "\0")
                .as_bytes()[0];
    };
}
