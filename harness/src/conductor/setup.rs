//! The machine's configuration for a plan, and the evidence of a run that has not begun.

use crate::evidence::{
    Captures, DmaEvidence, Evidence, HandoverEvidence, KernelEvidence, Laid, Moment, NOT_ENDED,
    ObjectEvidence, Outcome, OutcomeKind, PAGE, Phase, VERSION, empty_ledger,
};
use crate::initramfs;
use crate::kernel::Fit;
use crate::plan::{ObjectPlan, Plan};
use guest_agent::protocol::{PageRun, Part};
use vmm::boot::HandedOver;
use vmm::machine::MachineConfig;

pub(super) fn machine_config(plan: &Plan, agent: &[u8]) -> MachineConfig {
    let first = plan.first_generation();
    let next = (first < plan.kexecs).then(|| plan.kernel(first + 1));
    MachineConfig {
        ram_bytes: plan.ram_bytes,
        kernel: plan.kernel(first).image.as_ref().clone(),
        initramfs: {
            let next = next
                .filter(|_| !plan.is_survey())
                .map(|next| next.image.as_slice());
            match &plan.payload {
                Some(payload) => payload.overlaid(agent, next),
                None => initramfs::build(agent, next),
            }
        },
        command_line: plan.command_line(first).to_owned(),
        seed: crate::seed::seed_for(plan.seed, "machine"),
        dma: plan.dma.as_ref().map(|dma| dma.engine).unwrap_or_default(),
        progress_limit_ns: plan.progress_ns,
        vcpus: u8::try_from(plan.vcpus).unwrap_or(u8::MAX),
        ledger_entries: usize::try_from(plan.ledger_entries).unwrap_or(usize::MAX),
        injections: plan
            .injections
            .iter()
            .map(|planned| planned.injection.clone())
            .collect(),
        handover: plan.handover.as_ref().map(|handover| HandedOver {
            kho: handover.kho,
            scratch: handover
                .scratch
                .iter()
                .map(|area| area.start..area.end())
                .collect(),
        }),
        device_memory: plan.device_memory(),
    }
}

/// Evidence of a run that has not begun.
pub(super) fn blank(plan: &Plan, backend: &str) -> Evidence {
    let kernel = |generation| {
        if generation < plan.first_generation() {
            return KernelEvidence::default();
        }
        let kernel = plan.kernel(generation);
        KernelEvidence {
            path: kernel.path.display().to_string(),
            image_hash: format!("{:016x}", kernel.hash),
            image_release: kernel.release.clone(),
            command_line: plan.command_line(generation).to_owned(),
            hello: None,
            symbols: Fit::Unknown,
        }
    };
    let handed = |id: u32| plan.handover.as_ref()?.objects.get(&id);
    let device = |object: &ObjectPlan| {
        let memory = plan.device_memory().filter(|_| object.is_device())?;
        Some(vec![PageRun {
            first: memory.start / PAGE,
            count: object.bytes / PAGE,
        }])
    };
    let object = |object: &ObjectPlan| ObjectEvidence {
        id: object.id,
        name: object.name.clone(),
        kind: object.kind.clone(),
        end: object.end,
        bytes: object.bytes,
        pattern_seed: object.seed,
        laid: laid(plan, object),
        pages: handed(object.id)
            .cloned()
            .or_else(|| device(object))
            .map(|runs| (0, runs))
            .into_iter()
            .collect(),
        preserved_by: if object.is_device() {
            (0..plan.kexecs).collect()
        } else {
            handed(object.id).map(|_| 0).into_iter().collect()
        },
        closed: None,
    };
    let dma = plan.dma.as_ref().map(|dma| DmaEvidence {
        setup: dma.clone(),
        // Before the kernel was entered, by the host.
        started: plan.handover.as_ref().map(|_| Moment {
            generation: 0,
            time_ns: 0,
            ledger_length: 0,
        }),
        stopped: None,
    });
    Evidence {
        version: VERSION,
        baton: env!("CARGO_PKG_VERSION").into(),
        scenario_file: plan.scenario_file.clone(),
        scenario_text: plan.scenario_text.clone(),
        name: plan.name.clone(),
        backend: backend.into(),
        seed: plan.seed,
        overrides: plan.overrides.arguments(),
        ram_bytes: plan.ram_bytes,
        kexecs: plan.kexecs,
        handover: plan.handover.as_ref().map(|handover| HandoverEvidence {
            abi: handover.abi,
            model: handover.model.clone(),
            hash: format!("{:016x}", handover.hash()),
        }),
        kernels: (0..=plan.kexecs).map(kernel).collect(),
        phases: Vec::new(),
        objects: plan.objects.iter().map(object).collect(),
        test_kho: plan.test_kho,
        payload: plan.payload.as_ref().map(Into::into),
        dma,
        injections: Vec::new(),
        event_causes: Vec::new(),
        cpu_writes: Vec::new(),
        cpu_writes_until_ns: Some(0),
        authors: Vec::new(),
        memory: Vec::new(),
        page_flags: Vec::new(),
        pressure: Vec::new(),
        reused: Vec::new(),
        steps: Vec::new(),
        retrievals: Vec::new(),
        failures: Vec::new(),
        interrupts: Vec::new(),
        blobs: Vec::new(),
        blackouts_ns: Vec::new(),
        blackout_begins_ns: Vec::new(),
        jumps_not_before: Vec::new(),
        device_lateness_ns: 0,
        slowdown: 1,
        emulated: Vec::new(),
        console_parts: Vec::new(),
        kernel_logs: Vec::new(),
        log_symbols: Vec::new(),
        outcome: Outcome {
            kind: OutcomeKind::Unfinished,
            generation: 0,
            phase: Phase::BootOld,
            text: NOT_ENDED.into(),
        },
        state_hash: String::new(),
        ledger: empty_ledger(),
        trace: Default::default(),
        captures: Captures::default(),
        console: String::new(),
    }
}

/// What an object holds at first, if steps change it: nothing, or the pattern that it was handed over with.
fn laid(plan: &Plan, object: &ObjectPlan) -> Option<Vec<Laid>> {
    let of_steps = plan.gives_steps() && object.preserve().is_some();
    let whole = Laid {
        at: Moment {
            generation: 0,
            time_ns: 0,
            ledger_length: 0,
        },
        part: Part {
            offset: 0,
            bytes: object.bytes,
        },
        seed: Some(object.seed),
    };
    if object.blank {
        Some(Vec::new())
    } else {
        of_steps.then(|| vec![whole])
    }
}
