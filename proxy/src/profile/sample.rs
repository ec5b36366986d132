//! The signal that comes while CPU time passes, and what its handler leaves: registers and a piece of the stack.
//!
//! A handler may interrupt anything, also who holds the allocator's lock. It makes three system calls, and nothing else.

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt};
use nix::sys::time::TimeVal;
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Bytes of a stack that are looked at, from its end on.
pub(super) const STACK: usize = 16 * 1024;
/// The program counter, the stack and the frame pointer, and where the function returns to, if a register says it.
const REGISTERS: usize = 4;
const HEAD: usize = REGISTERS * 8;
const PAGE: usize = 4096;
/// Bytes of samples that wait to be read; the kernel may allow fewer. What finds no room is lost.
const WAITING: usize = 1 << 20;
/// How long is waited for a sample before it is looked whether to stop.
const PATIENCE: Duration = Duration::from_millis(50);

/// Where handlers write; -1 while no samples are taken.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
/// Handlers that are writing.
static BUSY: AtomicUsize = AtomicUsize::new(0);
/// Samples for which there was no room.
static LOST: AtomicU64 = AtomicU64::new(0);

/// The signal, while it comes.
pub(super) struct Ticks {
    _socket: OwnedFd,
}

impl Ticks {
    /// Begins; the samples are read from the socket that is given.
    pub(super) fn start(rate: u32) -> io::Result<(Self, OwnedFd)> {
        let (read, write) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        setsockopt(&write, sockopt::SndBuf, &WAITING)?;
        let patience = TimeVal::new(0, i64::from(PATIENCE.subsec_micros()));
        setsockopt(&read, sockopt::ReceiveTimeout, &patience)?;
        let action =
            SigAction::new(SigHandler::SigAction(on_tick), SaFlags::SA_RESTART | SaFlags::SA_SIGINFO, SigSet::empty());
        // SAFETY: the handler keeps to what a handler may do (see the module). It stays for good: a signal that is on its way
        // when samples are wanted no more would otherwise end the process.
        unsafe { sigaction(Signal::SIGPROF, &action) }?;
        LOST.store(0, Ordering::Relaxed);
        SOCKET.store(write.as_raw_fd(), Ordering::SeqCst);
        let ticks = Self { _socket: write };
        set_timer(1_000_000 / rate.max(1))?;
        Ok((ticks, read))
    }

    /// Ends; how many samples were lost. What was sent can still be read.
    pub(super) fn end(self) -> u64 {
        drop(self);
        LOST.load(Ordering::Relaxed)
    }
}

impl Drop for Ticks {
    fn drop(&mut self) {
        disarm();
        SOCKET.store(-1, Ordering::SeqCst);
        // The descriptor must not be another file's while a handler still writes to it.
        while BUSY.load(Ordering::SeqCst) > 0 {
            std::thread::yield_now();
        }
    }
}

/// No more signals from now on.
pub(super) fn disarm() {
    let _ = set_timer(0);
}

fn set_timer(micros: u32) -> io::Result<()> {
    let every = libc::timeval { tv_sec: 0, tv_usec: libc::suseconds_t::from(micros) };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the kernel reads the value that is there for as long as the call lasts, and writes nothing.
    let result = unsafe { libc::setitimer(libc::ITIMER_PROF, &raw const timer, std::ptr::null_mut()) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

extern "C" fn on_tick(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    BUSY.fetch_add(1, Ordering::SeqCst);
    let socket = SOCKET.load(Ordering::SeqCst);
    if socket >= 0 && !take(socket, context) {
        LOST.fetch_add(1, Ordering::Relaxed);
    }
    BUSY.fetch_sub(1, Ordering::SeqCst);
    Errno::set_raw(errno);
}

/// Sends what is seen of who was interrupted; false where there was no room.
fn take(socket: RawFd, context: *mut libc::c_void) -> bool {
    // SAFETY: the kernel hands a handler that wants it (SA_SIGINFO) a context that is there for as long as it runs.
    let Some(context) = (unsafe { context.cast::<libc::ucontext_t>().as_ref() }) else { return false };
    let registers = registers(context);
    let mut bytes = [0; HEAD + STACK];
    for (into, register) in bytes.chunks_exact_mut(8).zip(registers) {
        into.copy_from_slice(&register.to_ne_bytes());
    }
    let [_, stack, ..] = registers;
    let mut from = usize::try_from(stack).unwrap_or(0);
    // By pages: where the stack begins, the next one may not be there.
    let mut pieces = [RemoteIoVec { base: 0, len: 0 }; STACK / PAGE + 1];
    let mut left = STACK;
    for piece in &mut pieces {
        let length = left.min(PAGE - from % PAGE);
        *piece = RemoteIoVec { base: from, len: length };
        from = from.saturating_add(length);
        left -= length;
    }
    // The kernel copies, and says where it cannot. Where it does not let us, the place alone is known.
    let read = process_vm_readv(nix::unistd::getpid(), &mut [IoSliceMut::new(&mut bytes[HEAD..])], &pieces);
    let length = HEAD + read.unwrap_or(0).min(STACK);
    send(socket, &bytes[..length], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL).is_ok()
}

#[cfg(target_arch = "x86_64")]
fn registers(context: &libc::ucontext_t) -> [u64; REGISTERS] {
    let at = |register: libc::c_int| {
        usize::try_from(register)
            .ok()
            .and_then(|place| context.uc_mcontext.gregs.get(place))
            .map_or(0, |value| *value as u64)
    };
    [at(libc::REG_RIP), at(libc::REG_RSP), at(libc::REG_RBP), 0]
}

#[cfg(target_arch = "aarch64")]
fn registers(context: &libc::ucontext_t) -> [u64; REGISTERS] {
    let machine = &context.uc_mcontext;
    [machine.pc, machine.sp, machine.regs[29], machine.regs[30]]
}

/// What a handler saw.
pub(super) struct Sample {
    bytes: Vec<u8>,
    length: usize,
}

impl Default for Sample {
    fn default() -> Self {
        Self { bytes: vec![0; HEAD + STACK], length: 0 }
    }
}

impl Sample {
    /// Waits for the next one, for a while; false when none came.
    pub(super) fn receive(&mut self, socket: &OwnedFd) -> bool {
        match recv(socket.as_raw_fd(), &mut self.bytes, MsgFlags::empty()) {
            Ok(length @ HEAD..) => {
                self.length = length;
                true
            }
            _ => false,
        }
    }

    /// The program counter, the stack and the frame pointer, and the link register.
    pub(super) fn registers(&self) -> [u64; REGISTERS] {
        std::array::from_fn(|place| self.word(place * 8).unwrap_or(0))
    }

    /// What stood at an address of the stack, if it was copied.
    pub(super) fn at(&self, address: u64) -> Option<u64> {
        let [_, stack, ..] = self.registers();
        let offset = usize::try_from(address.checked_sub(stack)?).ok()?;
        self.word(HEAD.checked_add(offset)?)
    }

    fn word(&self, place: usize) -> Option<u64> {
        let bytes = self.bytes.get(..self.length)?.get(place..place.checked_add(8)?)?;
        bytes.try_into().ok().map(u64::from_ne_bytes)
    }
}
