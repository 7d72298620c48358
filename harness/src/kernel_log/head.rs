//! The lines by which reports are recognised.

use super::Code;

/// Begins WARN, BUG and UBSAN reports (include/asm-generic/bug.h, CUT_HERE). BUG and WARN_ON print it as information,
/// so it may be missing on a console.
pub(super) const CUT_HERE: &str = "------------[ cut here ]------------";
/// Ends WARN, BUG, oops and UBSAN reports (kernel/panic.c, lib/ubsan.c).
pub(super) const END_TRACE: &str = "---[ end trace";
/// A panic (kernel/panic.c). The run's outcome tells it.
pub(super) const PANIC: &str = "Kernel panic - not syncing";

/// What a complaint is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// WARN and its family (kernel/panic.c, __warn).
    Warning,
    /// BUG and its family (lib/bug.c), and messages that begin with `BUG:` and have no kind of their own.
    Bug,
    /// An exception in the kernel (arch/x86/mm/fault.c, arch/x86/kernel/dumpstack.c and traps.c).
    Oops,
    /// A page or page table in a state that it must not have (mm/page_alloc.c, mm/memory.c).
    BadPage,
    /// The kernel's address sanitizer (mm/kasan/report.c).
    Kasan,
    /// Sampled memory errors (mm/kfence/report.c).
    Kfence,
    /// Data races (kernel/kcsan/report.c).
    Kcsan,
    /// Uninitialised memory (mm/kmsan/report.c).
    Kmsan,
    /// Undefined behaviour (lib/ubsan.c).
    Ubsan,
    /// Lock dependencies (kernel/locking/lockdep.c), and RCU used wrongly.
    Lockdep,
    /// A task that is blocked for too long (kernel/hung_task.c).
    HungTask,
    /// A grace period that does not end (kernel/rcu/tree_stall.h, tree_exp.h, tasks.h).
    RcuStall,
    /// A processor that does not schedule (kernel/watchdog.c).
    SoftLockup,
    /// A processor that does not take interrupts (kernel/watchdog.c).
    HardLockup,
    /// A work queue that does not proceed (kernel/workqueue.c).
    WorkqueueLockup,
    /// Sleeping or scheduling in atomic context (kernel/sched/core.c).
    Atomic,
    /// A reference counter out of its range (lib/refcount.c).
    Refcount,
    /// A damaged list (lib/list_debug.c).
    List,
    /// A damaged object of a slab cache (mm/slub.c).
    Slab,
    /// Memory that nothing points to (mm/kmemleak.c).
    Leak,
    /// An interrupt that nobody handles, or an NMI without a reason that the kernel knows (arch/x86/kernel/irq.c,
    /// nmi.c).
    Interrupt,
}

impl Kind {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Bug => "BUG",
            Self::Oops => "oops",
            Self::BadPage => "bad page",
            Self::Kasan => "KASAN report",
            Self::Kfence => "KFENCE report",
            Self::Kcsan => "KCSAN report",
            Self::Kmsan => "KMSAN report",
            Self::Ubsan => "UBSAN report",
            Self::Lockdep => "lockdep report",
            Self::HungTask => "hung task",
            Self::RcuStall => "RCU stall",
            Self::SoftLockup => "soft lockup",
            Self::HardLockup => "hard lockup",
            Self::WorkqueueLockup => "workqueue lockup",
            Self::Atomic => "report of sleep in atomic context",
            Self::Refcount => "reference count error",
            Self::List => "list corruption",
            Self::Slab => "slab corruption",
            Self::Leak => "memory leak",
            Self::Interrupt => "unexpected interrupt",
        }
    }
}

/// Messages that begin with `BUG: `, most specific first.
const BUGS: [(&str, Kind); 13] = [
    ("KASAN: ", Kind::Kasan),
    ("KFENCE: ", Kind::Kfence),
    ("KCSAN: ", Kind::Kcsan),
    ("KMSAN: ", Kind::Kmsan),
    ("Bad page ", Kind::BadPage),
    ("Bad rss-counter ", Kind::BadPage),
    ("soft lockup", Kind::SoftLockup),
    ("workqueue lockup", Kind::WorkqueueLockup),
    ("scheduling ", Kind::Atomic),
    ("sleeping function called from invalid context", Kind::Atomic),
    ("MAX_", Kind::Lockdep),
    ("unable to handle ", Kind::Oops),
    ("kernel NULL pointer dereference", Kind::Oops),
];

/// Lockdep's messages that begin with `WARNING: `. It prints a line of `=` before each.
const LOCKDEP: [&str; 11] = [
    "possible circular locking dependency detected",
    "possible recursive locking detected",
    "possible irq lock inversion dependency detected",
    "inconsistent lock state",
    "bad unlock balance detected",
    "bad contention detected",
    "held lock freed",
    "lock held when returning to user space",
    "suspicious RCU usage",
    "Nested lock was not taken",
    "chain_key collision",
];

/// How messages about interrupts that nobody handles begin, and about NMIs.
const INTERRUPTS: [&str; 4] = [
    "No irq handler for ",
    "Uhhuh. NMI received for unknown reason",
    "NMI: PCI system error",
    "NMI: IOCK error",
];

/// Messages of lib/list_debug.c.
const LIST: [&str; 3] = [
    "list_add corruption",
    "list_add double add",
    "list_del corruption",
];

/// The kind of the report that begins with a line of this text, and the code that it names. `after_rule` says whether
/// the line before is one of `=` alone.
pub(super) fn head(text: &str, after_rule: bool) -> Option<(Kind, Option<Code>)> {
    if let Some(rest) = text.strip_prefix("WARNING: ") {
        return warning(rest, after_rule);
    }
    // The watchdogs' prefixes (pr_fmt).
    let text = text.strip_prefix("NMI ").unwrap_or(text);
    let text = text.strip_prefix("watchdog: ").unwrap_or(text);
    if let Some(rest) = text.strip_prefix("BUG: ") {
        let named = BUGS.iter().find(|(begin, _)| rest.starts_with(begin));
        let kind = named.map_or(Kind::Bug, |(_, kind)| *kind);
        let names_code = matches!(kind, Kind::Kasan | Kind::Kfence | Kind::Kcsan | Kind::Kmsan);
        let code = rest.rsplit_once(" in ").filter(|_| names_code);
        return Some((kind, code.and_then(|(_, code)| Code::parse(code))));
    }
    let kind = if text.starts_with("kernel BUG at ") || text.starts_with("CFI failure at ") {
        Kind::Bug
    } else if text.starts_with("Oops: ")
        || text.starts_with("Unable to handle kernel ")
        || text.starts_with("traps: PANIC: double fault")
        || text.starts_with("PANIC: double fault")
    {
        Kind::Oops
    } else if text.starts_with("UBSAN: ") {
        Kind::Ubsan
    } else if text.starts_with("[ BUG: ") || text.starts_with("INFO: trying to register non-static key") {
        Kind::Lockdep
    } else if LIST.iter().any(|begin| text.starts_with(begin)) {
        Kind::List
    } else if text.starts_with("refcount_t: ") {
        Kind::Refcount
    } else if text.starts_with("kmemleak: ") && text.contains(" new suspected memory leak") {
        Kind::Leak
    } else if INTERRUPTS.iter().any(|begin| text.starts_with(begin))
        || text.contains(" No irq handler for vector")
    {
        Kind::Interrupt
    } else {
        return blocked(text).or_else(|| slab(text)).map(|kind| (kind, None));
    };
    Some((kind, None))
}

/// The kind of a message that begins with `WARNING: `. A driver may print that word too without any report.
fn warning(rest: &str, after_rule: bool) -> Option<(Kind, Option<Code>)> {
    // To 6.18: "CPU: 0 PID: 1 at FILE:LINE SYMBOL". Later: "FILE:LINE at SYMBOL, CPU#0: COMM/PID". The file can be
    // missing.
    if rest.starts_with("CPU: ") {
        let place = rest.split_once(" at ").map_or("", |(_, place)| place);
        let code = place.split_once(' ').map_or(place, |(_, code)| code);
        return Some((Kind::Warning, Code::parse(code)));
    }
    if let Some((place, _)) = rest.split_once(", CPU#") {
        let code = place
            .strip_prefix("at ")
            .or_else(|| Some(place.rsplit_once(" at ")?.1));
        return Some((Kind::Warning, code.and_then(Code::parse)));
    }
    let lockdep = after_rule
        || LOCKDEP.iter().any(|begin| rest.starts_with(begin))
        || rest.ends_with("unsafe lock order detected")
        || rest.ends_with("still has locks held!");
    lockdep.then_some((Kind::Lockdep, None))
}

/// Tasks, grace periods and processors that do not proceed.
fn blocked(text: &str) -> Option<Kind> {
    let info = text.strip_prefix("rcu: ").unwrap_or(text).strip_prefix("INFO: ");
    if let Some(info) = info {
        if info.starts_with("task ") && info.contains(" blocked") && info.contains(" for more than ") {
            return Some(Kind::HungTask);
        }
        let stalled = ["detected stall", "detected expedited stalls"];
        return stalled
            .iter()
            .any(|words| info.contains(words))
            .then_some(Kind::RcuStall);
    }
    // "CPU1: Watchdog detected hard LOCKUP on cpu 0"; the processor in front is missing in older versions.
    let named = text.strip_prefix("CPU").and_then(|rest| rest.split_once(": "));
    let message = named.map_or(text, |(_, message)| message);
    message
        .starts_with("Watchdog detected hard LOCKUP")
        .then_some(Kind::HardLockup)
}

/// "BUG cache (taint): what".
fn slab(text: &str) -> Option<Kind> {
    let (_, behind) = text.strip_prefix("BUG ")?.split_once(" (")?;
    behind.contains("): ").then_some(Kind::Slab)
}
