//! Exit codes: which one an error means. They are part of the interface; scripts lean on them.
//!
//! Called by `cli::main` alone; commands just return errors.

use std::io;

use crate::control::writer;
use crate::core::names;
use crate::node;
use crate::ports::{LogError, ModuleError};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for is done.
    Done = 0,
    /// It failed.
    Failed = 1,
    /// The command line, or a file that it names, is not as it has to be.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 3,
    /// It exists, but the request is refused: invalid, in conflict, or not allowed.
    Refused = 4,
    /// Somebody does not answer, holds the lock, or did not get ready in time.
    Unavailable = 5,
}

/// What `coproc --help` says about exit codes.
pub const HELP: &str = "\
Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 refused (invalid, in conflict
or not allowed), 5 unavailable (no answer, locked, or not ready in time).";

/// An error of the command line itself, with its exit code.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Coded {
    exit: Exit,
    message: String,
}

/// An error with this exit code.
pub fn coded(exit: Exit, message: impl Into<String>) -> anyhow::Error {
    Coded { exit, message: message.into() }.into()
}

/// The exit code that an error means: the first of its causes that knows one decides.
pub fn of(error: &anyhow::Error) -> Exit {
    error.chain().find_map(of_cause).unwrap_or(Exit::Failed)
}

/// Whether the reader of our output went away, which is no failure of ours.
pub fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn of_cause(cause: &(dyn std::error::Error + 'static)) -> Option<Exit> {
    if let Some(coded) = cause.downcast_ref::<Coded>() {
        return Some(coded.exit);
    }
    if let Some(error) = cause.downcast_ref::<LogError>() {
        return Some(of_log(error));
    }
    if let Some(error) = cause.downcast_ref::<writer::Error>() {
        return Some(of_writer(error));
    }
    if let Some(error) = cause.downcast_ref::<ModuleError>() {
        return Some(of_module(error));
    }
    #[cfg(feature = "oci")]
    if let Some(error) = cause.downcast_ref::<crate::oci::OciError>() {
        return Some(of_registry(error));
    }
    if let Some(error) = cause.downcast_ref::<node::Error>() {
        return of_node(error);
    }
    cause.downcast_ref::<names::Error>().map(|_| Exit::Usage)
}

fn of_log(error: &LogError) -> Exit {
    match error {
        LogError::UnknownTopic(_) | LogError::UnknownPartition { .. } | LogError::OffsetOutOfRange { .. } => {
            Exit::NotFound
        }
        LogError::TopicExists(_)
        | LogError::NotWritable { .. }
        | LogError::RecordRefused { .. }
        | LogError::Fenced(_)
        | LogError::Refused(_)
        | LogError::GroupInUse { .. }
        | LogError::BadConfig(_) => Exit::Refused,
        LogError::Locked(_) | LogError::Unavailable(_) | LogError::Expired(_) | LogError::Uncertain(_) => {
            Exit::Unavailable
        }
        LogError::Storage(_) | LogError::Corrupt(_) => Exit::Failed,
    }
}

fn of_writer(error: &writer::Error) -> Exit {
    match error {
        writer::Error::NotFound(_) => Exit::NotFound,
        writer::Error::Log(error) => of_log(error),
        writer::Error::Busy => Exit::Unavailable,
        writer::Error::Invalid(_)
        | writer::Error::NotOurs { .. }
        | writer::Error::Cycle(_)
        | writer::Error::OtherPool { .. }
        | writer::Error::GroupIsImmutable(_) => Exit::Refused,
    }
}

fn of_node(error: &node::Error) -> Option<Exit> {
    match error {
        node::Error::Log(error) => Some(of_log(error)),
        node::Error::NodeIdInUse { .. } => Some(Exit::Refused),
        node::Error::Http(_) => Some(Exit::Unavailable),
        node::Error::Spawn(_) | node::Error::Metrics(_) => None,
    }
}

#[cfg(feature = "oci")]
fn of_registry(error: &crate::oci::OciError) -> Exit {
    use crate::core::disposition::Disposition;
    use crate::oci::OciError;
    match error {
        OciError::NotFound { .. } | OciError::NoSource { .. } | OciError::ReadFile { .. } => Exit::NotFound,
        OciError::ParseReference(_) | OciError::ReadConfig { .. } => Exit::Usage,
        error if error.disposition() == Disposition::Transient => Exit::Unavailable,
        error if error.disposition() == Disposition::Bug => Exit::Failed,
        _ => Exit::Refused,
    }
}

fn of_module(error: &ModuleError) -> Exit {
    match error {
        ModuleError::Invalid(_)
        | ModuleError::TooLarge(_)
        | ModuleError::CompileTimeout(_)
        | ModuleError::Unverified(_)
        | ModuleError::Refused(_)
        | ModuleError::WrongDigest { .. } => Exit::Refused,
        ModuleError::NotFound { .. } => Exit::NotFound,
        ModuleError::Unavailable(_) => Exit::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_first_cause_that_knows_a_code_decides() {
        let unknown = LogError::UnknownTopic("x".parse().unwrap());
        for (error, exit) in [
            (anyhow::anyhow!("anything"), Exit::Failed),
            (coded(Exit::Usage, "which?"), Exit::Usage),
            (anyhow::Error::from(unknown.clone()), Exit::NotFound),
            (Err::<(), _>(unknown.clone()).context("while reading").unwrap_err(), Exit::NotFound),
            (writer::Error::Log(unknown).into(), Exit::NotFound),
            (LogError::Locked("pid 1".into()).into(), Exit::Unavailable),
            (ModuleError::Invalid("no".into()).into(), Exit::Refused),
            ("a b".parse::<names::TopicName>().unwrap_err().into(), Exit::Usage),
        ] {
            assert_eq!(of(&error), exit, "{error:#}");
        }
    }

    #[test]
    fn a_closed_pipe_is_known_under_its_context() {
        let closed = anyhow::Error::from(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
        assert!(is_closed_pipe(&closed));
        assert!(!is_closed_pipe(&anyhow::anyhow!("x")));
    }
}
