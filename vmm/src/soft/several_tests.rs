//! Guests of a few instructions on two software processors.

use super::Soft;
use crate::boot::bzimage::tests::image;
use crate::boot::wakeup::{MAILBOX, RESET_VECTOR};
use crate::devices::power::SLEEP_CONTROL;
use crate::machine::config::tests::config;
use crate::machine::{Event, Machine, MachineConfig, MachineError};
use crate::trace::Kind;

/// Where the second processor's code is put.
const SECOND: u32 = 0x50_0000;
/// A function of its own page.
const FUNCTION: u32 = 0x51_0000;
/// An interrupt handler.
const HANDLER: u32 = 0x52_0000;
/// Words that both processors know.
const COUNT: u32 = 0x60_0000;
const ANSWER: u32 = 0x61_0000;
/// Interrupt descriptor table, and the operand of LIDT.
const IDT: u32 = 0x62_0000;
const IDT_OPERAND: u32 = 0x63_0000;
/// Local APIC registers.
const EOI: u32 = 0xfee0_00b0;
const SVR: u32 = 0xfee0_00f0;
const ID: u32 = 0xfee0_0020;
const ICR_LOW: u32 = 0xfee0_0300;
const ICR_HIGH: u32 = 0xfee0_0310;

const VECTOR: u8 = 0x40;
const NMI: u8 = 2;

/// An instruction with an absolute address and further immediate bytes.
fn absolute(opcode: &[u8], address: u32, immediate: &[u8]) -> Vec<u8> {
    [opcode, &address.to_le_bytes(), immediate].concat()
}

/// mov dword [address], value
fn store(address: u32, value: u32) -> Vec<u8> {
    absolute(&[0xc7, 0x04, 0x25], address, &value.to_le_bytes())
}

/// mov eax, address; mov dword [rax], value
fn store_mmio(address: u32, value: u32) -> Vec<u8> {
    [
        absolute(&[0xb8], address, &[]),
        absolute(&[0xc7, 0x00], value, &[]),
    ]
    .concat()
}

/// again: pause; cmp dword [address], value; jne again
fn wait_for(address: u32, value: u8) -> Vec<u8> {
    let compare = absolute(&[0x83, 0x3c, 0x25], address, &[value]);
    [vec![0xf3, 0x90], compare, vec![0x75, 0xf4]].concat()
}

/// mov ecx, times; again: body; dec ecx; jnz again
fn repeat(times: u32, body: &[u8]) -> Vec<u8> {
    let back = u8::try_from(body.len() + 4).unwrap().wrapping_neg();
    [
        absolute(&[0xb9], times, &[]),
        body.to_vec(),
        vec![0xff, 0xc9, 0x75, back],
    ]
    .concat()
}

/// lock inc qword [address]
fn increment(address: u32) -> Vec<u8> {
    absolute(&[0xf0, 0x48, 0xff, 0x04, 0x25], address, &[])
}

/// mov rsp, address
fn stack(address: u32) -> Vec<u8> {
    absolute(&[0x48, 0xc7, 0xc4], address, &[])
}

/// Gives the second processor a mailbox command, and waits until it has been taken.
fn command(command: u32, vector: u32) -> Vec<u8> {
    let mailbox = u32::try_from(MAILBOX).unwrap();
    [
        store(mailbox + 4, 1),
        store(mailbox + 8, vector),
        store(mailbox, command),
        wait_for(mailbox, 0),
    ]
    .concat()
}

fn wake() -> Vec<u8> {
    command(1, SECOND)
}

/// mov dx, SLEEP_CONTROL; mov al, 0x34; out dx, al
fn power_off() -> Vec<u8> {
    let [low, high] = SLEEP_CONTROL.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, 0x34, 0xee]
}

/// lidt [IDT_OPERAND]; local APIC enabled
fn interrupts() -> Vec<u8> {
    [
        absolute(&[0x0f, 0x01, 0x1c, 0x25], IDT_OPERAND, &[]),
        store_mmio(SVR, 0x1ff),
    ]
    .concat()
}

const HALT: [u8; 2] = [0xfa, 0xf4]; // cli; hlt

fn vcpus(count: u8, first: &[Vec<u8>], second: &[Vec<u8>]) -> Machine {
    let mut kernel = image(4096);
    let code = first.concat();
    kernel[1024 + 0x200..][..code.len()].copy_from_slice(&code);
    let config = MachineConfig {
        vcpus: count,
        ..config(kernel)
    };
    let machine = Machine::new(&config, &Soft::default()).unwrap();
    machine.ram().write(SECOND.into(), &second.concat()).unwrap();
    machine
}

fn two(first: &[Vec<u8>], second: &[Vec<u8>]) -> Machine {
    vcpus(2, first, second)
}

/// Puts a handler behind a vector.
fn handle(machine: &Machine, vector: u8, handler: &[Vec<u8>]) {
    let [a, b, c, d] = HANDLER.to_le_bytes();
    let gate = [a, b, 0x10, 0, 0, 0x8e, c, d, 0, 0, 0, 0, 0, 0, 0, 0];
    let ram = machine.ram();
    ram.write(u64::from(IDT) + 16 * u64::from(vector), &gate).unwrap();
    ram.write(IDT_OPERAND.into(), &0xfff_u16.to_le_bytes()).unwrap();
    ram.write(u64::from(IDT_OPERAND) + 2, &u64::from(IDT).to_le_bytes())
        .unwrap();
    ram.write(HANDLER.into(), &handler.concat()).unwrap();
}

fn word(machine: &Machine, address: u32) -> u64 {
    machine.ram().read_u64(address.into()).unwrap()
}

fn runs_to_power_off(machine: &mut Machine) {
    let event = machine.run().unwrap();
    assert!(matches!(event, Event::PowerOff { .. }), "{event}");
}

#[test]
fn the_mailbox_wakes_a_processor_and_has_it_back() {
    let reset = u32::try_from(RESET_VECTOR).unwrap();
    let mut machine = two(
        &[
            wake(),
            wait_for(COUNT, 1),
            // Back in firmware it answers the test command, and can be woken again.
            command(2, 0),
            wake(),
            wait_for(COUNT, 2),
            power_off(),
        ],
        &[
            // mov eax, 1; cpuid; shr ebx, 24; mov [ANSWER], ebx
            vec![0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xc1, 0xeb, 24],
            absolute(&[0x89, 0x1c, 0x25], ANSWER, &[]),
            increment(COUNT),
            // mov eax, reset; jmp rax
            absolute(&[0xb8], reset, &[0xff, 0xe0]),
        ],
    );
    runs_to_power_off(&mut machine);
    assert_eq!((word(&machine, COUNT), word(&machine, ANSWER)), (2, 1));
}

#[test]
fn waiting_in_firmware_costs_no_instructions() {
    let mut alone = vcpus(1, &[repeat(200_000, &[0x90]), power_off()], &[]);
    let mut beside = vcpus(8, &[repeat(200_000, &[0x90]), power_off()], &[]);
    runs_to_power_off(&mut alone);
    runs_to_power_off(&mut beside);
    let spent = |machine: &Machine| machine.moment().retired.unwrap();
    let more = spent(&beside) - spent(&alone);
    assert!(
        (7 * 20..7 * 40).contains(&more),
        "{more}: each walks to the loop once"
    );
}

#[test]
fn locked_increments_of_both_add_up() {
    let counting = || repeat(100_000, &increment(COUNT));
    let run = |seed_of_second: u32| {
        let mut machine = two(
            &[wake(), counting(), wait_for(ANSWER, 1), power_off()],
            &[
                repeat(seed_of_second, &[0x90]),
                counting(),
                store(ANSWER, 1),
                HALT.to_vec(),
            ],
        );
        runs_to_power_off(&mut machine);
        assert_eq!(word(&machine, COUNT), 200_000);
        (machine.moment(), machine.state_hash().unwrap())
    };
    let once = run(7);
    assert_eq!(
        once,
        run(7),
        "the same guest ends in the same state at the same time"
    );
    assert_ne!(once.1, run(8).1);
    let (moment, _) = once;
    assert_eq!(
        moment.retired,
        Some(moment.time),
        "nobody slept, and one executes at a time"
    );
}

#[test]
fn both_execute_at_the_same_time_by_turns() {
    // Neither gives its turn away; each counts for itself while the other one has not reached its end.
    let endless = |own: u32, other: u32, end: u32| {
        // again: inc dword [own]; cmp dword [other], end; jb again
        let body = [
            absolute(&[0xff, 0x04, 0x25], own, &[]),
            absolute(&[0x81, 0x3c, 0x25], other, &end.to_le_bytes()),
        ]
        .concat();
        let back = u8::try_from(body.len() + 2).unwrap().wrapping_neg();
        [body, vec![0x72, back]].concat()
    };
    let mut machine = two(
        &[wake(), endless(COUNT, ANSWER, 50_000), power_off()],
        &[endless(ANSWER, COUNT, u32::MAX)],
    );
    runs_to_power_off(&mut machine);
    let (first, second) = (word(&machine, COUNT), word(&machine, ANSWER));
    assert!(
        second >= 50_000 && first.abs_diff(second) < 5_000,
        "{first}, {second}"
    );
}

#[test]
fn interrupts_go_to_and_fro() {
    const ROUNDS: u8 = 100;
    let main = |top| [stack(top), interrupts()].concat();
    // again: sti; hlt; cmp dword [COUNT], ROUNDS; jb again
    let rest = [
        vec![0xfb, 0xf4],
        absolute(&[0x83, 0x3c, 0x25], COUNT, &[ROUNDS]),
        vec![0x72, 0xf4],
    ]
    .concat();
    let send = [
        // mov eax, ID; mov edx, [rax]; xor edx, 1 << 24
        absolute(&[0xb8], ID, &[0x8b, 0x10, 0x81, 0xf2, 0, 0, 0, 1]),
        // mov eax, ICR_HIGH; mov [rax], edx
        absolute(&[0xb8], ICR_HIGH, &[0x89, 0x10]),
        store_mmio(ICR_LOW, VECTOR.into()),
    ]
    .concat();
    let mut machine = two(
        &[
            main(0x70_0000),
            wake(),
            wait_for(ANSWER, 1),
            send.clone(),
            rest.clone(),
            power_off(),
        ],
        &[main(0x71_0000), store(ANSWER, 1), rest, HALT.to_vec()],
    );
    let handler = [
        vec![0x50, 0x52], // push rax; push rdx
        increment(COUNT),
        store_mmio(EOI, 0),
        absolute(&[0x83, 0x3c, 0x25], COUNT, &[ROUNDS]),
        vec![0x73, u8::try_from(send.len()).unwrap()], // jae over
        send,
        vec![0x5a, 0x58, 0x48, 0xcf], // pop rdx; pop rax; iretq
    ];
    handle(&machine, VECTOR, &handler);
    runs_to_power_off(&mut machine);
    assert_eq!(word(&machine, COUNT), u64::from(ROUNDS));
}

#[test]
fn code_that_one_writes_the_other_executes() {
    let patch = absolute(&[0xc6, 0x04, 0x25], FUNCTION + 1, &[2]);
    let mut machine = two(
        &[
            wake(),
            wait_for(ANSWER, 1),
            patch,
            wait_for(ANSWER, 2),
            power_off(),
        ],
        &[
            stack(0x71_0000),
            // again: mov edx, FUNCTION; call rdx; mov [ANSWER], eax; jmp again
            absolute(&[0xba], FUNCTION, &[0xff, 0xd2]),
            absolute(&[0x89, 0x04, 0x25], ANSWER, &[]),
            vec![0xeb, 0xf0],
        ],
    );
    // mov eax, 1; ret
    machine
        .ram()
        .write(FUNCTION.into(), &[0xb8, 1, 0, 0, 0, 0xc3])
        .unwrap();
    runs_to_power_off(&mut machine);
    assert_eq!(word(&machine, ANSWER), 2);
}

#[test]
fn data_beside_code_of_the_other_is_written_and_the_code_stays() {
    let beside = FUNCTION + 0x800;
    let call = absolute(&[0xba], FUNCTION, &[0xff, 0xd2]);
    let mut machine = two(
        &[
            wake(),
            wait_for(ANSWER, 1),
            repeat(50_000, &increment(beside)),
            store(COUNT, 1),
            wait_for(ANSWER, 2),
            power_off(),
        ],
        &[
            stack(0x71_0000),
            call.clone(),
            store(ANSWER, 1),
            wait_for(COUNT, 1),
            call,
            store(ANSWER, 2),
            HALT.to_vec(),
        ],
    );
    machine.ram().write(FUNCTION.into(), &[0xc3]).unwrap();
    runs_to_power_off(&mut machine);
    assert_eq!(word(&machine, beside), 50_000);
}

#[test]
fn an_nmi_reaches_a_processor_that_takes_nothing_else() {
    let send = [store_mmio(ICR_HIGH, 1 << 24), store_mmio(ICR_LOW, 0x400)].concat();
    let mut machine = two(
        &[
            wake(),
            wait_for(ANSWER, 1),
            send.clone(),
            wait_for(COUNT, 1),
            send,
            wait_for(COUNT, 2),
            power_off(),
        ],
        &[
            stack(0x71_0000),
            absolute(&[0x0f, 0x01, 0x1c, 0x25], IDT_OPERAND, &[]),
            store(ANSWER, 1),
            HALT.to_vec(),
            vec![0xeb, 0xfd], // jmp hlt
        ],
    );
    handle(&machine, NMI, &[increment(COUNT), vec![0x48, 0xcf]]);
    runs_to_power_off(&mut machine);
    assert_eq!(word(&machine, COUNT), 2);
    let records = machine.trace().records;
    let delivered = records.iter().filter(|record| record.kind == Kind::Nmi);
    assert_eq!(
        delivered.map(|record| record.processor).collect::<Vec<_>>(),
        [1, 1],
        "the trace says to whom"
    );
}

#[test]
fn an_init_interrupt_is_refused_by_name() {
    let mut machine = two(
        &[
            store_mmio(ICR_HIGH, 1 << 24),
            store_mmio(ICR_LOW, 0x4500),
            HALT.to_vec(),
        ],
        &[],
    );
    let error = machine.run().unwrap_err();
    assert!(
        matches!(&error, MachineError::Backend(error) if error.to_string().contains("delivery mode 5 to local APIC 1")),
        "{error}"
    );
}

#[test]
fn the_machine_is_dead_only_when_nobody_can_go_on() {
    let mut survives = two(&[wake(), HALT.to_vec()], &[repeat(100_000, &[0x90]), power_off()]);
    runs_to_power_off(&mut survives);
    let mut dead = two(
        &[wake(), HALT.to_vec()],
        &[repeat(100_000, &[0x90]), HALT.to_vec()],
    );
    let event = dead.run().unwrap();
    assert!(
        matches!(
            event,
            Event::DeadHalt {
                interruptible: false,
                ..
            }
        ),
        "{event}"
    );
    let mut waiting = two(&[HALT.to_vec()], &[]);
    assert!(matches!(waiting.run().unwrap(), Event::DeadHalt { .. }));
}

#[test]
fn evidence_names_the_first_and_the_last_writer_of_all() {
    let page = u64::from(COUNT);
    let mut machine = two(
        &[
            wake(),
            wait_for(ANSWER, 1),
            store(COUNT + 8, 1),
            store(ANSWER, 2),
            wait_for(ANSWER, 3),
            power_off(),
        ],
        &[
            store(COUNT + 16, 1),
            store(ANSWER, 1),
            wait_for(ANSWER, 2),
            store(COUNT + 8, 2),
            store(ANSWER, 3),
            HALT.to_vec(),
        ],
    );
    machine.watch([page / 4096]);
    runs_to_power_off(&mut machine);
    let (last, _) = machine.last_write(page + 8).unwrap();
    assert!((SECOND..SECOND + 0x100).contains(&u32::try_from(last.rip).unwrap()));
    machine.finish().unwrap();
    let writes = &machine.provenance().phases()[0].writes;
    let of_page: Vec<_> = writes
        .iter()
        .filter(|write| write.address() / 4096 == page / 4096)
        .collect();
    assert_eq!(of_page.len(), 1, "one first write, whoever made more");
    assert_eq!((of_page[0].address(), of_page[0].rip), (page + 16, SECOND.into()));
    assert!(writes.is_sorted_by_key(|write| write.time));
}
