//! The main loop: receives a request, does what it asks, and replies.

use crate::dma::Engine;
use crate::failure::Failure;
use crate::kernel_log::KernelLog;
use crate::luo::Luo;
use crate::mailbox::Mailbox;
use crate::memory::Objects;
use crate::pressure::Pressure;
use crate::sys::child::forever;
use crate::{boot, crew, files, kexec, page_flags, program, provoke, sys};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use guest_agent::meminfo;
use guest_agent::protocol::{Chore, Misbehaviour, Reply, Request};
use rustix::thread::Timespec;

/// Maximum number of pages in one [`Request::Digest`], so that the reply fits the window.
const MAX_DIGESTS: u64 = 8192;

/// A write to it makes the kernel drop caches (CONFIG_SYSCTL).
const DROP_CACHES: &str = "/proc/sys/vm/drop_caches";

/// Serves the host until it says otherwise.
pub fn serve(mailbox: &Mailbox, command_line: String) -> ! {
    let mut agent = Agent::default();
    let mut reply = boot::hello(command_line);
    loop {
        reply = match mailbox.exchange(&reply) {
            Ok(Request::Kexec) => {
                mailbox.post(&Reply::Done);
                kexec::jump().into()
            }
            Ok(Request::PowerOff) => {
                mailbox.post(&Reply::Done);
                boot::power_off();
            }
            Ok(Request::Misbehave(how)) => {
                mailbox.post(&Reply::Done);
                misbehave(how);
            }
            Ok(Request::Become(wanted)) => match program::prepare(&wanted) {
                Ok(ready) => {
                    mailbox.post(&Reply::Done);
                    ready.become_it().into()
                }
                Err(failure) => failure.into(),
            },
            Ok(request) => agent.handle(request).unwrap_or_else(Reply::from),
            Err(failure) => failure.into(),
        };
    }
}

/// All that the agent holds between requests.
#[derive(Default)]
struct Agent {
    luo: Luo,
    objects: Objects,
    engine: Engine,
    pressure: Option<Pressure>,
    kernel_log: KernelLog,
}

impl Agent {
    /// Does what is asked.
    fn handle(&mut self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::CreateSession { name } => self.luo.create_session(&name)?,
            Request::CreateMemfd { object, bytes, flags } => {
                self.objects.create_memfd(object, bytes, flags)?;
            }
            Request::CreateBuffer { object, bytes } => self.objects.create_buffer(object, bytes)?,
            Request::Fill {
                object,
                first_page,
                pages,
                seed,
            } => self.objects.fill(object, first_page, pages, seed)?,
            Request::Preserve {
                session,
                object,
                token,
                side,
            } => {
                let memfd = self.objects.memfd(object)?;
                self.luo.preserve(&session, side, memfd, token)?;
            }
            Request::ResolvePages { object } => {
                let pages = self.objects.page_count(object)?;
                return Ok(Reply::Pages(self.objects.resolve(object, 0, pages)?));
            }
            Request::ResolveRange {
                object,
                first_page,
                pages,
            } => {
                return Ok(Reply::Pages(self.objects.resolve(object, first_page, pages)?));
            }
            Request::StartDma(ring) => return self.engine.start(&self.objects, &ring),
            Request::ConsumeDma => return self.engine.consume(&self.objects),
            Request::StopDma => self.engine.stop()?,
            Request::ArmInterrupts => self.engine.arm_interrupts()?,
            Request::AwaitInterrupts { ns } => self.engine.await_interrupts(ns)?,
            Request::DisarmInterrupts => return self.engine.disarm_interrupts(),
            Request::StageKernel { offset, bytes } => kexec::stage(offset, &bytes)?,
            Request::LoadKexec { command_line } => kexec::load(&command_line)?,
            Request::RetrieveSession { name } => self.luo.retrieve_session(&name)?,
            Request::RetrieveMemfd {
                session,
                token,
                object,
                side,
            } => {
                self.objects.check_free(object)?;
                let memfd = self.luo.retrieve_fd(&session, side, token)?;
                self.objects.adopt_memfd(object, memfd)?;
            }
            Request::RetrieveAgain {
                session,
                token,
                object,
                side,
            } => {
                let memfd = self.luo.retrieve_fd(&session, side, token)?;
                self.objects.check_same_file(object, &memfd)?;
            }
            Request::Digest {
                object,
                first_page,
                pages,
            } => {
                if pages > MAX_DIGESTS {
                    return Err(Failure::refused(
                        "digest",
                        format!("{pages} pages: at most {MAX_DIGESTS}"),
                    ));
                }
                return Ok(Reply::Digests(self.objects.digest(object, first_page, pages)?));
            }
            Request::FinishSession { name, side } => self.luo.finish_session(&name, side)?,
            Request::CloseSession { name, side } => self.luo.close_session(&name, side)?,
            Request::DropCaches => self.objects.unmapped(drop_caches)?,
            Request::JumpBack => kexec::jump_back()?,
            Request::AbortFinalize => kexec::abort_finalize()?,
            Request::Loop(chore) => self.chore(chore)?,
            Request::Change { object, change } => self.objects.change(object, change)?,
            Request::Close { object } => {
                self.engine.forget(object);
                self.objects.close(object)?;
            }
            Request::KeepOpen { object } => {
                self.engine.forget(object);
                self.objects.keep_open(object)?;
            }
            Request::MemoryInfo => return memory_info(),
            Request::PageFlags { runs } => return Ok(Reply::PageFlags(page_flags::read(&runs)?)),
            Request::TakeMemory { pages } => {
                let pressure = match &mut self.pressure {
                    Some(pressure) => pressure,
                    none => none.insert(Pressure::new()?),
                };
                return pressure.take(pages);
            }
            Request::ReleaseMemory => self.pressure = None,
            Request::KernelLog => return self.kernel_log.read(),
            Request::Provoke(what) => provoke::provoke(what)?,
            Request::RunProgram(wanted) => return Ok(Reply::Ended(program::prepare(&wanted)?.run()?)),
            // Answered before they are done, by the loop.
            Request::Kexec | Request::PowerOff | Request::Misbehave(_) | Request::Become(_) => {}
        }
        Ok(Reply::Done)
    }
}

impl Agent {
    /// Does a chore once, and then has it done for ever.
    fn chore(&mut self, chore: Chore) -> Result<(), Failure> {
        let work: Box<dyn Fn() -> Result<(), Failure> + Send> = match chore {
            Chore::Change { object, change } => {
                let work = self.objects.apart(object)?;
                Box::new(move || work.change(change))
            }
            Chore::Session { name } => {
                let maker = self.luo.maker(&name)?;
                Box::new(move || maker.create().map(drop))
            }
            Chore::Preserve {
                session,
                object,
                token,
            } => {
                let (maker, work) = (self.luo.maker(&session)?, self.objects.apart(object)?);
                Box::new(move || maker.preserve(work.memfd(), token))
            }
        };
        work()?;
        // What a later round comes to is the kernel's business.
        forever(move || drop(work()))
    }
}

/// Free memory, after dropping the page cache and freed slabs if the kernel offers that.
fn memory_info() -> Result<Reply, Failure> {
    crew::warm_up()?;
    if files::exists(DROP_CACHES) {
        drop_caches()?;
    }
    let info = files::meminfo()?;
    let zones = meminfo::zones(&files::read_text("/proc/zoneinfo").unwrap_or_default());
    Ok(Reply::Memory {
        total_pages: info.total_pages,
        free_pages: info.free_pages.saturating_add(meminfo::per_cpu_pages(&zones)),
    })
}

/// Drops the page cache and freed slabs.
fn drop_caches() -> Result<(), Failure> {
    files::write(DROP_CACHES, b"3")
}

/// Dies as asked.
fn misbehave(how: Misbehaviour) -> ! {
    match how {
        Misbehaviour::Exit => sys::exit(1),
        Misbehaviour::Panic => {
            // The kernel may lack SysRq; ending PID 1 below panics it in any case.
            let _ = files::write("/proc/sysrq-trigger", b"c");
            sys::exit(1)
        }
        Misbehaviour::Spin => loop {
            core::hint::spin_loop();
        },
        Misbehaviour::Sleep => loop {
            let _ = rustix::thread::nanosleep(&Timespec {
                tv_sec: 3600,
                tv_nsec: 0,
            });
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agent::pattern::{PAGE_WORDS, Pattern, page_digest};
    use guest_agent::protocol::Side;

    fn failure(agent: &mut Agent, request: Request) -> Failure {
        agent.handle(request).unwrap_err()
    }

    #[test]
    fn objects_hold_the_pattern() {
        let mut agent = Agent::default();
        // More pages than one write carries, and not a multiple of that.
        let (bytes, pages) = (37 * 4096, 37);
        assert_eq!(
            agent.handle(Request::CreateMemfd {
                object: 1,
                bytes,
                flags: 0
            }),
            Ok(Reply::Done)
        );
        assert_eq!(
            agent.handle(Request::CreateBuffer {
                object: 2,
                bytes: 4096 * 3
            }),
            Ok(Reply::Done)
        );
        // In portions, as the host asks for them.
        for (object, seed, first_page, pages) in [(1, 5, 0, 20), (1, 5, 20, 17), (2, 6, 0, 1), (2, 6, 1, 2)] {
            let filled = agent.handle(Request::Fill {
                object,
                first_page,
                pages,
                seed,
            });
            assert_eq!(filled, Ok(Reply::Done));
        }
        for (object, seed, first_page, pages) in [(1, 5, 0, pages), (1, 5, 36, 1), (2, 6, 0, 3)] {
            let pattern = Pattern::new(seed);
            let expected = (first_page..first_page + pages).map(|page| {
                let mut words = [0; PAGE_WORDS];
                pattern.fill(page, &mut words);
                page_digest(&words)
            });
            let reply = agent.handle(Request::Digest {
                object,
                first_page,
                pages,
            });
            assert_eq!(reply, Ok(Reply::Digests(expected.collect())));
        }
        assert_eq!(agent.handle(Request::Close { object: 1 }), Ok(Reply::Done));
        assert_eq!(
            failure(&mut agent, Request::Close { object: 1 }).detail,
            "does not exist"
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let mut agent = Agent::default();
        agent
            .handle(Request::CreateBuffer {
                object: 1,
                bytes: 4096,
            })
            .unwrap();
        for request in [
            Request::CreateBuffer {
                object: 1,
                bytes: 4096,
            },
            Request::CreateMemfd {
                object: 2,
                bytes: 0,
                flags: 0,
            },
            Request::CreateMemfd {
                object: 2,
                bytes: 4095,
                flags: 0,
            },
            Request::CreateMemfd {
                object: 2,
                bytes: !4095,
                flags: 0,
            },
            Request::Fill {
                object: 1,
                first_page: 1,
                pages: u64::MAX,
                seed: 1,
            },
            Request::Digest {
                object: 1,
                first_page: 0,
                pages: 2,
            },
            Request::Digest {
                object: 1,
                first_page: u64::MAX,
                pages: 2,
            },
            Request::Digest {
                object: 1,
                first_page: 0,
                pages: u64::MAX,
            },
            Request::ResolveRange {
                object: 1,
                first_page: 1,
                pages: 1,
            },
            Request::ResolvePages { object: 9 },
            Request::Preserve {
                session: "s".into(),
                object: 1,
                token: 1,
                side: Side::Outgoing,
            },
            Request::CreateSession { name: "".into() },
            Request::CreateSession { name: "n".repeat(64) },
            Request::CreateSession { name: "nul\0".into() },
            Request::Loop(Chore::Session { name: "".into() }),
            Request::FinishSession {
                name: "never".into(),
                side: Side::Incoming,
            },
            Request::CloseSession {
                name: "never".into(),
                side: Side::Outgoing,
            },
            Request::LoadKexec {
                command_line: "nul\0".into(),
            },
        ] {
            let failure = failure(&mut agent, request.clone());
            assert_eq!(failure.errno, 0, "{request:?}: {failure}");
        }
    }

    #[test]
    fn more_memory_than_there_is_fails_by_name() {
        let bytes = 1 << 62;
        for request in [
            Request::CreateBuffer { object: 1, bytes },
            Request::CreateMemfd {
                object: 1,
                bytes,
                flags: 0,
            },
        ] {
            let failure = failure(&mut Agent::default(), request);
            assert_eq!(failure.call, format!("allocate {bytes} bytes"));
        }
    }
}
