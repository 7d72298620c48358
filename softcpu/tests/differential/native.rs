//! Runs one instruction on the host's processor.
//!
//! The test enters a stub with every register as wanted; the instruction is followed by an indirect jump that has no effect on
//! registers or flags and leads to code that saves them all. An exception arrives as a signal on a stack of its own; its
//! handler takes registers and vector from the signal frame and returns to the place where the stub was entered.

use std::arch::naked_asm;
use std::cell::UnsafeCell;
use std::mem::offset_of;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::generate::Case;
use crate::state::{
    CODE, DATA, DATA_LEN, Fault, GS_BASE, Outcome, PAGE_LEN, READ_ONLY, State, read_only_page,
};

/// What stub, handler and test hand each other. Only one thread ever runs natively (see [`Native::new`]).
#[repr(C)]
struct Exchange {
    input: State,
    output: State,
    host_rsp: u64,
    mxcsr: u32,
    fault: Option<Fault>,
}

struct Shared(UnsafeCell<Exchange>);
// SAFETY: `Native` exists once, and everything that touches the cell runs on the thread that owns it.
unsafe impl Sync for Shared {}

static EXCHANGE: Shared = Shared(UnsafeCell::new(Exchange {
    input: State::ZERO,
    output: State::ZERO,
    host_rsp: 0,
    mxcsr: 0x1f80,
    fault: None,
}));
/// Whether a signal now belongs to the instruction under test.
static RUNNING: AtomicBool = AtomicBool::new(false);
static TAKEN: AtomicBool = AtomicBool::new(false);

const IN: usize = offset_of!(Exchange, input);
const OUT: usize = offset_of!(Exchange, output);
const RFLAGS: usize = offset_of!(State, rflags);
const RIP: usize = offset_of!(State, rip);
const FX: usize = offset_of!(State, fx);

/// Loads the input state and jumps to its RIP; comes back through [`leave`] or [`recover`].
#[unsafe(naked)]
extern "C" fn enter() {
    naked_asm!(
        "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
        "mov [rip + {x} + {host_rsp}], rsp",
        "fxrstor64 [rip + {x} + {in_fx}]",
        "push qword ptr [rip + {x} + {in_flags}]",
        "popfq",
        "mov rax, [rip + {x} + {input}]",
        "mov rcx, [rip + {x} + {input} + 8]",
        "mov rdx, [rip + {x} + {input} + 16]",
        "mov rbx, [rip + {x} + {input} + 24]",
        "mov rsp, [rip + {x} + {input} + 32]",
        "mov rbp, [rip + {x} + {input} + 40]",
        "mov rsi, [rip + {x} + {input} + 48]",
        "mov rdi, [rip + {x} + {input} + 56]",
        "mov r8, [rip + {x} + {input} + 64]",
        "mov r9, [rip + {x} + {input} + 72]",
        "mov r10, [rip + {x} + {input} + 80]",
        "mov r11, [rip + {x} + {input} + 88]",
        "mov r12, [rip + {x} + {input} + 96]",
        "mov r13, [rip + {x} + {input} + 104]",
        "mov r14, [rip + {x} + {input} + 112]",
        "mov r15, [rip + {x} + {input} + 120]",
        "jmp qword ptr [rip + {x} + {in_rip}]",
        x = sym EXCHANGE,
        input = const IN,
        in_flags = const IN + RFLAGS,
        in_rip = const IN + RIP,
        in_fx = const IN + FX,
        host_rsp = const offset_of!(Exchange, host_rsp),
    )
}

/// Where the instruction's successor jumps: saves everything, then goes on as [`recover`].
#[unsafe(naked)]
extern "C" fn leave() {
    naked_asm!(
        "mov [rip + {x} + {output}], rax",
        "mov [rip + {x} + {output} + 8], rcx",
        "mov [rip + {x} + {output} + 16], rdx",
        "mov [rip + {x} + {output} + 24], rbx",
        "mov [rip + {x} + {output} + 32], rsp",
        "mov [rip + {x} + {output} + 40], rbp",
        "mov [rip + {x} + {output} + 48], rsi",
        "mov [rip + {x} + {output} + 56], rdi",
        "mov [rip + {x} + {output} + 64], r8",
        "mov [rip + {x} + {output} + 72], r9",
        "mov [rip + {x} + {output} + 80], r10",
        "mov [rip + {x} + {output} + 88], r11",
        "mov [rip + {x} + {output} + 96], r12",
        "mov [rip + {x} + {output} + 104], r13",
        "mov [rip + {x} + {output} + 112], r14",
        "mov [rip + {x} + {output} + 120], r15",
        "mov rsp, [rip + {x} + {host_rsp}]",
        "pushfq",
        "pop qword ptr [rip + {x} + {out_flags}]",
        "fxsave64 [rip + {x} + {out_fx}]",
        "jmp {recover}",
        x = sym EXCHANGE,
        output = const OUT,
        out_flags = const OUT + RFLAGS,
        out_fx = const OUT + FX,
        host_rsp = const offset_of!(Exchange, host_rsp),
        recover = sym recover,
    )
}

/// As [`leave`], for a branch that was taken: what waits at [`Case::taken`] jumps here.
#[unsafe(naked)]
extern "C" fn leave_taken() {
    naked_asm!(
        "mov byte ptr [rip + {taken}], 1",
        "jmp {leave}",
        taken = sym TAKEN,
        leave = sym leave,
    )
}

/// Gives the host's registers back and returns from [`enter`].
#[unsafe(naked)]
extern "C" fn recover() {
    naked_asm!(
        "push 0x202",
        "popfq",
        "xor eax, eax",
        "mov ds, eax",
        "mov es, eax",
        "fninit",
        "ldmxcsr [rip + {x} + {mxcsr}]",
        "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
        "ret",
        x = sym EXCHANGE,
        mxcsr = const offset_of!(Exchange, mxcsr),
    )
}

/// Signals that an exception can become.
const SIGNALS: [i32; 5] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGILL,
    libc::SIGTRAP,
];

/// The order of registers in [`State::gpr`] as indices of a signal frame.
const FRAME_ORDER: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

extern "C" fn on_signal(signal: i32, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    if !RUNNING.load(Ordering::Relaxed) {
        // Not ours: let the default action take it when the instruction is tried again.
        // SAFETY: resetting a signal's action is async-signal-safe.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    // SAFETY: the kernel hands a handler installed with SA_SIGINFO a valid ucontext.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    // SAFETY: the thread that owns the cell is the interrupted one, and it is inside the stub.
    let exchange = unsafe { &mut *EXCHANGE.0.get() };
    let frame = &mut context.uc_mcontext.gregs;
    let get = |index: i32| frame[index as usize].cast_unsigned();
    for (to, from) in exchange.output.gpr.iter_mut().zip(FRAME_ORDER) {
        *to = get(from);
    }
    exchange.output.rflags = get(libc::REG_EFL);
    exchange.output.rip = get(libc::REG_RIP);
    let vector = u8::try_from(get(libc::REG_TRAPNO)).unwrap_or(u8::MAX);
    let page_fault = vector == 14;
    exchange.fault = Some(Fault {
        vector,
        error: get(libc::REG_ERR),
        address: if page_fault { get(libc::REG_CR2) } else { 0 },
    });
    frame[libc::REG_RIP as usize] = (recover as extern "C" fn() as usize).cast_signed() as i64;
    // Whatever the instruction did to them: no trap flag, no alignment checks on the way out.
    frame[libc::REG_EFL as usize] = 0x202;
    frame[libc::REG_RSP as usize] = exchange.host_rsp.cast_signed();
    // SAFETY: the frame's FXSAVE image is at least 512 bytes long.
    let image = unsafe { std::slice::from_raw_parts(context.uc_mcontext.fpregs.cast::<u8>(), 512) };
    exchange.output.fx.copy_from_slice(image);
}

/// The host's processor.
pub struct Native {
    fs_base: u64,
    /// The signal stack; kept as long as it may be used.
    _stack: Box<[u8]>,
}

impl Native {
    /// Maps code and scratch memory and takes over the signals of this process. Made once, by the thread that runs the cases.
    pub fn new() -> Self {
        map(
            CODE,
            PAGE_LEN,
            libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
        );
        map(DATA, DATA_LEN + PAGE_LEN, libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: the page was mapped just now and is nobody's yet.
        unsafe { std::ptr::copy_nonoverlapping(read_only_page().as_ptr(), READ_ONLY as *mut u8, PAGE_LEN) };
        // SAFETY: as above; from here on the page is only read.
        let rc = unsafe { libc::mprotect(READ_ONLY as *mut libc::c_void, PAGE_LEN, libc::PROT_READ) };
        assert_eq!(rc, 0, "mprotect");
        let mut stack = vec![0u8; 0x20000].into_boxed_slice();
        let alternate = libc::stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: the stack lives in `self`; the call only registers it.
        let rc = unsafe { libc::sigaltstack(&raw const alternate, std::ptr::null_mut()) };
        assert_eq!(rc, 0, "sigaltstack");
        for signal in SIGNALS {
            // SAFETY: an all-zero sigaction is a valid one to fill in.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction =
                on_signal as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            // SAFETY: the handler is async-signal-safe and has the signature that SA_SIGINFO asks for.
            let rc = unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
            assert_eq!(rc, 0, "sigaction {signal}");
        }
        let mut fs_base = 0u64;
        // SAFETY: ARCH_GET_FS writes one word to the address given.
        let rc = unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1003, &raw mut fs_base) };
        assert_eq!(rc, 0, "arch_prctl(ARCH_GET_FS)");
        // SAFETY: user code on x86-64 Linux does not use GS.
        let rc = unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1001, GS_BASE) };
        assert_eq!(rc, 0, "arch_prctl(ARCH_SET_GS)");
        Self {
            fs_base,
            _stack: stack,
        }
    }

    /// The base address of FS in this thread.
    pub fn fs_base(&self) -> u64 {
        self.fs_base
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        // SAFETY: callers write within the mappings that `new` made and left writable; nothing refers to them.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) }
    }

    /// Runs a case.
    pub fn run(&mut self, case: &Case) -> Outcome {
        let rip = case.state.rip;
        self.put(DATA, &case.data[..]);
        self.put(case.taken, &jump_to(leave_taken));
        self.put(rip, &case.bytes);
        self.put(rip + case.bytes.len() as u64, &jump_to(leave));
        // SAFETY: this thread owns the cell, and neither stub nor handler runs now.
        let exchange = unsafe { &mut *EXCHANGE.0.get() };
        exchange.input = case.state.clone();
        exchange.fault = None;
        TAKEN.store(false, Ordering::Relaxed);
        RUNNING.store(true, Ordering::SeqCst);
        enter();
        RUNNING.store(false, Ordering::SeqCst);
        // SAFETY: as above; taken anew, because `enter` changed what it refers to.
        let exchange = unsafe { &mut *EXCHANGE.0.get() };
        if exchange.fault.is_none() {
            let next = rip + case.bytes.len() as u64;
            exchange.output.rip = if TAKEN.load(Ordering::Relaxed) {
                case.taken
            } else {
                next
            };
        }
        let mut data = Box::new([0; DATA_LEN]);
        // SAFETY: the mapping is readable, as long as the array, and nobody writes it now.
        unsafe { std::ptr::copy_nonoverlapping(DATA as *const u8, data.as_mut_ptr(), DATA_LEN) };
        Outcome {
            state: exchange.output.clone(),
            fault: exchange.fault,
            data,
        }
    }
}

/// `jmp [rip]; .quad target`: a jump that needs no register and changes no flag.
fn jump_to(target: extern "C" fn()) -> [u8; 14] {
    let mut bytes = [0xff, 0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[6..].copy_from_slice(&(target as usize).to_le_bytes());
    bytes
}

fn map(at: u64, len: usize, protection: i32) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | libc::MAP_POPULATE;
    // SAFETY: MAP_FIXED_NOREPLACE never replaces a mapping that somebody uses.
    let got = unsafe { libc::mmap(at as *mut libc::c_void, len, protection, flags, -1, 0) };
    assert_eq!(
        got as u64,
        at,
        "cannot map {len:#x} bytes at {at:#x}: {}",
        std::io::Error::last_os_error()
    );
}
