//! A guest without a machine.

use crate::conductor::cursor::{Move, Point, What};
use crate::conductor::regions::Region;
use crate::evidence::{Moment, Phase};
use guest_agent::protocol::{Features, FlagRun, LogRecord, PageRun, Reply, Request, VERSION};
use vmm::machine::Event;
use vmm::phase::Stamp;

/// A guest that exists only as what it says.
pub(super) struct Guest<'a> {
    pub at: Point,
    /// The request to be answered.
    pub asked: Option<Request>,
    /// The request that it was released after.
    pub released: Option<Request>,
    /// Memory that it was asked to take, in pages.
    taken: u64,
    /// How often it was asked for the kernel's log.
    logs: u64,
    /// What it says instead of what a good guest would.
    twist: &'a dyn Fn(&Guest<'_>, &Move) -> Option<What>,
}

impl<'a> Guest<'a> {
    pub fn new(twist: &'a dyn Fn(&Guest<'_>, &Move) -> Option<What>) -> Self {
        let moment = Moment {
            generation: 0,
            time_ns: 0,
            ledger_length: 0,
        };
        Self {
            at: Point {
                moment,
                phase: Phase::BootOld,
                rip: Some(0xffff_ffff_8100_0107),
                engine_event_ns: None,
            },
            asked: None,
            released: None,
            taken: 0,
            logs: 0,
            twist,
        }
    }

    pub fn make(&mut self, due: &Move) -> What {
        if let Some(what) = (self.twist)(self, due) {
            if let What::Event {
                event: Event::KernelEntry { generation, .. },
                ..
            } = &what
            {
                self.begin((*generation).into());
            }
            return what;
        }
        match due {
            Move::Say(request) => (self.asked, self.released) = (Some(request.clone()), None),
            Move::Release => self.released = self.asked.take(),
            Move::Enter(phase) => self.at.phase = *phase,
            Move::Pass(ns) => {
                self.at.moment.time_ns += ns;
                self.at.moment.ledger_length += 10;
            }
            Move::Run => return self.run(),
            Move::FindRegions => {
                return What::Regions(Some(vec![Region {
                    name: "kept".into(),
                    start: 0x4000_0000,
                    bytes: 0x2000,
                }]));
            }
            Move::Fill(_)
            | Move::Capture(_)
            | Move::StartDevice
            | Move::StopDevice
            | Move::ExpectKexec
            | Move::ExpectReturn
            | Move::SplitPageWrites
            | Move::End(_) => {}
        }
        What::Done
    }

    fn begin(&mut self, generation: u32) {
        (self.asked, self.released) = (None, None);
        (self.at.moment.generation, self.at.phase) = (generation, Phase::BootNew);
    }

    fn run(&mut self) -> What {
        self.at.moment.time_ns += 1000;
        match &self.released {
            Some(Request::Kexec) if self.at.phase == Phase::Jump => {
                let generation = self.at.moment.generation + 1;
                self.begin(generation);
                entry(generation)
            }
            Some(Request::Kexec) => {
                self.at.phase = Phase::Jump;
                event(Event::Jump {
                    time: self.at.moment.time_ns,
                })
            }
            Some(Request::PowerOff) => event(Event::PowerOff { at: here(), by: None }),
            Some(_) => event(Event::NoProgress {
                at: here(),
                since: 1,
                limit: 2,
            }),
            None => self.answer(),
        }
    }

    fn answer(&mut self) -> What {
        let Some(request) = self.asked.clone() else {
            return What::Message(Ok(hello(VERSION, 1)));
        };
        if let Request::StartDma(_) | Request::StopDma = request {
            self.at.engine_event_ns = Some(self.at.moment.time_ns - 300);
        }
        What::Message(Ok(match request {
            Request::ResolveRange {
                object,
                first_page,
                pages,
            } => {
                let first = (u64::from(object) << 20) + first_page;
                Reply::Pages(vec![PageRun { first, count: pages }])
            }
            Request::Digest { pages, .. } => Reply::Digests((0..pages).collect()),
            Request::ConsumeDma => Reply::Dma {
                completed_in_memory: Some(1),
                completed: 1,
                consumed: 1,
                status: 0,
            },
            Request::PageFlags { runs } => {
                let pages = runs.iter().map(|run| run.count).sum();
                Reply::PageFlags(vec![FlagRun {
                    flags: 0,
                    count: pages,
                }])
            }
            Request::TakeMemory { pages } => {
                self.taken += pages;
                let now_pages = if self.taken > 2 * pages { 0 } else { pages };
                Reply::Taken {
                    now_pages,
                    all_pages: self.taken.min(2 * pages),
                    free_pages: 3,
                    per_cpu_pages: 2,
                }
            }
            Request::ReleaseMemory => {
                self.taken = 0;
                Reply::Done
            }
            Request::KernelLog => {
                self.logs += 1;
                Reply::KernelLog {
                    records: vec![LogRecord {
                        time_us: self.logs,
                        level: 4,
                        text: format!("line {}", self.logs),
                    }],
                    lost: 1,
                    more: self.logs % 2 == 1,
                }
            }
            Request::MemoryInfo => Reply::Memory {
                total_pages: 1000,
                free_pages: 500,
            },
            Request::DisarmInterrupts => Reply::Interrupts { count: 3 },
            _ => Reply::Done,
        }))
    }
}

pub(super) fn hello(protocol: u32, processors: u32) -> Reply {
    Reply::Hello {
        protocol,
        release: "7.3.4".into(),
        build_id: "ab".into(),
        command_line: "quiet".into(),
        features: Features::default(),
        unknown_parameters: Vec::new(),
        processors,
    }
}

pub(super) fn failed(errno: i32) -> What {
    What::Message(Ok(Reply::Failed {
        call: "ioctl".into(),
        errno,
        detail: "no".into(),
    }))
}

pub(super) fn event(event: Event) -> What {
    What::Event { event, panic: None }
}

pub(super) fn entry(generation: u32) -> What {
    event(Event::KernelEntry {
        time: 5,
        boot_params: 0x9_0000,
        generation: generation.try_into().unwrap(),
    })
}

pub(super) fn here() -> vmm::machine::Moment {
    vmm::machine::Moment {
        time: 7,
        retired: None,
        rip: Some(0),
        stamp: Stamp::START,
    }
}
