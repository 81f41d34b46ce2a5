//! How a runtime's words for an exit become the pod machine's.

use lichen_pods::Exit;

/// The same exit, as the pod machine knows it.
pub(crate) fn exit_of(exit: &lichen_workload::Exit) -> Exit {
    use lichen_workload::Exit as Runtime;
    match exit {
        Runtime::Code(code) => Exit::Code { code: *code, message: None },
        Runtime::Signal(_) => Exit::Code { code: exit.code(), message: exit.message() },
        Runtime::OutOfMemory => Exit::OutOfMemory,
        Runtime::Killed => Exit::Killed,
        Runtime::Trap(_) | Runtime::Lost => {
            Exit::Error { code: exit.code(), message: exit.message().unwrap_or_default() }
        }
    }
}
