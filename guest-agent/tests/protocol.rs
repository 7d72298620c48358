//! Every message survives encoding and decoding, and no input makes the decoder panic.

use guest_agent::protocol::{
    By, Change, Chore, DmaRing, Features, FlagRun, LogRecord, Misbehaviour, PageRun, Part, Place, Program,
    ProgramEnd, Provocation, Reply, Request, Side, decode, encode,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn place() -> impl Strategy<Value = Place> {
    any::<(u32, u64)>().prop_map(|(object, offset)| Place { object, offset })
}

fn misbehaviour() -> impl Strategy<Value = Misbehaviour> {
    prop_oneof![
        Just(Misbehaviour::Exit),
        Just(Misbehaviour::Spin),
        Just(Misbehaviour::Panic),
        Just(Misbehaviour::Sleep)
    ]
}

fn start_dma() -> impl Strategy<Value = Request> {
    (
        place(),
        place(),
        any::<u32>(),
        place(),
        place(),
        any::<u32>(),
        any::<bool>(),
        vec(any::<u64>(), 0..8),
    )
        .prop_map(
            |(list, descriptors, entries, completion, buffers, buffer_bytes, free_run, wild_addresses)| {
                Request::StartDma(DmaRing {
                    list,
                    descriptors,
                    entries,
                    completion,
                    buffers,
                    buffer_bytes,
                    free_run,
                    wild_addresses,
                })
            },
        )
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::Outgoing), Just(Side::Incoming)]
}

fn change() -> impl Strategy<Value = Change> {
    let part = || any::<(u64, u64)>().prop_map(|(offset, bytes)| Part { offset, bytes });
    let by = prop_oneof![Just(By::Write), Just(By::Store)];
    prop_oneof![
        (part(), any::<u64>(), by).prop_map(|(part, seed, by)| Change::Write { part, seed, by }),
        part().prop_map(Change::Read),
        part().prop_map(Change::Allocate),
        part().prop_map(Change::PunchHole),
        any::<u32>().prop_map(Change::Seal),
        part().prop_map(Change::Collapse),
    ]
}

fn chore() -> impl Strategy<Value = Chore> {
    prop_oneof![
        (any::<u32>(), change()).prop_map(|(object, change)| Chore::Change { object, change }),
        any::<String>().prop_map(|name| Chore::Session { name }),
        any::<(String, u32, u64)>().prop_map(|(session, object, token)| Chore::Preserve {
            session,
            object,
            token
        }),
    ]
}

fn program() -> impl Strategy<Value = Program> {
    let initrd_at = proptest::option::of(any::<String>());
    (vec(any::<String>(), 0..4), initrd_at).prop_map(|(words, initrd_at)| Program { words, initrd_at })
}

fn request() -> impl Strategy<Value = Request> {
    prop_oneof![
        program().prop_map(Request::RunProgram),
        program().prop_map(Request::Become),
        any::<String>().prop_map(|name| Request::CreateSession { name }),
        any::<(u32, u64, u32)>().prop_map(|(object, bytes, flags)| Request::CreateMemfd {
            object,
            bytes,
            flags
        }),
        any::<(u32, u64)>().prop_map(|(object, bytes)| Request::CreateBuffer { object, bytes }),
        any::<(u32, u64, u64, u64)>().prop_map(|(object, first_page, pages, seed)| Request::Fill {
            object,
            first_page,
            pages,
            seed
        }),
        (any::<(String, u32, u64)>(), side()).prop_map(|((session, object, token), side)| {
            Request::Preserve {
                session,
                object,
                token,
                side,
            }
        }),
        any::<u32>().prop_map(|object| Request::ResolvePages { object }),
        any::<(u32, u64, u64)>().prop_map(|(object, first_page, pages)| Request::ResolveRange {
            object,
            first_page,
            pages
        }),
        start_dma(),
        Just(Request::ConsumeDma),
        Just(Request::StopDma),
        Just(Request::ArmInterrupts),
        any::<u64>().prop_map(|ns| Request::AwaitInterrupts { ns }),
        Just(Request::DisarmInterrupts),
        any::<String>().prop_map(|command_line| Request::LoadKexec { command_line }),
        Just(Request::Kexec),
        any::<String>().prop_map(|name| Request::RetrieveSession { name }),
        (any::<(String, u64, u32)>(), side()).prop_map(|((session, token, object), side)| {
            Request::RetrieveMemfd {
                session,
                token,
                object,
                side,
            }
        }),
        (any::<(String, u64, u32)>(), side()).prop_map(|((session, token, object), side)| {
            Request::RetrieveAgain {
                session,
                token,
                object,
                side,
            }
        }),
        (any::<u32>(), change()).prop_map(|(object, change)| Request::Change { object, change }),
        chore().prop_map(Request::Loop),
        Just(Request::DropCaches),
        Just(Request::JumpBack),
        Just(Request::AbortFinalize),
        any::<(u32, u64, u64)>().prop_map(|(object, first_page, pages)| Request::Digest {
            object,
            first_page,
            pages
        }),
        (any::<String>(), side()).prop_map(|(name, side)| Request::FinishSession { name, side }),
        (any::<String>(), side()).prop_map(|(name, side)| Request::CloseSession { name, side }),
        any::<u32>().prop_map(|object| Request::Close { object }),
        Just(Request::MemoryInfo),
        Just(Request::PowerOff),
        misbehaviour().prop_map(Request::Misbehave),
        vec(any::<(u64, u64)>(), 0..64).prop_map(|runs| {
            let run = |(first, count)| PageRun { first, count };
            let runs = runs.into_iter().map(run).collect();
            Request::PageFlags { runs }
        }),
        any::<u64>().prop_map(|pages| Request::TakeMemory { pages }),
        Just(Request::ReleaseMemory),
        any::<u32>().prop_map(|object| Request::KeepOpen { object }),
        Just(Request::KernelLog),
        prop_oneof![Just(Provocation::Warning), Just(Provocation::HungTask)].prop_map(Request::Provoke),
    ]
}

fn hello() -> impl Strategy<Value = Reply> {
    let words = any::<(String, String, String, Vec<String>)>();
    (words, any::<(u32, bool, bool, bool, u32)>()).prop_map(
        |(
            (release, build_id, command_line, unknown_parameters),
            (protocol, liveupdate, kho_debugfs, kho_incoming, processors),
        )| {
            Reply::Hello {
                unknown_parameters,
                protocol,
                release,
                build_id,
                command_line,
                features: Features {
                    liveupdate,
                    kho_debugfs,
                    kho_incoming,
                },
                processors,
            }
        },
    )
}

fn reply() -> impl Strategy<Value = Reply> {
    let run = any::<(u64, u64)>().prop_map(|(first, count)| PageRun { first, count });
    let record =
        any::<(u64, u8, String)>().prop_map(|(time_us, level, text)| LogRecord { time_us, level, text });
    prop_oneof![
        hello(),
        (vec(record, 0..16), any::<(u64, bool)>()).prop_map(|(records, (lost, more))| Reply::KernelLog {
            records,
            lost,
            more
        }),
        Just(Reply::Done),
        any::<i32>().prop_map(|status| Reply::Ended(ProgramEnd::Exit(status))),
        any::<i32>().prop_map(|signal| Reply::Ended(ProgramEnd::Signal(signal))),
        vec(run, 0..64).prop_map(Reply::Pages),
        vec(any::<u64>(), 0..64).prop_map(Reply::Digests),
        any::<(Option<u64>, u64, u64, u32)>().prop_map(
            |(completed_in_memory, completed, consumed, status)| {
                Reply::Dma {
                    completed_in_memory,
                    completed,
                    consumed,
                    status,
                }
            }
        ),
        vec(any::<(u64, u64)>(), 0..64).prop_map(|runs| {
            let run = |(flags, count)| FlagRun { flags, count };
            Reply::PageFlags(runs.into_iter().map(run).collect())
        }),
        any::<[u64; 4]>().prop_map(|[now_pages, all_pages, free_pages, per_cpu_pages]| Reply::Taken {
            now_pages,
            all_pages,
            free_pages,
            per_cpu_pages
        }),
        any::<(u64, u64)>().prop_map(|(total_pages, free_pages)| Reply::Memory {
            total_pages,
            free_pages
        }),
        any::<(u32, u64, u64, u32)>().prop_map(|(object, page, address, bits)| Reply::OutOfReach {
            object,
            page,
            address,
            bits
        }),
        any::<(String, i32, String)>().prop_map(|(call, errno, detail)| Reply::Failed {
            call,
            errno,
            detail
        }),
    ]
}

proptest! {
    #[test]
    fn requests_come_back(request in request()) {
        prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()), Ok(request));
    }

    #[test]
    fn replies_come_back(reply in reply()) {
        prop_assert_eq!(decode::<Reply>(&encode(&reply).unwrap()), Ok(reply));
    }

    #[test]
    fn a_cut_message_is_malformed(request in request(), part in 0.0f64..1.0) {
        let message = encode(&request).unwrap();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let length = (message.len() as f64 * part) as usize;
        prop_assert_eq!(decode::<Request>(&message[..length]).unwrap_err().length, length);
    }

    #[test]
    fn a_lengthened_message_is_malformed(reply in reply(), more in 1usize..9) {
        let mut message = encode(&reply).unwrap();
        message.resize(message.len() + more, 0);
        prop_assert_eq!(decode::<Reply>(&message).unwrap_err().reason, format!("{more} bytes left over"));
    }

    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
    }
}

#[test]
fn the_largest_digest_reply_fits_the_window() {
    let message = encode(&Reply::Digests(vec![u64::MAX; 8192])).unwrap();
    assert!(
        message.len() as u64 <= guest_agent::device::mailbox::WINDOW_SIZE,
        "{} bytes",
        message.len()
    );
}
