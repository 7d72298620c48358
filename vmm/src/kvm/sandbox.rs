//! A seccomp filter for each of the machine's threads, set before the guest runs.
//!
//! A guest that takes over such a thread, through a bug in a device or in the handling of exits, can use KVM, the
//! clocks, memory and the descriptors that are open already. It cannot open files or sockets or start processes. A
//! forbidden system call returns EPERM, and the run ends with an error that names the call.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use kvm_bindings::KVMIO;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};
use vmm_sys_util::signal::register_signal_handler;

use super::error::KvmError;

/// System calls of every thread: memory for the allocator, locks, signals, clocks, open descriptors, exit, and eventfd
/// for new interrupt routes.
const COMMON: [i64; 27] = [
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_close,
    libc::SYS_eventfd2,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_read,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];
/// System calls of the device thread's event loop.
const EVENT_LOOP: [i64; 7] = [
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_fcntl,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
];

/// Bits of an ioctl's number that hold its type (`_IOC_TYPE`).
const IOCTL_TYPE: u64 = 0xff00;
/// Offset of `si_syscall` in the `siginfo_t` of SIGSYS: after three ints, padding and an address.
const SI_SYSCALL: usize = 24;

thread_local! {
    /// Number of the first forbidden call that this thread made, plus one; 0 is none.
    static FORBIDDEN: Cell<i32> = const { Cell::new(0) };
}

/// The filters of one machine.
#[derive(Debug)]
pub(super) struct Sandbox {
    vcpu: BpfProgram,
    devices: BpfProgram,
}

/// Selects a filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A vCPU's thread.
    Vcpu,
    /// The device thread.
    Devices,
}

impl Sandbox {
    /// Compiles the filters and installs the handler for SIGSYS, so that a forbidden call does not end the process.
    pub fn new() -> Result<Self, KvmError> {
        static HANDLER: OnceLock<Result<(), i32>> = OnceLock::new();
        HANDLER
            .get_or_init(|| {
                register_signal_handler(libc::SIGSYS, on_forbidden).map_err(|error| error.errno())
            })
            .map_err(|errno| KvmError::new("sigaction(SIGSYS)", std::io::Error::from_raw_os_error(errno)))?;
        Ok(Self {
            vcpu: compile(&[])?,
            devices: compile(&EVENT_LOOP)?,
        })
    }

    /// Confines the calling thread from now on. This also sets no_new_privs.
    pub fn enter(&self, role: Role) -> Result<(), KvmError> {
        let program = match role {
            Role::Vcpu => &self.vcpu,
            Role::Devices => &self.devices,
        };
        seccompiler::apply_filter(program).map_err(|error| KvmError::new("seccomp", error))
    }
}

/// Fails with the first forbidden call of the calling thread, if it made one.
pub(super) fn violation() -> Result<(), KvmError> {
    match FORBIDDEN.get() {
        0 => Ok(()),
        number => Err(KvmError::new(
            "seccomp",
            format!(
                "thread {} made system call {}, which its filter forbids",
                std::thread::current().name().unwrap_or("without a name"),
                number - 1
            ),
        )),
    }
}

/// The root cause of `error` in the calling thread: its forbidden call, if it made one.
pub(super) fn cause(error: KvmError) -> KvmError {
    violation().err().unwrap_or(error)
}

fn compile(more: &[i64]) -> Result<BpfProgram, KvmError> {
    let failed = |error: &dyn std::fmt::Display| KvmError::new("seccomp", error);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = COMMON
        .iter()
        .chain(more)
        .map(|number| (*number, Vec::new()))
        .collect();
    let kvm = SeccompCondition::new(
        1,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::MaskedEq(IOCTL_TYPE),
        u64::from(KVMIO) << 8,
    )
    .map_err(|error| failed(&error))?;
    let kvm = SeccompRule::new(vec![kvm]).map_err(|error| failed(&error))?;
    rules.insert(libc::SYS_ioctl, vec![kvm]);
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Trap,
        SeccompAction::Allow,
        TargetArch::x86_64,
    )
    .map_err(|error| failed(&error))?;
    filter
        .try_into()
        .map_err(|error: seccompiler::BackendError| failed(&error))
}

/// Handles SIGSYS: keeps the number of the call for [`violation`] and makes the call return EPERM.
#[allow(unsafe_code)]
extern "C" fn on_forbidden(_: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let number = info.cast::<u8>().wrapping_add(SI_SYSCALL).cast::<i32>();
    // SAFETY: the kernel gives a siginfo_t of SIGSYS, of 128 bytes; an int lies at this offset.
    let number = unsafe { number.read_unaligned() };
    if FORBIDDEN.get() == 0 {
        FORBIDDEN.set(number.saturating_add(1));
    }
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: the third argument of a handler with SA_SIGINFO is the interrupted context, which the kernel restores
    // when the handler returns.
    let rax = unsafe { &mut (*context).uc_mcontext.gregs[libc::REG_RAX as usize] };
    *rax = -i64::from(libc::EPERM);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `body` in a confined thread. Returns its result and that of [`violation`].
    fn confined<T: Send + 'static>(
        role: Role,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> (T, Result<(), KvmError>) {
        let sandbox = Sandbox::new().unwrap();
        std::thread::Builder::new()
            .name("confined".into())
            .spawn(move || {
                sandbox.enter(role).unwrap();
                (body(), violation())
            })
            .unwrap()
            .join()
            .unwrap()
    }

    #[test]
    fn allocation_locks_and_clocks_are_allowed() {
        let (sum, violation) = confined(Role::Vcpu, || {
            let many: Vec<u64> = (0..1 << 20).collect();
            let lock = std::sync::Mutex::new(many);
            std::thread::yield_now();
            lock.lock().unwrap().iter().sum::<u64>()
        });
        assert_eq!(sum, ((1 << 20) - 1) << 19);
        violation.unwrap();
    }

    #[test]
    fn a_forbidden_call_is_refused_and_named() {
        let (socket, violation) = confined(Role::Vcpu, || std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
        assert_eq!(socket.unwrap_err().raw_os_error(), Some(libc::EPERM));
        let violation = violation.unwrap_err().to_string();
        assert!(
            violation.contains("thread confined made system call 41,"),
            "{violation}"
        );
    }

    #[test]
    fn an_error_after_a_forbidden_call_names_the_call() {
        let (found, _) = confined(Role::Vcpu, || {
            let error = std::net::UdpSocket::bind("127.0.0.1:0").unwrap_err();
            cause(KvmError::new("socket", error)).to_string()
        });
        assert!(found.contains("made system call 41,"), "{found}");
        assert_eq!(cause(KvmError::new("KVM_RUN", "no")).to_string(), "KVM_RUN: no");
    }

    #[test]
    fn each_role_has_its_own_calls() {
        let create = || {
            // SAFETY: has no preconditions; a descriptor that comes of it is closed with the process.
            #[allow(unsafe_code)]
            unsafe {
                libc::epoll_create1(0)
            }
        };
        assert!(confined(Role::Devices, create).1.is_ok());
        assert!(confined(Role::Vcpu, create).1.is_err());
    }
}
