//! The state of a processor is whole: what is taken is given back, every part of it counts, and what no processor can
//! be in is refused.

mod common;

use common::Guest;
use common::busy::{self, PIECES, drive};
use proptest::prelude::*;
use softcpu::registers::{Registers, Segment, TableRegister};
use softcpu::state::{CodeTranslation, DataTranslation, Translations};
use softcpu::{Cpu, CpuModel, CpuState, CpuWrite, Msrs, Ram, StateError, WatchedPage, Watches, X87};

const RAM_BYTES: u64 = 2 << 20;

fn segment() -> impl Strategy<Value = Segment> {
    any::<(u16, u64, u32, u16)>().prop_map(|(selector, base, limit, attributes)| Segment {
        selector,
        base,
        limit,
        attributes,
    })
}

fn table() -> impl Strategy<Value = TableRegister> {
    any::<(u64, u16)>().prop_map(|(base, limit)| TableRegister { base, limit })
}

fn fpu() -> impl Strategy<Value = X87> {
    let parts = (
        any::<[u128; 8]>(),
        any::<u16>(),
        any::<u16>(),
        any::<u8>(),
        0..0x800u16,
        any::<(u64, u64)>(),
    );
    parts.prop_map(
        |(registers, control, status, full, opcode, (instruction, data))| {
            let control = control & 0x1f3f | 0x40;
            let pending = if status & !control & 0x3f != 0 { 0x8080 } else { 0 };
            X87 {
                registers: registers.map(|value| value >> 48),
                control,
                status: status & !0x8080 | pending,
                full,
                opcode,
                instruction,
                data,
            }
        },
    )
}

fn registers() -> impl Strategy<Value = Registers> {
    let control = (any::<[u64; 5]>(), 0..16u64, any::<u64>(), any::<u64>());
    let segments = (
        prop::array::uniform6(segment()),
        segment(),
        segment(),
        table(),
        table(),
    );
    let vectors = (any::<[u128; 16]>(), any::<u16>(), fpu());
    (any::<[u64; 16]>(), control, segments, vectors).prop_map(
        |(
            gpr,
            ([cr0, cr2, cr3, cr4, efer], cr8, rip, rflags),
            (segments, tr, ldtr, gdtr, idtr),
            (xmm, mxcsr, fpu),
        )| Registers {
            gpr,
            rip,
            rflags: rflags | 2,
            segments,
            tr,
            ldtr,
            gdtr,
            idtr,
            cr0,
            cr2,
            cr3,
            cr4,
            cr8,
            efer,
            xmm,
            mxcsr: mxcsr.into(),
            fpu,
        },
    )
}

fn msrs() -> impl Strategy<Value = Msrs> {
    any::<([u64; 10], [u64; 3])>().prop_map(
        |(
            [
                star,
                lstar,
                cstar,
                fmask,
                kernel_gs_base,
                tsc_aux,
                tsc_offset,
                pat,
                misc_enable,
                bios_sign,
            ],
            sysenter,
        )| Msrs {
            star,
            lstar,
            cstar,
            fmask,
            kernel_gs_base,
            tsc_aux,
            tsc_offset,
            pat,
            misc_enable,
            sysenter,
            bios_sign,
        },
    )
}

/// A virtual page number, an offset of a page, and two flags.
fn entry() -> impl Strategy<Value = (u64, u64, bool, bool)> {
    let page = any::<u64>().prop_map(|va| (va.cast_signed() << 16 >> 16).cast_unsigned() >> 12);
    (page, 0..RAM_BYTES / 4096, any::<bool>(), any::<bool>())
        .prop_map(|(page, frame, user, flag)| (page, frame * 4096, user, flag))
}

/// Sorts by a key and keeps the first of each.
fn distinct<T, K: Ord + Copy>(mut items: Vec<T>, key: impl Fn(&T) -> K) -> Vec<T> {
    items.sort_by_key(&key);
    items.dedup_by_key(|item| key(item));
    items
}

fn translations() -> impl Strategy<Value = Translations> {
    let entries = || prop::collection::vec((entry(), any::<bool>()), 1..40);
    let regions = || any::<[[u64; 32]; 2]>();
    (entries(), entries(), regions(), regions()).prop_map(
        |(data, code, large_regions, large_global_regions)| Translations {
            data: distinct(data, |(entry, _)| entry.0 % 2048)
                .into_iter()
                .map(|((page, offset, user, writable), global)| DataTranslation {
                    page,
                    user,
                    offset,
                    writable,
                    global,
                })
                .collect(),
            code: distinct(code, |(entry, _)| entry.0 % 512)
                .into_iter()
                .map(|((page, offset, user, passed), global)| CodeTranslation {
                    page,
                    user,
                    offset,
                    passed,
                    global,
                })
                .collect(),
            large_regions,
            large_global_regions,
        },
    )
}

/// A write of 8 bytes, aligned.
fn write() -> impl Strategy<Value = CpuWrite> {
    (0..RAM_BYTES / 8, any::<(u64, u64, bool)>()).prop_map(|(at, (rip, time, user))| CpuWrite {
        gpa: at * 8,
        len: 8,
        rip,
        time,
        user,
    })
}

fn watches() -> impl Strategy<Value = Watches> {
    let writes = || prop::collection::vec(write(), 1..20);
    let pages = prop::collection::vec(0..RAM_BYTES / 4096, 1..10);
    let marks = any::<(bool, Option<u64>, Option<u64>, Option<u64>)>();
    (writes(), writes(), pages, marks).prop_map(|(epoch, written, executed, marks)| {
        let (low_supervisor_fetch, pass, left_user, entered_user) = marks;
        let page = |record: &CpuWrite| record.gpa / 4096 * 4096;
        let mut pages: Vec<WatchedPage> = Vec::new();
        for record in distinct(written, |record| record.gpa) {
            if pages.last().is_none_or(|last| last.gpa != page(&record)) {
                pages.push(WatchedPage {
                    gpa: page(&record),
                    last: Vec::new(),
                });
            }
            let unit = u16::try_from(record.gpa % 4096 / 8).unwrap();
            pages.last_mut().unwrap().last.push((unit, record));
        }
        Watches {
            epoch: distinct(epoch, page),
            written: pages,
            executed: distinct(executed, |page| *page)
                .into_iter()
                .map(|page| page * 4096)
                .collect(),
            low_supervisor_fetch,
            pass,
            left_user,
            entered_user,
        }
    })
}

fn state() -> impl Strategy<Value = CpuState> {
    let model =
        any::<(u32, u64, u64, u32)>().prop_map(|(apic_id, tsc_hz, crystal_hz, processors)| CpuModel {
            apic_id,
            tsc_hz,
            crystal_hz,
            processors,
        });
    let debug = any::<[u64; 8]>().prop_map(|mut debug| {
        debug[7] &= !0xff;
        debug
    });
    let time = (0..u64::MAX).prop_flat_map(|time| (Just(time), 0..=time));
    let own = (model, registers(), msrs(), debug, time);
    (own, any::<[bool; 4]>(), translations(), watches()).prop_map(|(own, flags, translations, watches)| {
        let (model, registers, msrs, debug, (time, skipped)) = own;
        let [nmi_blocked, interrupt_shadow, window_wanted, pause_wanted] = flags;
        CpuState {
            model,
            registers,
            msrs,
            debug,
            time,
            skipped,
            nmi_blocked,
            interrupt_shadow,
            window_wanted,
            pause_wanted,
            translations,
            watches,
        }
    })
}

fn restored(state: &CpuState) -> CpuState {
    let ram = Ram::new_owned(RAM_BYTES);
    let cpu = Cpu::from_state(state, &ram).unwrap_or_else(|error| panic!("{error}: {state:?}"));
    cpu.state(&ram)
}

proptest! {
    #[test]
    fn what_is_given_is_taken_back(state in state()) {
        prop_assert_eq!(&restored(&state), &state);
        let bytes = postcard::to_allocvec(&state).unwrap();
        prop_assert_eq!(&postcard::from_bytes::<CpuState>(&bytes).unwrap(), &state);
    }

    #[test]
    fn a_processor_in_any_state_runs_without_panic(state in state(), run in 1..200u64) {
        let mut ram = Ram::new_owned(RAM_BYTES);
        let mut cpu = Cpu::from_state(&state, &ram).unwrap();
        let until = cpu.now().saturating_add(run);
        for _ in 0..10 {
            cpu.run(&mut ram, &mut softcpu::NoBus, until);
        }
    }

    #[test]
    fn broken_bytes_make_an_error_or_a_processor(
        state in state(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = postcard::to_allocvec(&state).unwrap();
        for (at, value) in flips {
            *at.get_mut(&mut bytes) = value;
        }
        let mut ram = Ram::new_owned(RAM_BYTES);
        if let Ok(read) = postcard::from_bytes::<CpuState>(&bytes)
            && let Ok(mut cpu) = Cpu::from_state(&read, &ram)
        {
            prop_assert_eq!(cpu.state(&ram), read);
            let until = cpu.now().saturating_add(10);
            cpu.run(&mut ram, &mut softcpu::NoBus, until);
        }
    }

    #[test]
    fn a_processor_that_has_run_gives_a_state_that_is_taken(
        pieces in prop::collection::vec(0..PIECES, 1..60),
        end in 20..2000u64,
    ) {
        let mut guest = busy::guest(&pieces);
        drive(&mut guest, &[100, 300, 500], end, &[7], |guest| {
            let Guest { cpu, ram } = guest;
            cpu.watch_writes(ram, busy::DATA, true);
            cpu.watch_execution(ram, 0xb_0000, true);
            let state = cpu.state(ram);
            assert_eq!(Cpu::from_state(&state, ram).unwrap().state(ram), state);
        });
    }
}

/// A state in which nothing is as after a reset.
fn eventful() -> CpuState {
    let record = CpuWrite {
        gpa: 0x5008,
        len: 8,
        rip: 3,
        time: 4,
        user: true,
    };
    let other = Segment {
        selector: 0x2b,
        base: 0x1234,
        limit: 77,
        attributes: 0xc0f3,
    };
    let table = TableRegister {
        base: 0x5678,
        limit: 99,
    };
    CpuState {
        model: CpuModel {
            apic_id: 1,
            tsc_hz: 2,
            crystal_hz: 3,
            processors: 4,
        },
        registers: Registers {
            gpr: std::array::from_fn(|i| i as u64 + 1),
            rip: 0x8000,
            rflags: 0xad7,
            segments: [other; 6],
            tr: other,
            ldtr: other,
            gdtr: table,
            idtr: table,
            cr0: 0x8001_0033,
            cr2: 5,
            cr3: 0x1000,
            cr4: 0x2a0,
            cr8: 6,
            efer: 0xd01,
            xmm: std::array::from_fn(|i| i as u128 + 1),
            mxcsr: 0x9fc0,
            fpu: X87 {
                registers: std::array::from_fn(|i| i as u128 + 1),
                control: 0x0f7f,
                status: 0x3800,
                full: 0xff,
                opcode: 0x123,
                instruction: 8,
                data: 9,
            },
        },
        msrs: Msrs {
            star: 1,
            lstar: 2,
            cstar: 3,
            fmask: 4,
            kernel_gs_base: 5,
            tsc_aux: 6,
            tsc_offset: 7,
            pat: 4,
            misc_enable: 8,
            sysenter: [9, 10, 11],
            bios_sign: 12,
        },
        debug: [1, 2, 3, 4, 5, 6, 7, 0x100],
        time: 1000,
        skipped: 100,
        nmi_blocked: true,
        interrupt_shadow: true,
        window_wanted: true,
        pause_wanted: true,
        translations: Translations {
            data: vec![DataTranslation {
                page: 0x90,
                user: true,
                offset: 0x5000,
                writable: true,
                global: true,
            }],
            code: vec![CodeTranslation {
                page: 0x91,
                user: true,
                offset: 0x6000,
                passed: true,
                global: true,
            }],
            large_regions: [[1; 32], [2; 32]],
            large_global_regions: [[3; 32], [4; 32]],
        },
        watches: Watches {
            epoch: vec![record],
            written: vec![WatchedPage {
                gpa: 0x5000,
                last: vec![(1, record)],
            }],
            executed: vec![0x7000],
            low_supervisor_fetch: true,
            pass: Some(1),
            left_user: Some(2),
            entered_user: Some(3),
        },
    }
}

/// Parts of the state by name, each with how to set it to what it is in `default`.
macro_rules! parts {
    ($($($part:ident).+;)*) => {
        [$((
            stringify!($($part).+),
            (|state: &mut CpuState, default: &CpuState| state.$($part).+ = default.$($part).+.clone())
                as fn(&mut CpuState, &CpuState),
        )),*]
    };
}

#[test]
fn every_part_counts() {
    let ram = Ram::new_owned(RAM_BYTES);
    let default = Cpu::new(CpuModel::default()).state(&ram);
    let whole = eventful();
    assert_eq!(restored(&whole), whole);
    let parts = parts! {
        model.apic_id; model.tsc_hz; model.crystal_hz; model.processors;
        registers.gpr; registers.rip; registers.rflags; registers.segments; registers.tr; registers.ldtr;
        registers.gdtr; registers.idtr; registers.cr0; registers.cr2; registers.cr3; registers.cr4; registers.cr8; registers.efer;
        registers.xmm; registers.mxcsr; registers.fpu.registers; registers.fpu.control; registers.fpu.status;
        registers.fpu.full; registers.fpu.opcode; registers.fpu.instruction; registers.fpu.data;
        msrs.star; msrs.lstar; msrs.cstar; msrs.fmask; msrs.kernel_gs_base; msrs.tsc_aux; msrs.tsc_offset; msrs.pat;
        msrs.misc_enable; msrs.sysenter; msrs.bios_sign;
        debug; time; skipped; nmi_blocked; interrupt_shadow; window_wanted; pause_wanted;
        translations.data; translations.code; translations.large_regions;
        translations.large_global_regions;
        watches.epoch; watches.written; watches.executed; watches.low_supervisor_fetch; watches.pass; watches.left_user;
        watches.entered_user;
    };
    let mut all = whole.clone();
    for (name, reset) in &parts {
        let mut changed = whole.clone();
        reset(&mut changed, &default);
        if *name == "time" {
            // Time cannot be less than what was skipped of it.
            changed.skipped = 0;
        }
        assert_ne!(changed, whole, "{name} is as after a reset");
        // A processor that is given it differs, in this and in nothing else: so it is neither ignored nor mixed up.
        assert_eq!(restored(&changed), changed, "{name}");
        assert_ne!(
            postcard::to_allocvec(&changed),
            postcard::to_allocvec(&whole),
            "{name} is not encoded"
        );
        reset(&mut all, &default);
    }
    // The list names every part: nothing is left when all of them are reset.
    assert_eq!(all, default);
}

#[test]
fn what_no_processor_can_be_in_is_refused() {
    type Break = fn(&mut CpuState);
    let breaks: [(&str, Break); 19] = [
        ("RFLAGS", |s| s.registers.rflags = 0),
        ("CR8", |s| s.registers.cr8 = 16),
        ("MXCSR", |s| s.registers.mxcsr = 1 << 16),
        ("DR7", |s| s.debug[7] = 1),
        ("x87 register", |s| s.registers.fpu.registers[3] = 1 << 80),
        ("FOP", |s| s.registers.fpu.opcode = 0x800),
        ("FCW", |s| s.registers.fpu.control = 0),
        ("FSW", |s| s.registers.fpu.status = 0x80),
        ("skipped", |s| s.skipped = s.time + 1),
        ("not canonical", |s| s.translations.data[0].page = 1 << 40),
        ("not canonical", |s| s.translations.code[0].page = 1 << 52),
        ("offset", |s| s.translations.data[0].offset = RAM_BYTES),
        ("offset", |s| s.translations.code[0].offset = 1),
        ("slot", |s| s.translations.data.push(s.translations.data[0])),
        ("no page of RAM", |s| s.watches.epoch[0].gpa = RAM_BYTES),
        ("listed twice", |s| s.watches.epoch.push(s.watches.epoch[0])),
        ("leaves its page", |s| s.watches.epoch[0].len = 0x1000),
        ("did not write there", |s| s.watches.written[0].last[0].0 = 600),
        ("listed twice", |s| s.watches.executed.push(0x7000)),
    ];
    let ram = Ram::new_owned(RAM_BYTES);
    for (expected, change) in breaks {
        let mut state = eventful();
        change(&mut state);
        let error: StateError = Cpu::from_state(&state, &ram).expect_err(expected);
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
}
