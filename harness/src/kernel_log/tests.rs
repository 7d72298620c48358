use super::*;
use guest_agent::protocol::LogRecord;
use proptest::prelude::*;

fn console(text: &str) -> Vec<Complaint> {
    complaints(console_lines(text)).kept
}

/// The only complaint of a console.
fn one(text: &str) -> Complaint {
    let found = console(text);
    assert_eq!(found.len(), 1, "{found:#?}\nin {text}");
    found.into_iter().next().unwrap()
}

/// Lines as a console prints them, in steps of 10 us from `second` on.
fn printed(second: u64, lines: &[&str]) -> String {
    printed_every(10, second, lines)
}

/// What a kernel prints that takes so many microseconds for each line.
fn printed_every(us: u64, second: u64, lines: &[&str]) -> String {
    let lines = (0u64..).zip(lines);
    lines
        .map(|(at, line)| format!("[{second:5}.{:06}] {line}\r\n", at * us))
        .collect()
}

fn symbol(name: &str) -> Option<Code> {
    Some(Code::Symbol(name.into()))
}

const CUT: &str = "------------[ cut here ]------------";

/// A WARN_ON of 7.3 without CONFIG_KALLSYMS.
const WARN_7_3: [&str; 12] = [
    "------------[ cut here ]------------",
    "WARNING: drivers/misc/lkdtm/bugs.c:105 at 0xffffffff813c5e58, CPU#0: init/49",
    "CPU: 0 UID: 0 PID: 49 Comm: init Not tainted 7.3.4 #1 NONE ",
    "RIP: 0010:0xffffffff813c5e58",
    "Code: 66 2e 0f 1f 84 00 00 00 00 00 90 90 <0f> 0b",
    "RSP: 0018:ffffc900001b3e38 EFLAGS: 00000246",
    "RAX: ffffffff813c5e50 RBX: 0000000000000000 RCX: 0000000000000000",
    "Call Trace:",
    " <TASK>",
    " ? 0xffffffff813c4f21",
    " </TASK>",
    "---[ end trace 0000000000000000 ]---",
];

#[test]
fn a_warning_is_told_with_its_place() {
    let found = one(&printed(1, &WARN_7_3));
    assert_eq!((found.kind, found.begin_us), (Kind::Warning, Some(1_000_000)));
    assert_eq!(found.code, Some(Code::Address(0xffff_ffff_813c_5e58)));
    assert_eq!(found.addresses(), [0xffff_ffff_813c_4f21, 0xffff_ffff_813c_5e58]);
    // Registers, code and stack names say nothing.
    let said = [
        WARN_7_3[1],
        WARN_7_3[2].trim_end(),
        WARN_7_3[3],
        "? 0xffffffff813c4f21",
    ];
    assert_eq!(found.lines, said);
    let named = with_symbols(&found.headline, |_| Some("lkdtm_WARNING+0x8".into()));
    assert_eq!(
        named,
        "WARNING: drivers/misc/lkdtm/bugs.c:105 at lkdtm_WARNING+0x8, CPU#0: init/49"
    );
    // To 6.18, and without CONFIG_DEBUG_BUGVERBOSE.
    for line in [
        "WARNING: CPU: 0 PID: 49 at drivers/misc/lkdtm/bugs.c:98 lkdtm_WARNING+0x18/0x20 [lkdtm]",
        "WARNING: CPU: 0 PID: 49 at lkdtm_WARNING+0x18/0x20",
        "WARNING: at lkdtm_WARNING+0x18/0x20, CPU#0: init/49",
    ] {
        assert_eq!(
            one(&printed(2, &[line])).code,
            symbol("lkdtm_WARNING+0x18"),
            "{line}"
        );
    }
}

#[test]
fn the_forms_of_each_kind_are_known() {
    for (kind, code, line) in [
        (Kind::Bug, "", "kernel BUG at drivers/misc/lkdtm/bugs.c:90!"),
        (
            Kind::Kasan,
            "luo_open+0x1f2",
            "BUG: KASAN: slab-use-after-free in luo_open+0x1f2/0x340",
        ),
        (
            Kind::Kfence,
            "test_read+0xb3",
            "BUG: KFENCE: use-after-free read in test_read+0xb3/0x143",
        ),
        (
            Kind::Kcsan,
            "__mod_timer",
            "BUG: KCSAN: data-race in __mod_timer / timer_expire",
        ),
        (
            Kind::BadPage,
            "",
            "BUG: Bad page state in process init  pfn:01234",
        ),
        (
            Kind::BadPage,
            "",
            "BUG: Bad rss-counter state mm:(____ptrval____) type:MM_FILEPAGES val:1",
        ),
        (
            Kind::Oops,
            "",
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        ),
        (
            Kind::Oops,
            "",
            "BUG: unable to handle page fault for address: ffffc90000000000",
        ),
        (
            Kind::Oops,
            "",
            "Oops: general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
        ),
        (
            Kind::Ubsan,
            "",
            "UBSAN: array-index-out-of-bounds in drivers/misc/lkdtm/bugs.c:441:16",
        ),
        (
            Kind::Lockdep,
            "",
            "WARNING: possible circular locking dependency detected",
        ),
        (
            Kind::Lockdep,
            "",
            "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
        ),
        (
            Kind::Lockdep,
            "",
            "WARNING: lock held when returning to user space!",
        ),
        (Kind::Lockdep, "", "WARNING: init/1 still has locks held!"),
        (Kind::Lockdep, "", "[ BUG: Invalid wait context ]"),
        (Kind::Lockdep, "", "INFO: trying to register non-static key."),
        (
            Kind::HungTask,
            "",
            "INFO: task init:49 blocked for more than 1 seconds.",
        ),
        (
            Kind::HungTask,
            "",
            "INFO: task init:49 blocked in I/O wait for more than 120 seconds.",
        ),
        (
            Kind::RcuStall,
            "",
            "rcu: INFO: rcu_sched self-detected stall on CPU",
        ),
        (
            Kind::RcuStall,
            "",
            "rcu: INFO: rcu_sched detected expedited stalls on CPUs/tasks: { 0-...D }",
        ),
        (Kind::RcuStall, "", "INFO: rcu_tasks detected stalls on tasks:"),
        (
            Kind::SoftLockup,
            "",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 3s! [init:49]",
        ),
        (
            Kind::HardLockup,
            "",
            "watchdog: CPU1: Watchdog detected hard LOCKUP on cpu 0",
        ),
        (
            Kind::HardLockup,
            "",
            "NMI watchdog: Watchdog detected hard LOCKUP on cpu 0",
        ),
        (
            Kind::WorkqueueLockup,
            "",
            "BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 34s!",
        ),
        (
            Kind::Atomic,
            "",
            "BUG: scheduling while atomic: init/49/0x00000002",
        ),
        (
            Kind::Atomic,
            "",
            "BUG: sleeping function called from invalid context at mm/slab.h:1",
        ),
        (Kind::Refcount, "", "refcount_t: underflow; use-after-free."),
        (Kind::Interrupt, "", "No irq handler for 0.119"),
        (
            Kind::Interrupt,
            "",
            "__common_interrupt: 0.119 No irq handler for vector",
        ),
        (
            Kind::Interrupt,
            "",
            "NMI: PCI system error (SERR) for reason ff on CPU 0.",
        ),
        (
            Kind::Interrupt,
            "",
            "Uhhuh. NMI received for unknown reason 2d on CPU 0.",
        ),
        (
            Kind::List,
            "",
            "list_del corruption. prev->next should be 1, but was 0. (prev=0)",
        ),
        (Kind::Slab, "", "BUG kmalloc-64 (Not tainted): Poison overwritten"),
        (
            Kind::Leak,
            "",
            "kmemleak: 3 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
        ),
        (Kind::Bug, "", "BUG: spinlock bad magic on CPU#0, init/1"),
    ] {
        let found = one(&printed(3, &[line]));
        assert_eq!((found.kind, found.headline.as_str()), (kind, line));
        assert_eq!(found.code, symbol(code).filter(|_| !code.is_empty()), "{line}");
    }
    // A message of lockdep that is not listed stands behind its line of "=".
    let found = one(&printed(
        3,
        &["============", "WARNING: something new detected", "------------"],
    ));
    assert_eq!(found.kind, Kind::Lockdep);
}

#[test]
fn what_only_looks_like_a_complaint_is_none() {
    let lines = [
        "Kernel command line: console=ttyS0 note=\"BUG: KASAN: x in y\" WARNING: CPU: 0 PID: 1 at a b",
        "printk: debug: ignoring loglevel setting, BUG: none",
        "WARNING: the driver is old",
        "WARNING! power/level is deprecated; use power/control instead",
        "INFO: lockdep is turned off.",
        "INFO: task init:49 is blocked on a mutex likely owned by task kworker:1.",
        "rcu: INFO: Stall ended before state dump start",
        "INFO: NMI handler (x) took too long to run: 1.234 msecs",
        "kfence: initialized - using 2097152 bytes for 255 objects at 0x(____ptrval____)-0x(____ptrval____)",
        "kasan: KernelAddressSanitizer initialized",
        "watchdog: Delayed init of the lockup detector failed: -19",
        "init: page allocation failure: order:4, mode:0xcc0(GFP_KERNEL), nodemask=(null)",
        "Out of memory: Killed process 49 (init)",
        "lkdtm: Performing direct entry BUG",
        "DEBUG: BUG",
        "BUGS: none (0): known",
        "Oops, that was nothing",
        "baton agent: mount(/proc): errno 1",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
        "CPU: 0 UID: 0 PID: 1 Comm: init Not tainted 7.3.4 #1 NONE ",
        "---[ end Kernel panic - not syncing: Attempted to kill init! ]---",
        "---[ end trace 0000000000000000 ]---",
        "RIP: 0010:0xffffffff813c5e58",
    ];
    assert_eq!(console(&printed(0, &lines)), []);
}

#[test]
fn one_report_with_two_headlines_is_told_once() {
    let bug = [
        "------------[ cut here ]------------",
        "kernel BUG at drivers/misc/lkdtm/bugs.c:90!",
        "Oops: invalid opcode: 0000 [#1] SMP NOPTI",
        "CPU: 0 UID: 0 PID: 49 Comm: init",
        "RIP: 0010:lkdtm_BUG+0x0/0x10",
        "RIP: 0033:0x401234",
        "---[ end trace 0000000000000000 ]---",
        "RIP: 0010:other+0x0/0x10",
    ];
    let found = one(&printed(1, &bug));
    assert_eq!((found.kind, &found.code), (Kind::Bug, &symbol("lkdtm_BUG+0x0")));
    assert!(found.lines.iter().any(|line| line.starts_with("Oops: ")));
    let fault = [
        "BUG: kernel NULL pointer dereference, address: 0000000000000000",
        "#PF: supervisor write access in kernel mode",
        "#PF: error_code(0x0002) - not-present page",
        "PGD 0 P4D 0 ",
        "Oops: Oops: 0002 [#1] SMP NOPTI",
        "RIP: 0010:lkdtm_EXCEPTION+0x8/0x10",
        "Kernel panic - not syncing: Fatal exception",
        "RIP: 0010:panic+0x8/0x10",
    ];
    let found = one(&printed(1, &fault));
    let expected = (Kind::Oops, symbol("lkdtm_EXCEPTION+0x8"));
    assert_eq!((found.kind, found.code), expected);
    // The message of a WARN before and after its headline.
    let message = "refcount_t: underflow; use-after-free.";
    let headline = "WARNING: lib/refcount.c:28 at refcount_warn_saturate+0x5/0x10, CPU#0: init/1";
    for lines in [[message, headline], [headline, message]] {
        let found = one(&printed(1, &lines));
        let expected = (Kind::Refcount, symbol("refcount_warn_saturate+0x5"));
        assert_eq!((found.kind, found.code), expected);
    }
    // CHECK_DATA_CORRUPTION prints the message, and then BUG begins its own report.
    let list = [
        "list_add corruption. prev->next should be 1, but was 0.",
        CUT,
        bug[1],
        bug[2],
        bug[4],
    ];
    let found = one(&printed(1, &list));
    assert_eq!((found.kind, &found.code), (Kind::List, &symbol("lkdtm_BUG+0x0")));
    // Two reports behind one another; the second time, the first has lost its end.
    let text = printed(1, &[&WARN_7_3[..], &bug[..]].concat());
    let kinds: Vec<Kind> = console(&text).iter().map(|one| one.kind).collect();
    assert_eq!(kinds, [Kind::Warning, Kind::Bug]);
    let text = printed(1, &WARN_7_3[1..3]) + &printed(2, &WARN_7_3[1..3]);
    assert_eq!(console(&text).len(), 2);
}

#[test]
fn a_report_without_its_headline_is_told() {
    let found = one(&printed(
        1,
        &["------------[ cut here ]------------", "a message"],
    ));
    assert_eq!(
        (found.kind, found.lines),
        (Kind::Warning, vec!["a message".to_owned()])
    );
    let cut = printed(1, &["------------[ cut here ]------------"]) + &printed(3, &["far away"]).repeat(20);
    assert_eq!(one(&cut).kind, Kind::Warning);
}

#[test]
fn lines_of_user_space_and_callers_do_not_hide_a_report() {
    let whole = one(&printed(1, &WARN_7_3));
    let mut text = String::from("user text without a line break");
    for line in printed(1, &WARN_7_3).lines() {
        text += &format!("{line}\r\nuser line\r\nhalf a user line");
    }
    let found = one(&text);
    assert_eq!((&found.lines, &found.code), (&whole.lines, &whole.code));
    let callers = printed(1, &WARN_7_3).replace("] ", "][    T1] ");
    assert_eq!(one(&callers).code, whole.code);
    // Without CONFIG_PRINTK_TIME.
    let found = one(&WARN_7_3.join("\n"));
    assert_eq!((found.begin_us, &found.code), (None, &whole.code));
}

fn records(text: &str) -> Vec<LogRecord> {
    let record = |line: Line<'_>| LogRecord {
        time_us: line.time_us.unwrap(),
        level: 4,
        text: line.text.to_owned(),
    };
    console_lines(text).map(record).collect()
}

/// How many complaints a console and a log have together, and how many of them are on the console.
fn merged(console: &str, log: &[LogRecord]) -> (usize, usize) {
    let mut found = complaints(console_lines(console));
    found.merge(complaints(record_lines(log)));
    let printed = found.kept.iter().filter(|one| one.at.is_some());
    (found.kept.len(), printed.count())
}

#[test]
fn the_fuller_of_two_readings_is_told() {
    let lines = [CUT, "a message", "WARNING: at f+0x1/0x2, CPU#0: init/1"];
    let log = records(&printed(1, &lines));
    let mut found = complaints(console_lines(&printed(1, &lines).replace("a message\r\n", "")));
    found.merge(complaints(record_lines(&log)));
    assert_eq!(found.kept.len(), 1);
    assert_eq!(
        (&found.kept[0].lines[..], found.kept[0].at),
        (&[lines[1].to_owned(), lines[2].to_owned()][..], Some(0))
    );
    // The console has more if the kernel died before its log was read.
    let mut found = complaints(console_lines(&printed(1, &lines)));
    found.merge(complaints(record_lines(&log[..2])));
    assert_eq!((found.kept.len(), found.kept[0].lines.len()), (1, 2));
    assert_eq!(found.kept[0].headline, lines[2]);
}

#[test]
fn a_complaint_on_console_and_in_the_log_is_told_once() {
    let text = printed(1, &WARN_7_3) + &printed(2, &WARN_7_3);
    let log = records(&text);
    assert_eq!(merged(&text, &log), (2, 2));
    // "cut here" is information, and so it is not on a console of level 5.
    let quiet: Vec<&str> = text
        .split_inclusive('\n')
        .filter(|line| !line.contains("cut here"))
        .collect();
    assert_eq!(merged(&quiet.concat(), &log), (2, 2));
    // A damaged line, no console, and a console or a log that has one of them only.
    assert_eq!(
        merged(&text.replacen("WARNING: drivers", "WARNIuser", 1), &log),
        (2, 2)
    );
    assert_eq!(merged("", &log), (2, 0));
    assert_eq!(merged(&printed(2, &WARN_7_3), &log), (2, 1));
    assert_eq!(merged(&text, &log[..WARN_7_3.len()]), (2, 2));
}

#[test]
fn a_slow_kernel_complains_once_too() {
    let mut lines = WARN_7_3.to_vec();
    lines.insert(1, "a message");
    for us in [10, 999, 1001, 8_600, 70_000] {
        let text = printed_every(us, 1, &lines) + &printed_every(us, 3, &lines);
        let log = records(&text);
        for missing in [&["cut here"][..], &["a message"], &["cut here", "a message"]] {
            let shown = text.split_inclusive('\n');
            let shown: String = shown
                .filter(|line| !missing.iter().any(|missing| line.contains(missing)))
                .collect();
            assert_eq!(
                merged(&shown, &log),
                (2, 2),
                "{us} us for a line, without {missing:?}"
            );
        }
    }
    // The same headline at another time is another report.
    let (one, two) = (printed(1, &WARN_7_3), printed(2, &WARN_7_3));
    assert_eq!(merged(&one, &records(&two)), (2, 1));
}

#[test]
fn a_flood_is_counted_and_bounded() {
    let text = printed(1, &WARN_7_3).repeat(MAX_COMPLAINTS + 10);
    let found = complaints(console_lines(&text));
    assert_eq!((found.kept.len(), found.more), (MAX_COMPLAINTS, 10));
    let bug = format!("BUG: {}", "\u{e4}\u{7}".repeat(10_000));
    let found = one(&(printed(1, &[&bug]) + &printed(1, &["more"; 1000])));
    assert!(found.lines.len() <= MAX_LINES, "{}", found.lines.len());
    assert!(found.headline.len() <= MAX_LINE_BYTES && !found.headline.contains('\u{7}'));
}

#[test]
fn a_console_that_left_messages_out_says_so() {
    let text = printed(1, &["** 12 printk messages dropped **"]);
    assert!(complaints(console_lines(&text)).messages_dropped);
    assert!(!complaints(console_lines(&printed(1, &WARN_7_3))).messages_dropped);
}

/// Text of pieces that look like a log.
fn pieces() -> impl Strategy<Value = String> {
    let pieces = vec![
        "[    1.234567] ",
        "[    1.234567][    C0] ",
        "[",
        "]",
        "------------[ cut here ]------------",
        "---[ end trace ",
        "WARNING: ",
        "CPU: 0 PID: 1 at ",
        ", CPU#0",
        "BUG: KASAN: x in ",
        "RIP: 0010:",
        "0xffffffff81000000",
        "f+0x1/0x2",
        " at ",
        "INFO: task ",
        "===========",
        "\n",
        "\r\n",
        "\u{e4}",
    ];
    prop::collection::vec(prop::sample::select(pieces), 0..60).prop_map(|all| all.concat())
}

proptest! {
    #[test]
    fn any_text_is_survived(text in prop_oneof![pieces(), "(.|\n){0,300}".prop_map(String::from)]) {
        for found in console(&text) {
            prop_assert!(found.at.is_some_and(|at| text.is_char_boundary(at)));
            prop_assert!(found.lines.len() <= MAX_LINES);
            prop_assert!(found.lines.iter().all(|line| line.len() <= MAX_LINE_BYTES));
            let _ = with_symbols(&found.headline, |_| Some("name".into()));
        }
        for line in console_lines(&text) {
            prop_assert!(text[line.at.unwrap()..].contains(line.text));
        }
    }

    #[test]
    fn a_report_amid_other_lines_is_found(
        before in "[a-z \n]{0,60}", between in "[a-z ]{0,40}", after in "[a-z \n]{0,60}"
    ) {
        let mut text = before;
        for line in printed(1, &WARN_7_3).lines() {
            text += &format!("{line}\n{between}\n");
        }
        let found = one(&(text + &after));
        prop_assert_eq!(found.code, Some(Code::Address(0xffff_ffff_813c_5e58)));
        prop_assert_eq!(&found.lines[0], WARN_7_3[1]);
    }
}
