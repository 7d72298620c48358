//! What a program of the user's own hands over: the files in the blob become objects, and when they are asked for is seen
//! in the kernel, because no agent tells it.

use super::Run;
use crate::evidence::{BlobEvidence, MemfdEnd, ObjectEvidence, ObjectKind, PAGE, Retrieval};
use crate::plan::FIRST_FOUND;
use guest_agent::pagemap::push_frame;
use vmm::translate::AddressSpace;
use vmm::vcpu::{RDI, RSI};

/// The kernel's function that retrieves a file (kernel/liveupdate/luo_file.c, 6.19 to 7.3). Its first argument points into
/// the session, its second is the token.
const RETRIEVE: &str = "luo_retrieve_file";
/// Bytes before that pointer that are searched for the session's name, which the session begins with.
const SESSION_BYTES: usize = 256;

impl Run {
    /// Makes objects of the files in a blob, so that rules look at their memory.
    pub(super) fn find_objects(&mut self, blob: &BlobEvidence) {
        // A rule says what cannot be decoded.
        let files = crate::blob::decode(blob).map_or(Vec::new(), |handed| handed.files);
        let objects = &mut self.evidence.objects;
        let known = objects.iter().filter(|object| object.is_found()).count();
        for (number, file) in (known..).zip(files) {
            let mut pages = Vec::new();
            file.frames
                .iter()
                .for_each(|frame| push_frame(&mut pages, *frame));
            objects.push(ObjectEvidence {
                id: FIRST_FOUND.saturating_add(u32::try_from(number).unwrap_or(u32::MAX)),
                name: format!("{}/{:#x}", file.session, file.token),
                kind: ObjectKind::Found {
                    session: file.session,
                    token: file.token,
                },
                end: MemfdEnd::Retrieved,
                bytes: (file.frames.len() as u64).saturating_mul(PAGE),
                pattern_seed: 0,
                laid: None,
                pages: [(blob.generation, pages)].into(),
                preserved_by: vec![blob.generation],
                closed: None,
            });
        }
    }

    /// A kernel is entered: has the machine stop where that kernel retrieves files, if a payload has handed some over.
    pub(super) fn watch_retrievals(&mut self) {
        let generation = self.moment().generation;
        let seen = self.machine.moment().retired.is_some();
        let address = self
            .plan
            .kernel(generation)
            .linked_address(RETRIEVE)
            .filter(|_| seen);
        if let Some(payload) = &mut self.evidence.payload {
            payload.retrievals_seen = address.is_some();
            self.machine.stop_before(address.as_slice());
        }
    }

    /// The kernel may be about to retrieve a file. All files count as asked for that its arguments can mean.
    pub(super) fn asked_for(&mut self) {
        let now = self.moment();
        let registers = self.machine.registers();
        let kernel = self.plan.kernel(now.generation);
        let mut fit = self.evidence.fit(now.generation);
        if fit.offset().is_none() {
            fit = self.fit_of_running(now.generation, "");
        }
        if kernel.address_of(&fit, RETRIEVE) != Some(registers.rip) {
            return;
        }
        let (session, token) = (registers.gpr[RDI], registers.gpr[RSI]);
        let mut bytes = [0; SESSION_BYTES];
        let spaces = AddressSpace::all_of(&registers);
        let ram = self.machine.ram();
        let at = session.wrapping_sub(SESSION_BYTES as u64);
        let readable = spaces.iter().any(|space| space.read(ram, at, &mut bytes));
        let evidence = &self.evidence;
        let open = evidence.objects.iter().filter_map(|object| match &object.kind {
            ObjectKind::Found { session, token: of } if *of == token => Some((object, session)),
            _ => None,
        });
        let open: Vec<_> = open
            .filter(|(object, _)| object.preserved_by.contains(&now.generation.saturating_sub(1)))
            .filter(|(object, _)| !evidence.is_retrieved(object.id))
            .collect();
        let named = |session: &str| {
            let name = [session.as_bytes(), b"\0"].concat();
            readable && bytes.windows(name.len()).any(|window| window == name)
        };
        let any_named = open.iter().any(|(_, session)| named(session));
        let meant = open.iter().filter(|(_, session)| !any_named || named(session));
        let retrieved: Vec<Retrieval> = meant
            .map(|(object, _)| Retrieval {
                generation: now.generation,
                what: object.owner(),
                object: Some(object.id),
                time_ns: now.time_ns,
                ledger_length: now.ledger_length,
                failure: None,
            })
            .collect();
        self.evidence.retrievals.extend(retrieved);
    }
}
