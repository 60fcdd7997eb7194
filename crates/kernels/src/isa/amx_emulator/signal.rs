//! SIGILL: where the system hands over what the processor refuses, and takes back registers and RIP. Structures of glibc.

use std::ffi::c_int;
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::OnceLock;

use super::decode::{RIP, Registers, decode};
use super::execute::AMX;

/// `SIGILL` and `SA_SIGINFO` of Linux on x86_64 (`bits/signum-generic.h`, `bits/sigaction.h`).
pub(super) const SIGILL: c_int = 4;
const SA_SIGINFO: c_int = 4;

/// `struct sigaction` of glibc on x86_64 (`bits/sigaction.h`): 152 bytes.
#[repr(C)]
struct SigAction {
    /// Address of the handler; 0 is `SIG_DFL`.
    handler: usize,
    /// `sigset_t`, 1024 bits: the signals blocked while the handler runs, besides the one it handles.
    mask: [u64; 16],
    flags: c_int,
    /// Set by glibc itself.
    restorer: usize,
}

/// The start of `siginfo_t` on x86_64 (`bits/types/siginfo_t.h`); the rest is not needed.
#[repr(C)]
struct SigInfo {
    signo: c_int,
    errno: c_int,
    /// Positive when the kernel raised the signal for an instruction, else another process or `raise` sent it.
    code: c_int,
}

/// The start of `ucontext_t` of glibc on x86_64 (`sys/ucontext.h`); the rest is not needed.
#[repr(C)]
struct UContext {
    flags: u64,
    link: usize,
    /// `stack_t`: `ss_sp`, `ss_flags` with its padding, `ss_size`.
    stack: [u64; 3],
    gregs: Registers,
}

const _: () = assert!(size_of::<SigAction>() == 152 && offset_of!(SigAction, flags) == 136);
const _: () = assert!(offset_of!(SigInfo, code) == 8 && offset_of!(UContext, gregs) == 40);

unsafe extern "C" {
    fn sigaction(signal: c_int, new: *const SigAction, old: *mut SigAction) -> c_int;
    pub(super) safe fn raise(signal: c_int) -> c_int;
    fn write(fd: c_int, bytes: *const u8, count: usize) -> isize;
}

/// Starts the emulation for all threads of the process; true when it stands. May be called again, from any thread.
///
/// The handler runs on the interrupted stack, below the red zone. The kernel keeps the vector state, MXCSR and flags
/// in the signal frame and gives the handler fresh ones (`arch/x86/kernel/signal.c`), so the handler computes with
/// round to nearest even whatever MXCSR says. SIGILL stays blocked in the handler (no `SA_NODEFER`): one thread never
/// enters it twice, and an illegal instruction inside it would kill the process.
pub fn install() -> bool {
    static DONE: OnceLock<bool> = OnceLock::new();
    *DONE.get_or_init(|| set_action(on_sigill as *const () as usize, SA_SIGINFO))
}

/// Sets what SIGILL does; async-signal-safe.
fn set_action(handler: usize, flags: c_int) -> bool {
    let (mask, restorer) = ([0; 16], 0);
    let action = SigAction { handler, mask, flags, restorer };
    // SAFETY: `action` is laid out as glibc wants it, the old action may be null, and `handler` is SIG_DFL or a
    // function of the signature that SA_SIGINFO stands for.
    unsafe { sigaction(SIGILL, &action, null_mut()) == 0 }
}

/// The SIGILL handler; uses neither heap nor locks.
extern "C" fn on_sigill(_signal: c_int, info: *const SigInfo, context: *mut UContext) {
    // SAFETY: the kernel hands an SA_SIGINFO handler valid pointers that nothing else uses meanwhile.
    let (info, regs) = unsafe { (&*info, &mut (*context).gregs) };
    if info.code <= 0 {
        // Not from an instruction: resend it; it strikes when the handler returns and unblocks it.
        set_action(0, 0);
        raise(SIGILL);
        return;
    }
    // SAFETY: RIP is that of the instruction just refused, so its bytes are readable.
    let Some((insn, length)) = (unsafe { decode(regs) }) else {
        set_action(0, 0); // the instruction is refused again, now for good
        return;
    };
    // SAFETY: the state is this thread's own, and SIGILL is blocked here, so this is the only reference to it; the
    // program asks for the memory accesses itself.
    match AMX.with(|amx| unsafe { (*amx.get()).execute(insn) }) {
        Ok(()) => regs[RIP] += length,
        Err(mistake) => {
            for text in ["AMX emulator: ", mistake, "\n"] {
                // SAFETY: `text` is readable for its length; a failing write is of no concern.
                unsafe { write(2, text.as_ptr(), text.len()) };
            }
            set_action(0, 0);
        }
    }
}
